"""Behavioural checks are read strictly: what cannot be meant is an error with its line."""

from pathlib import Path

import pytest

from mtlops.data.checks import (
    Directional,
    Invariance,
    Minimum,
    check_files,
    read_behaviour,
    read_checks,
    write_behaviour,
)
from mtlops.errors import ArtefactError, DataError
from mtlops.params import read_params
from mtlops.tasks import Task

TASKS = (
    Task("mood", "binary", ("bad", "good")),
    Task("stars", "regression", range=(1, 5)),
    Task("about", "multilabel", ("price", "parts")),
    Task("grade", "ordinal", ("1", "2", "3")),
)
GOOD = """
- {name: praise, task: mood, type: minimum, label: good, cases: [it is good, it is great]}
- name: names
  task: mood
  type: invariance
  cases:
    - [Ann is here, Bob is here]
- {name: no, task: mood, type: directional, class: good, direction: fall, delta: 0.1, cases: [[a good one, none]]}
- {name: five, task: stars, type: minimum, label: 5, tolerance: 0.5, cases: [perfect]}
- {name: both, task: about, type: minimum, label: [price, parts], cases: [the price of parts]}
- {name: first, task: grade, type: minimum, label: 1, cases: [first]}
"""


def _write(folder: Path, text: str, name: str = "checks.yaml") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_each_type_is_read(tmp_path: Path) -> None:
    checks = read_checks(_write(tmp_path, GOOD), tasks=TASKS)
    assert [type(check) for check in checks] == [Minimum, Invariance, Directional, Minimum, Minimum, Minimum]
    assert checks[1].cases == [("Ann is here", "Bob is here")]
    assert [check.classes for check in checks if isinstance(check, Minimum)] == [
        ("good",), ("5",), ("price", "parts"), ("1",),
    ]  # fmt: skip


def test_json_lines_say_the_same(tmp_path: Path) -> None:
    line = '{"name": "praise", "task": "mood", "type": "minimum", "label": "good", "cases": ["it is good"]}\n'
    (check,) = read_checks(_write(tmp_path, f"\n{line}", "checks.jsonl"), tasks=TASKS)
    assert check == Minimum(name="praise", task="mood", type="minimum", label="good", cases=["it is good"])
    with pytest.raises(DataError, match=r"checks.jsonl:3: is not JSON"):
        read_checks(_write(tmp_path, f"{line}\n{{]\n", "checks.jsonl"), tasks=TASKS)


HEAD = "- name: n\n  task: mood\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mood: 1\n", "checks.yaml: must hold a list of checks"),
        ("- [\n", "checks.yaml:2: "),
        ("- name: n\n  name: m\n", "checks.yaml:2: 'name' is given twice"),
        ("- just words\n", "checks.yaml:1: "),
        (HEAD, "checks.yaml:1: type: is required: invariance, directional or minimum"),
        (HEAD + "  type: minimal\n", "checks.yaml:1: type: unknown choice 'minimal'"),
        (HEAD + "  type: minimum\n  cases: [a]\n", "checks.yaml:1: label: is required"),
        (HEAD + "  type: minimum\n  labels: good\n  label: good\n  cases: [a]\n",
         "checks.yaml:4: labels: unknown key. Did you mean 'label'"),
        (HEAD + "  type: minimum\n  label: good\n  cases: []\n", "checks.yaml:5: cases: list should have at least 1"),
        (HEAD + "  type: minimum\n  label: good\n  cases:\n    - a\n    - ' '\n",
         "checks.yaml:7: cases.1: must not be blank"),
        (HEAD + "  type: invariance\n  cases:\n    - [a, b]\n    - [a, b, c]\n", "checks.yaml:6: cases.1: "),
        (HEAD + "  type: invariance\n  tolerance: -1\n  cases: [[a, b]]\n", "checks.yaml:4: tolerance: "),
        (HEAD + "  type: minimum\n  label: god\n  cases: [a]\n",
         "checks.yaml:1: label: 'god' is no class of mood. Did you mean 'good'"),
        (HEAD + "  type: minimum\n  label: [good]\n  cases: [a]\n", "checks.yaml:1: label: must be one class"),
        (HEAD + "  type: minimum\n  label: good\n  tolerance: 1\n  cases: [a]\n", "tolerance: is for a regression"),
        (HEAD + "  type: directional\n  direction: rise\n  cases: [[a, b]]\n", "checks.yaml:1: class: is required"),
        (HEAD + "  type: directional\n  class: fine\n  direction: rise\n  cases: [[a, b]]\n",
         "class: 'fine' is no class"),
        (HEAD.replace("mood", "mod") + "  type: invariance\n  cases: [[a, b]]\n",
         "checks.yaml:1: task: no task 'mod' in suite.tasks. Did you mean 'mood'"),
        (HEAD.replace("mood", "stars") + "  type: invariance\n  cases: [[a, b]]\n",
         "tolerance: is required for a regression"),
        (HEAD.replace("mood", "stars") + "  type: minimum\n  label: high\n  cases: [a]\n", "label: must be a number"),
        (HEAD.replace("mood", "about") + "  type: minimum\n  label: price\n  cases: [a]\n",
         "must be the list of all classes"),
        ((HEAD + "  type: invariance\n  cases: [[a, b]]\n") * 2,
         "checks.yaml:5: name: task 'mood' has a check 'n' in line 1"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        read_checks(_write(tmp_path, text), tasks=TASKS)
    assert message in str(error.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    bad = "- {name: a, task: mood, type: minimum, label: x, cases: [a]}\n- {name: b, task: nope, type: minimum}\n"
    with pytest.raises(DataError) as error:
        read_checks(_write(tmp_path, bad), tasks=TASKS)
    assert [line.split("checks.yaml:")[1][0] for line in str(error.value).splitlines()] == ["1", "2", "2"]


def test_checks_of_a_task_that_was_left_out_are_passed_over(tmp_path: Path) -> None:
    checks = read_checks(_write(tmp_path, GOOD), tasks=TASKS[:1], left_out=["stars", "about", "grade"])
    assert {check.task for check in checks} == {"mood"}


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nowhere.yaml: not found. Put the file there, or correct data.behaviour"):
        read_checks(tmp_path / "nowhere.yaml", tasks=TASKS)


def test_the_default_suite_s_checks_fit_its_tasks() -> None:
    params = read_params(Path(__file__).parents[2] / "params.yaml")
    (path,) = check_files(params.data.behaviour, base=Path("nowhere")).values()
    checks = read_checks(path, tasks=params.tasks())
    assert {check.task for check in checks} == set(params.suite.tasks)
    assert {check.type for check in checks} == {"minimum", "invariance", "directional"}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    path = _write(tmp_path, GOOD)
    checks = read_checks(path, tasks=TASKS)
    write_behaviour(tmp_path, checks, files={"checks.yaml": path})
    assert read_behaviour(tmp_path, files=["checks.yaml"]) == checks
    assert read_behaviour(tmp_path, files=[]) == []


def test_a_folder_prepared_with_other_checks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="behaviour.json: not found. Run `mtlops prepare` first"):
        read_behaviour(tmp_path, files=["checks.yaml"])
    path = _write(tmp_path, GOOD)
    write_behaviour(tmp_path, read_checks(path, tasks=TASKS), files={"checks.yaml": path})
    with pytest.raises(ArtefactError, match="was made from other files than"):
        read_behaviour(tmp_path, files=["others.yaml"])
    written = tmp_path / "behaviour.json"
    written.write_text(written.read_text().replace('"minimum"', '"maximum"'), encoding="utf-8")
    with pytest.raises(ArtefactError, match="is damaged"):
        read_behaviour(tmp_path, files=["checks.yaml"])
