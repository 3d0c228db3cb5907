"""The step on data that the real `prepare` made: what it reads, writes and raises."""

import csv
import json
import shutil
from pathlib import Path

import pyarrow as pa
import pytest

from mtlops.cli import main
from mtlops.data.prepared import read_manifest, read_split, write_part
from mtlops.errors import ArtefactError, DataError, PlatformError
from mtlops.files import write_json
from mtlops.params import parse_params
from mtlops.steps.prepare import prepare
from mtlops.steps.validate import Validated, validate
from tests.tiny_encoder import write_encoder

PARAMS = """
suite:
  name: tickets
  inputs: {text: message, group: customer}
  tasks:
    mood: {kind: multiclass, source: tickets.csv, label: mood, classes: [bad, fair, good]}
    urgent: {kind: binary, source: tickets.csv, label: urgent, classes: ["no", "yes"]}
    about: {kind: multilabel, source: tickets.csv, label: about, classes: [bill, bug]}
    stars: {kind: ordinal, source: tickets.csv, label: stars, classes: ["1", "2", "3"]}
    hours: {kind: regression, source: tickets.csv, label: hours, range: [0, 0.1]}
data:
  min_words: 2
  windows:
    spanish: {tasks: [mood, hours], where: {country: [es]}}
    control: {tasks: [mood, urgent], share: 0.1}
encoder: {source: encoder}
"""
ROWS = 600


def write_tickets(folder: Path, **cells: str) -> Path:
    """Writes tickets.csv, with `cells` replaced in its first row, and an encoder that nobody runs."""
    rows = [
        {
            "message": f"Ticket number {row} &amp; its text",
            "customer": str(row // 3),
            "country": "es" if row % 20 == 0 else "de",
            "mood": ("bad", "fair", "good")[row % 3],
            "urgent": ("no", "yes", "")[row % 3],
            "about": ("", "bill", "bug", "bill|bug")[row % 4],
            "stars": str(row % 3 + 1),
            "hours": str(0.1 * (row % 11) / 10),
        }
        for row in range(ROWS)
    ]
    rows[1] |= cells
    with (folder / "tickets.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    write_encoder(folder / "encoder")
    (folder / "params.yaml").write_text(PARAMS, encoding="utf-8")
    return folder


def run_prepare(folder: Path, **cells: str) -> Path:
    """Prepares tickets of which the first one has `cells`, and returns the prepared folder."""
    write_tickets(folder, **cells)
    prepare(parse_params(PARAMS), base=folder, raw=folder / "raw", out=folder / "prepared", encoder=folder / "trunk")
    return folder / "prepared"


@pytest.fixture(scope="module")
def params():
    return parse_params(PARAMS)


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    return run_prepare(tmp_path_factory.mktemp("tickets"))


@pytest.fixture
def copy(good, tmp_path):
    return Path(shutil.copytree(good, tmp_path / "prepared"))


def replace_split(folder, params, task, table):
    """Writes another train split of a task, with the manifest that belongs to it."""
    manifest = read_manifest(folder)
    (definition,) = [found for found in params.tasks() if found.name == task]
    part = write_part(folder, f"{task}/train.parquet", table, task=definition)
    manifest["tasks"][task]["splits"]["train"] = part
    write_json(folder / "manifest.json", manifest)


def read_report(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_data_that_prepare_made_keep_every_promise(params, good, tmp_path):
    report = tmp_path / "reports" / "validation.json"
    result = validate(params, prepared=good, report=report)
    content = read_report(report)
    failed = [check["message"] for check in content["checks"] if not check["passed"]]
    assert [message for message in failed if "useful row count" not in message] == []
    assert result == Validated(True, len(content["checks"]), len(failed), str(report))
    assert content["schema_version"] == 1 and content["passed"] is True
    assert {check["task"] for check in content["checks"]} == {None, "mood", "urgent", "about", "stars", "hours"}
    splits = {check["split"] for check in content["checks"]}
    assert splits == {None, "train", "valid", "test", "windows/spanish", "windows/control"}
    assert set(content["data"]["tasks"]["hours"]["parts"]) == {"train", "valid", "test", "windows/spanish"}
    assert report.with_suffix(".html").exists()


def test_same_data_give_the_same_bytes(params, good, tmp_path):
    reports = [tmp_path / name / "validation.json" for name in "ab"]
    for report in reports:
        validate(params.only(["stars"]), prepared=good, report=report)
    assert reports[0].read_bytes() == reports[1].read_bytes()
    assert reports[0].with_suffix(".html").read_bytes() == reports[1].with_suffix(".html").read_bytes()


def test_some_tasks_alone_are_checked_alone(params, good, tmp_path):
    report = tmp_path / "validation.json"
    validate(params.only(["stars"]), prepared=good, report=report)
    assert {check["task"] for check in read_report(report)["checks"]} == {None, "stars"}


@pytest.mark.parametrize(
    "cells, check, said",
    [
        ({"about": "bill|refund"}, "label_in_classes", "'refund'; expected any of bill, bug."),
        ({"stars": "4"}, "label_in_classes", "'4'; expected one of 1, 2, 3."),
        ({"hours": "0.5"}, "label_in_range", "0.5; expected a number from 0 to 0.1."),
    ],
)
def test_bad_label_in_a_source_is_reported_and_then_raised(params, tmp_path, cells, check, said):
    prepared, report = run_prepare(tmp_path, **cells), tmp_path / "validation.json"
    (task,) = cells
    with pytest.raises(DataError) as error:
        validate(params.only([task]), prepared=prepared, report=report)
    content = read_report(report)
    broken = [c for c in content["checks"] if not c["passed"] and c["severity"] == "error"]
    assert not content["passed"]
    assert [(c["name"], c["task"], len(c["failing_rows"])) for c in broken] == [(check, task, 1)]
    assert said in broken[0]["message"]
    assert str(error.value) == f"{broken[0]['message']} More in {report}."


def test_command_exits_3_with_one_line_and_writes_the_report(tmp_path, capfd):
    prepared, report = run_prepare(tmp_path, stars="4"), tmp_path / "validation.json"
    options = ["--params", str(tmp_path / "params.yaml"), "--prepared", str(prepared), "--report", str(report)]
    assert main(["validate", "--quiet", "--tasks", "stars", *options]) == 3
    out, err = capfd.readouterr()
    errors = [line for line in err.splitlines() if "error" in line]
    assert len(errors) == 1 and "label in classes" in errors[0] and "Traceback" not in err
    assert out == ""
    assert report.exists()


def test_leak_between_tasks_is_raised(params, copy, tmp_path):
    stranger = read_split(copy, "stars", "test").slice(0, 1).set_column(2, "label", [[["bug"]]])
    replace_split(copy, params, "about", pa.concat_tables([read_split(copy, "about", "train"), stranger]))
    with pytest.raises(DataError, match=r"^about/train: shared texts: 1 in about/test, .* broken promises, all in"):
        validate(params.only(["about", "stars"]), prepared=copy, report=tmp_path / "validation.json")


def test_classes_in_another_order_than_prepared_are_raised(good, tmp_path):
    other = parse_params(PARAMS.replace('["1", "2", "3"]', '["2", "1", "3"]'))
    with pytest.raises(DataError, match=r"^stars: label space: .* prepared as ordinal of 1, 2, 3;"):
        validate(other.only(["stars"]), prepared=good, report=tmp_path / "validation.json")


def test_data_prepared_with_another_normalisation_are_raised(params, copy, tmp_path):
    manifest = read_manifest(copy)
    manifest["fingerprint"]["normalisation"] = "0123456789abcdef"
    write_json(copy / "manifest.json", manifest)
    with pytest.raises(DataError, match=r"^suite: normalisation: .* Run `mtlops prepare` again\."):
        validate(params.only(["stars"]), prepared=copy, report=tmp_path / "validation.json")


def test_missing_column_is_raised_without_a_crash(params, copy, tmp_path):
    replace_split(copy, params, "stars", read_split(copy, "stars", "train").drop_columns(["group", "source"]))
    with pytest.raises(DataError, match=r"^stars/train: columns: 2 wrong columns of 6, group missing, source missing;"):
        validate(params.only(["stars"]), prepared=copy, report=tmp_path / "validation.json")


def test_one_flipped_byte_is_an_artefact_error_and_leaves_the_last_report(params, copy, tmp_path):
    report = tmp_path / "validation.json"
    validate(params.only(["stars"]), prepared=copy, report=report)
    before = report.read_bytes()
    path = copy / "stars" / "train.parquet"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match="differs from its sha256"):
        validate(params.only(["stars"]), prepared=copy, report=report)
    assert report.read_bytes() == before


def test_nothing_prepared_is_an_artefact_error(params, tmp_path):
    with pytest.raises(ArtefactError, match="Run `mtlops prepare`"):
        validate(params, prepared=tmp_path, report=tmp_path / "validation.json")


@pytest.mark.parametrize("line", ["    bored: {kind: regression, source: tickets.csv, label: hours}\n", ""])
def test_task_or_window_that_was_not_prepared_is_an_artefact_error(good, tmp_path, line):
    window = "" if line else "    french: {tasks: [mood], where: {country: [fr]}}\n"
    text = PARAMS.replace("data:\n", f"{line}data:\n").replace("  windows:\n", f"  windows:\n{window}")
    with pytest.raises(ArtefactError, match=r"(bored|french)'.* Run `mtlops prepare` with this params\.yaml"):
        validate(
            parse_params(text).only(["mood", *(["bored"] if line else [])]),
            prepared=good,
            report=tmp_path / "validation.json",
        )


def test_report_that_cannot_be_written_is_a_platform_error(params, good, tmp_path):
    (tmp_path / "reports").write_text("a file where a folder should be", encoding="utf-8")
    with pytest.raises(PlatformError, match="cannot be written"):
        validate(params.only(["stars"]), prepared=good, report=tmp_path / "reports" / "validation.json")
