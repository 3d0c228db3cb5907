"""The demo's own params and scenarios; the scenarios themselves are played by `make demo`, on the default suite."""

from pathlib import Path

import pytest

from monitoring.__main__ import main
from monitoring.demo import prepare_folder
from monitoring.scenarios import Rows, Source, garble, read_scenario, scenario_names
from mtlops.errors import UsageError
from mtlops.params import read_params
from mtlops.report import html_page
from tests.tiny_suite import Workspace

ROOT = Path(__file__).parents[2]


def test_the_demo_works_with_the_users_params_but_for_windows_and_trigger(tmp_path: Path) -> None:
    left = tmp_path / "demo/log/old.parquet"
    left.parent.mkdir(parents=True)
    left.write_text("of an earlier demo")
    scenario = read_scenario("topic")
    file = prepare_folder(ROOT / "params.yaml", tmp_path / "demo", scenario)
    params, own = read_params(file), read_params(ROOT / "params.yaml")
    assert not left.exists()
    rows = scenario.window_rows
    assert (params.trigger.by, params.drift.window_rows, params.drift.audit_rows) == ("local", rows, rows)
    changed = {"drift", "trigger"}
    assert params.model_dump(exclude=changed) == own.model_dump(exclude=changed)


@pytest.mark.parametrize("name", scenario_names())
def test_each_scenario_is_of_the_default_suite(name: str) -> None:
    params = read_params(ROOT / "params.yaml")
    scenario = read_scenario(name)
    scenario.check_tasks(list(params.suite.tasks), where=name)
    sources = {source.rows for phase in scenario.phases for source in phase.traffic}
    assert sources | set(scenario.background) | {scenario.probes} <= set(params.data.windows)


@pytest.mark.parametrize(
    "text, said",
    [
        ("about: x\nphases: []\nexpect: {scope: none}", "phases: List should have at least 1 item"),
        ("about: x\nphase: []", "phase: Extra inputs are not permitted"),
        ("about: [", "is not YAML"),
        ("about: x\nphases: [{name: a, about: b, traffic: [{rows: r, number: 1}]}]\nexpect: {scope: tasks}",
         "scope `tasks` needs `tasks` and `verdicts`"),
    ],
)  # fmt: skip
def test_a_wrong_scenario_is_refused_with_its_faults(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    with pytest.raises(UsageError, match=said):
        read_scenario(str(tmp_path / "s.yaml"))


def test_an_unknown_scenario_or_task_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["replay", "--scenario", "worst"]) == 2
    assert "Did you mean 'worse'?" in capsys.readouterr().err
    assert main(["replay", "rows.csv", "--scenario", "worse"]) == 2
    assert main(["replay"]) == 2
    with pytest.raises(UsageError, match="no task 'topic'"):
        read_scenario("topic").check_tasks(["mood"], where="topic")


def test_rows_are_handed_out_once_shuffled_garbled_or_without_labels(finished: Workspace) -> None:
    tasks = finished.params().tasks()
    rows = Rows(finished.root / "data/prepared/windows", tasks)
    whole = rows.rest("control")
    number = len(whole.texts) // 3
    first = rows.next(Source(rows="control", number=number))
    mixed = rows.next(Source(rows="control", number=number, labels="shuffled"))
    assert not set(first.texts) & set(mixed.texts) and set(first.texts) < set(whole.texts)
    own = dict(zip(whole.texts, whole.labels["mood"], strict=True))
    assert all(own[text] == label for text, label in zip(first.texts, first.labels["mood"], strict=True))
    bad = rows.next(Source(rows="control", number=number, labels="none", garbled=1.0))
    assert bad.labels == {} and not set(bad.texts) & set(whole.texts)
    with pytest.raises(UsageError, match="rows left"):
        rows.next(Source(rows="control", number=number + 9))


def test_a_garbled_text_is_what_utf_16_makes_of_it() -> None:
    assert garble("a fine film") == b"a fine film ".decode("utf-16-le") != "a fine film"


def test_the_timeline_says_what_did_not_come_as_expected() -> None:
    events = [{"seconds": s, "kind": kind, "event": f"{kind}: <b>"} for s, kind in ((1, "phase"), (9.5, "alert"))]
    content = {"schema_version": 1, "scenario": "topic", "about": "a <b> c", "events": events,
               "requests": {"answered": 3, "failed": 0},
               "claims": [{"claim": "it is better", "holds": True}]}  # fmt: skip
    page = html_page(content, name="timeline")
    assert "as expected" in page and "8.5 s" in page and "<b>" not in page
    content["claims"] = [{"claim": "it is better", "holds": False}]
    assert "not as expected" in html_page(content, name="timeline")
