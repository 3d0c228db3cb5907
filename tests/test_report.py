"""Reports: JSON and its twin agree, pages are safe, whole and accessible, and the closing table fits a terminal."""

import html
import json
import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlops.errors import ArtefactError
from mtlops.report import summary, task_page, write_report
from mtlops.report.markup import duration, number, size
from mtlops.report.pages import html_page, page_of
from mtlops.report.plots import Estimate, changes, confusion_matrix, curves, forest, scores

EVIL = "<script>alert('x')</script>&\"'"


def _interval(value: float) -> dict[str, float]:
    return {"value": value, "low": value - 0.02, "high": value + 0.02}


def _task(kind: str, primary: str, value: float, **more: Any) -> dict[str, Any]:
    metrics = {primary: _interval(value), "ece": _interval(0.05)}
    if kind == "regression":
        del metrics["ece"]
    return {
        "kind": kind,
        "rows": {"train": 2800, "valid": 400, "test": 1234},
        "groups": 600,
        "primary": primary,
        "floor": 0.5,
        "metrics": metrics,
        "baselines": dict.fromkeys(("majority", "tfidf", "frozen"), metrics),
        "margins": {"frozen": _interval(0.01)},
        "classes": None,
        "confusion": None,
        "calibration": {"bins": [{"rows": 80, "predicted": 0.1 * i, "observed": 0.1 * i} for i in range(5, 10)]},
    } | more


def _evaluation() -> dict[str, Any]:
    found = {"rows": 40, "precision": 0.7, "recall": 0.6, "f1": 0.65}
    many = [f"c{i}" for i in range(20)]
    counts = [[3 + (i == j) for i in range(20)] for j in range(20)]
    return {
        "schema_version": 1,
        "bootstrap": {"confidence": 0.95, "resamples": 2000, "seed": 0},
        "mean": {"model": 0.6111, "majority": 0.2, "tfidf": 0.5, "frozen": 0.55},
        "tasks": {
            "tone": _task("multiclass", "macro_f1", 0.652, classes={"bad": found, EVIL: found},
                          confusion={"classes": ["bad", EVIL], "counts": [[31, 9], [12, 28]]}),
            "tags": _task("multilabel", "macro_f1", 0.7, confusion={"classes": ["x"], "counts": [[[5, 6], [7, 8]]]}),
            "many": _task("multiclass", "macro_f1", 0.4, floor=None, classes=dict.fromkeys(many, found),
                          confusion={"classes": many, "counts": counts}),
            "stars": _task("regression", "r2", -0.31),
        },
    }  # fmt: skip


def everything() -> dict[str, Any]:
    """An evaluation with everything that can be in one: champion, twins, slices, robustness, behaviour, drift."""
    found = _evaluation()
    tone, tags, many, stars = found["tasks"].values()
    change = {"p_better": 0.003, "p_worse": 0.99, "bundle_id": "feedfacefeedface", "is_identical": False}
    tone["champion"] = change | {"metrics": {"macro_f1": _interval(0.55)}, "change": _interval(0.1)}
    tags["champion"] = change | {"metrics": {"macro_f1": _interval(0.9)}, "change": _interval(-0.2)}
    none = {"value": 0.0, "low": 0.0, "high": 0.0}
    many["champion"] = change | {"metrics": {"macro_f1": _interval(0.4)}, "change": none, "is_identical": True}
    stars["champion"] = None
    tone["twin"] = change | {"metrics": {"macro_f1": _interval(0.7)}, "change": _interval(-0.048)}
    theirs = {"champion": {"macro_f1": _interval(0.31)}, "change": _interval(0.03), "p_worse": 0.8}
    tone["slices"] = [
        {"column": "by", "value": EVIL, "rows": 700, "note": None, "metrics": {"macro_f1": _interval(0.7)}} | theirs,
        {"column": "by", "value": "weak", "rows": 53, "note": None, "metrics": {"macro_f1": _interval(0.34)}} | theirs,
        {"column": "words in the text", "value": "over 9", "rows": 4, "note": "too small to judge: 4 rows",
         "metrics": {"macro_f1": _interval(0.1)}, "champion": None, "change": None, "p_worse": None},
        {"column": "by", "value": "empty", "rows": 1, "note": "no score", "metrics": {}, "champion": None,
         "change": None, "p_worse": None},
    ]  # fmt: skip
    tone["robustness"] = {"dropped_words": {"value": _interval(0.6), "change": _interval(-0.052), "rows": 200}}
    example = {"texts": ["it is fine", EVIL], "expected": "the same", "answered": "bad"}
    tone["behaviour"] = [
        {"name": "names", "type": "invariance", "cases": 8, "failed": 2, "examples": [example]},
        {"name": "praise", "type": "minimum", "cases": 3, "failed": 0, "examples": []},
        {"name": "all wrong", "type": "minimum", "cases": 1, "failed": 1, "examples": []},
    ]
    alike = {a: {b: 0.4 for b in found["tasks"] if b != a} for a in found["tasks"]}
    found["affinity"] = {"measure": "linear CKA, unbiased", "rows": 250, "tasks": alike}
    tone["calibration"] |= {"temperature": 1.377, "ece_before": 0.101, "ece_after": 0.054, "thresholds": 0.625}
    moved = {"part": "22 to 24", "reference": 0.0721, "current": 0.2531}
    drifted = {"kind": "input", "verdict": "drifted", "score": 2.25, "p_adjusted": 0.001, "rows": 889,
               "reference_rows": 2656, "drifted": ["text.words"],
               "columns": {"text.words": {"moved": moved}}}  # fmt: skip
    unknown = drifted | {"kind": "label", "verdict": "insufficient data", "score": None, "p_adjusted": None,
                         "drifted": [], "columns": {}}  # fmt: skip
    tone["drift"] = {"train": [drifted, unknown], "reference": []}
    champion = {"bundle_id": "feedfacefeedface", "url": "registry", "removed": ["gone"]}
    twins = {"mode": "always", "said": "measured: each task was also trained alone"}
    return found | {"champion": champion, "gate": {"alpha": 0.05}, "twins": twins}


def _decision() -> dict[str, Any]:
    tasks = {
        "tone": {"verdict": "PROMOTE", "reasons": ["tone: reaches its floor."]},
        "stars": {"verdict": "REJECT", "reasons": [f"stars: below its floor {EVIL}."]},
    }
    return {"schema_version": 1, "verdict": "REJECT", "reasons": ["stars: below its floor."], "tasks": tasks}


def _check(name: str, *, passed: bool, severity: str = "error", **more: Any) -> dict[str, Any]:
    return {
        "name": name, "task": "tone", "split": "train", "severity": severity, "passed": passed, "observed": "3 rows",
        "expected": "0 rows", "failing_rows": (), "message": f"message of {name}.",
    } | more  # fmt: skip


def _validation() -> dict[str, Any]:
    checks = [
        _check("fine", passed=True),
        _check("rare_class", passed=False, severity="warning"),
        _check("labels_in_classes", passed=False, failing_rows=("row-1", "row-2"), observed=EVIL),
        _check("leakage", passed=True, task=None, split=None),
    ]
    return {"schema_version": 1, "passed": False, "checks": checks, "data": {"suite": "s", "tasks": {"tone": {"n": 1}}}}


def _training() -> dict[str, Any]:
    epochs = [{"epoch": i, "train_loss": 1 / i, "macro_f1": 0.5 + i / 20} for i in range(1, 6)]
    return {
        "schema_version": 1, "device": "cpu", "seconds": 203.4, "rows_per_second": 166.2,
        "parameters": {"trunk": 22_713_216, "per_task": {"tone": 60_123}},
        "tasks": {"tone": {"primary": "macro_f1", "epochs": epochs, "best_epoch": 4, "best_value": 0.7}},
    }  # fmt: skip


def _export() -> dict[str, Any]:
    files = {"model.onnx": 91_234_567, "trunk/config.json": 612, "tasks/tone/adapter.safetensors": 223_344}
    shapes = [{"rows": 1, "tokens": 3, "pairs": 4, "max_error": 1e-6}]
    return {
        "schema_version": 1, "parity": {"max_error": 4.6e-6, "tolerance": 1e-4, "shapes": shapes}, "opset": 20,
        "files": files, "bytes": sum(files.values()), "latency_ms": {"batch_1": 21.2, "batch_8": 160.0}, "nodes": 912,
        "bundle": {"path": "models/candidate", "id": "abc", "bytes": sum(files.values())},
    }  # fmt: skip


REPORTS = {
    "validation": _validation(),
    "training": _training(),
    "evaluation": _evaluation(),
    "compared": everything(),
    "decision": _decision(),
    "export": _export(),
    "anything": {
        "schema_version": 1,
        "rows": [{"a": 1, EVIL: EVIL}, {"a": None}],
        "nested": {"deep": [[1], {"b": []}]},
    },
}


class _Page(HTMLParser):
    """Reads a page, checks that its tags are balanced, and remembers what is in it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.attributes: list[tuple[str, str | None]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in {"meta", "link", "br"}:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, payload in REPORTS.items():
        write_report(tmp_path / f"{name}.json", payload)
    return tmp_path


@pytest.mark.parametrize("name", list(REPORTS))
def test_a_report_is_json_a_twin_and_an_entry_in_the_index(folder: Path, name: str) -> None:
    assert json.loads((folder / f"{name}.json").read_text()) == json.loads(json.dumps(REPORTS[name]))
    _Page((folder / f"{name}.html").read_text(encoding="utf-8"))
    index = _Page((folder / "index.html").read_text(encoding="utf-8"))
    assert ("href", f"{name}.html") in index.attributes


@pytest.mark.parametrize("name", [*REPORTS, "index"])
def test_a_page_needs_nothing_else_runs_nothing_and_escapes_everything(folder: Path, name: str) -> None:
    text = (folder / f"{name}.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert page.tags.keys().isdisjoint({"script", "iframe", "img", "object", "embed", "link"})
    targets = [value for key, value in page.attributes if key in {"href", "src"}]
    places = {f"#{value}" for key, value in page.attributes if key == "id"}
    assert all(target in places or (target and (folder / target).exists()) for target in targets)
    assert len(places) == sum(key == "id" for key, _ in page.attributes)
    assert "url(" not in text
    assert "//" not in text.replace("<!doctype html>", "")
    assert EVIL in page.text or EVIL not in json.dumps(REPORTS.get(name, {}), ensure_ascii=False)


@pytest.mark.parametrize("name", [*REPORTS, "index"])
def test_a_page_suits_a_phone_a_dark_room_and_a_screen_reader(folder: Path, name: str) -> None:
    text = (folder / f"{name}.html").read_text(encoding="utf-8")
    page = _Page(text)
    assert '<html lang="en">' in text
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    assert "max-width: 40rem" in text
    assert page.tags["h1"] == 1
    assert text.count('role="img"') == page.tags["svg"] == page.tags["desc"]


def test_pages_have_the_plots_that_people_look_for(folder: Path) -> None:
    plots = {name: _Page((folder / f"{name}.html").read_text(encoding="utf-8")).tags["svg"] for name in REPORTS}
    assert plots["evaluation"] == 4 + 1 + 4  # forests, one small matrix, reliability
    assert plots["training"] == 2


def test_training_shows_the_teacher_and_what_a_task_left_out(tmp_path: Path) -> None:
    apart = {"rows": 60, "teacher": 0.9, "student": 0.875, "change": -0.025, "divergence": 0.3, "agreement": 0.951}
    task = _training()["tasks"]["tone"] | {"distillation": apart, "ignored": {"train.label_smoothing": "soft by rank"}}
    write_report(tmp_path / "training.json", _training() | {"craft": {"schedule": "cosine"}, "tasks": {"tone": task}})
    text = (tmp_path / "training.html").read_text(encoding="utf-8")
    for shown in ("Beside the teacher", "0.951", "-0.025", "soft by rank", "cosine"):
        assert shown in text.replace("\N{MINUS SIGN}", "-"), shown


def test_what_was_compared_has_a_plot_for_each_question(folder: Path) -> None:
    page = _Page((folder / "compared.html").read_text(encoding="utf-8"))
    # As without: 4 forests, 1 matrix, 4 reliability; change, slices, robustness, twin, affinity, drift.
    assert page.tags["svg"] == 9 + 6


def test_the_champion_stands_in_the_forest_and_in_a_table_with_the_change() -> None:
    text = html_page(everything(), name="evaluation")
    words = _Page(text).text
    assert "bundle feedfacefeedface" in words
    assert "Macro-F1 beside the baselines: this model 0.652 (0.632 to 0.672); champion 0.550 (0.530 to 0.570)" in text
    assert "Change against the champion: tone +0.100 (+0.080 to +0.120); tags -0.200 (-0.220 to -0.180)" in text
    rows = [re.sub(r"<[^>]+>", "|", row) for row in re.findall(r"<tr>.*?</tr>", text)]
    said = {name: next(row for row in rows if f"|{name}|" in row and "|Macro-F1|" in row) for name in ("tone", "tags")}
    assert "+0.100 (+0.080 to +0.120)" in said["tone"] and "higher" in said["tone"] and "0.003" in said["tone"]
    assert "lower" in said["tags"] and "identical" in words
    assert "Not in this model: gone." in words


def test_without_a_champion_nothing_is_said_of_one() -> None:
    text = _Page(html_page(_evaluation(), name="evaluation")).text
    for words in ("champion", "By slice", "Robust to", "Drift of", "Does it behave", "Does sharing hurt"):
        assert words not in text


def test_slices_are_drawn_from_the_weakest_and_small_ones_are_marked_as_not_judged() -> None:
    text = html_page(everything(), name="evaluation")
    drawn = re.search(r'aria-label="Macro-F1 by slice: ([^"]*)"', text)
    assert drawn
    names = [part.rsplit(" 0.", 1)[0] for part in html.unescape(drawn[1]).split(", champion")[0].split("; ")]
    assert names == ["all rows 0.652 (0.632 to", "weak 0.340 (0.320 to"]
    assert "weak 0.340 (0.320 to 0.360), champion 0.310; " in drawn[1]
    assert drawn[1].endswith("over 9 words 0.100 (0.080 to 0.120), not judged")
    assert "too small to judge: 4 rows" in text and "no score" in text
    assert text.count('class="champion"') == 2


def test_calibration_behaviour_robustness_twins_and_drift_are_in_words() -> None:
    words = re.sub(r"\s+", " ", _Page(html_page(everything(), name="evaluation")).text)
    for said in (
        "Temperature 1.38: calibration error from 0.101 to 0.054.", "Decision threshold 0.625.",
        "as it is 0.652", "dropped words", "-0.052 (-0.072 to -0.032)",
        "some fail", "all pass", "none passes", "Examples that fail: 1", f"it is fine → {EVIL}",
        "Negative transfer measured: each task was also trained alone.", "-0.048 (-0.068 to -0.028)",
        "1 drifted", "1 insufficient data", "text.words", "22 to 24",
        "Drift against the training rows", "tone input 2.25; floor 1",
    ):  # fmt: skip
        assert said in words, said
    assert "against the champion's reference profile" not in words


def test_a_long_page_links_its_parts_and_a_short_one_does_not() -> None:
    assert '<a href="#by-slice">By slice</a>' in html_page(everything(), name="evaluation")
    assert 'class="parts"' not in html_page(_decision(), name="decision")


def test_a_task_has_a_page_of_its_own_that_links_nothing_else() -> None:
    page = _Page(task_page(everything(), "tone"))
    assert all(target.startswith("#") for key, target in page.attributes if key == "href" and target)
    assert "Evaluation: tone" in page.words
    assert "stars" not in page.words and "mean over tasks" not in page.words


def test_the_training_page_says_what_was_fitted_on_validation_rows() -> None:
    fitted = {"rows": 453, "temperature": 1.5, "threshold": 0.375, "log_loss": [0.75, 0.625], "notes": [f"why {EVIL}"]}
    payload = _training()
    payload["tasks"]["tone"]["calibration"] = fitted
    page = _Page(html_page(payload, name="training"))
    assert {"Calibration", "453", "1.500", "0.375", "0.750", "0.625", f"why {EVIL}"} <= set(page.words)
    assert "Calibration" not in _Page(html_page(_training(), name="training")).words


def test_limits_of_the_bundle_are_listed_and_a_broken_one_is_said_first(tmp_path: Path) -> None:
    kept = _export() | {"limits": {"passed": True, "reasons": ["2 golden rows were reproduced."]}}
    words = _Page(html_page(kept, name="export")).words
    assert "2 golden rows were reproduced." in words and "A limit is broken" not in words
    reason = "one text takes 21.2 ms here, gates.max_latency_ms allows 20."
    write_report(tmp_path / "export.json", kept | {"limits": {"passed": False, "reasons": [reason]}})
    said = _Page((tmp_path / "export.html").read_text()).text
    assert said.index("A limit is broken") < said.index("ONNX Runtime answers")
    assert f"mtlops promote refuses this bundle: {reason}" in said
    index = _Page((tmp_path / "index.html").read_text()).words
    assert "limit broken" in index and reason in index


def test_the_same_report_gives_the_same_bytes(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        write_report(tmp_path / folder / "evaluation.json", _evaluation())
    for name in ("evaluation.json", "evaluation.html", "index.html"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_not_a_number_is_refused_and_changes_no_file(tmp_path: Path) -> None:
    write_report(tmp_path / "export.json", _export())
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(tmp_path / "export.json", _export() | {"nodes": float("nan")})
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_the_index_is_in_the_order_of_the_steps_and_leaves_out_what_is_no_report(folder: Path) -> None:
    (folder / "metrics.json").write_text("{}")
    (folder / "list.json").write_text("[1]")
    write_report(folder / "plan.json", {"schema_version": 1})
    page = _Page((folder / "index.html").read_text(encoding="utf-8"))
    links = [value for key, value in page.attributes if key == "href"]
    named = [f"{n}.html" for n in ("validation", "training", "compared", "evaluation", "decision", "export")]
    assert links == [*named, "anything.html", "plan.html"]
    assert "1 of 4 checks failed: message of labels_in_classes." in page.text


def test_keys_that_no_page_knows_are_shown_all_the_same() -> None:
    page = _Page(html_page(_decision() | {"champion_age": {"days": 12}}, name="decision"))
    assert "champion age" in page.words
    assert "12" in page.words


def test_validation_shows_failures_first_then_warnings() -> None:
    text = html_page(json.loads(json.dumps(_validation())), name="validation")
    order = [text.index(f"message of {name}.</td>") if name != "labels_in_classes" else text.index("<tbody>")
             for name in ("labels_in_classes", "rare_class", "fine", "leakage")]  # fmt: skip
    assert order == sorted(order)
    assert "row-1, row-2" in text
    assert "Promises broken" in text


@pytest.mark.parametrize("checks", [[], [_check("fine", passed=True)]])
def test_validation_without_failures_says_so(checks: list[dict[str, Any]]) -> None:
    text = html_page({"schema_version": 1, "passed": True, "checks": checks}, name="validation")
    assert "Every promise is kept" in text
    assert "What needs a look" not in text


def test_a_graph_that_differs_from_pytorch_is_said_loudly() -> None:
    payload = _export() | {"parity": {"max_error": 0.1, "tolerance": 1e-4}}
    assert "ONNX Runtime differs from PyTorch" in html_page(payload, name="export")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=25, deadline=None)
@given(st.dictionaries(st.text(), _JSON, max_size=4))
def test_any_json_has_a_page(payload: dict[str, Any]) -> None:
    if page_of(payload) is None:
        _Page(html_page(payload, name="anything"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e4, 1e4), min_size=1, max_size=12), st.lists(st.integers(0, 9999), min_size=4, max_size=4))
def test_plots_hold_for_any_numbers(line: list[float], counts: list[int]) -> None:
    _Page(curves({"training": line, "validation": line[::-1]}, epochs=range(1, len(line) + 1), mark=1))
    _Page(forest(Estimate("m", line[0], min(line), max(line)), [], metric="r2", floor=line[-1]))
    _Page(confusion_matrix(["a", "b"], [counts[:2], counts[2:]]))
    _Page(changes([Estimate("m", line[0], min(line), max(line), champion=line[-1], is_faint=True)], name="change"))
    _Page(scores({"m": abs(line[0])}, name="drift", limit=1.0, limit_name="floor"))


@pytest.mark.parametrize(
    "value, words",
    [(12483, "12,483"), (0.61234, "0.612"), (4.6e-6, "4.6e-06"), (0.0, "0"), (123.456, "123.5"), (1.0, "1.000")],
)
def test_numbers_have_as_many_digits_as_a_reader_needs(value: float, words: str) -> None:
    assert number(value) == words


def test_sizes_and_durations_are_in_words() -> None:
    assert [size(n) for n in (12, 4_800, 223_344, 91_234_567, 2.5e9)] == [
        "12 B",
        "4.8 kB",
        "223 kB",
        "91.2 MB",
        "2.5 GB",
    ]
    assert [duration(s) for s in (0.42, 9.96, 59.7, 203, 7500)] == [
        "0.4 s",
        "10 s",
        "1 min 0 s",
        "3 min 23 s",
        "2 h 5 min",
    ]


def test_summary_shows_tasks_baselines_verdicts_and_places_in_100_columns(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    text = summary(Path())
    assert max(map(len, text.splitlines())) <= 100
    row = next(line for line in text.splitlines() if line.startswith("tone"))
    assert row.split() == ["tone", "1,234", "macro_f1", "0.652", "[0.632,", "0.672]", *["0.652"] * 3, "PROMOTE"]
    assert "mean of tasks" in text
    assert "0.611" in text
    for words in ("REJECT. stars: below", "3 min 23 s on cpu", "4.6e-06", "models/candidate", "91.2 MB", "index.html"):
        assert words in text


def test_summary_fits_with_the_longest_names_and_largest_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task("ordinal", "quadratic_kappa", -0.5, rows={"test": 1_234_567})
    write_report(folder / "evaluation.json", _evaluation() | {"tasks": {"a" * 63: task}})
    monkeypatch.chdir(folder)
    lines = summary(Path()).splitlines()
    assert max(map(len, lines)) <= 100
    assert any("aaaaaa…" in line for line in lines)


def test_summary_of_an_evaluation_alone_shows_what_there_is(tmp_path: Path) -> None:
    write_report(tmp_path / "evaluation.json", _evaluation())
    text = summary(tmp_path)
    assert "tone" in text
    assert "Verdict" not in text
    assert "Training" not in text


def test_summary_without_an_evaluation_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="mtlops evaluate"):
        summary(tmp_path)


def test_reports_need_the_standard_library_alone() -> None:
    code = "import mtlops.report, sys; print([m for m in ('numpy', 'pydantic', 'yaml', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
