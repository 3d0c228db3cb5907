import datetime as dt
import json

import pytest

from mtlops.data.rows import NO_TIME, read_rows
from mtlops.data.sources import load_sources
from mtlops.errors import DataError, UsageError
from mtlops.params import Params, parse_params

PARAMS = """
suite:
  name: s
  inputs: {text: text, group: who, timestamp: when, split: part}
  tasks:
    mood: {kind: binary, source: a.csv, label: mood, classes: [bad, good]}
    stars: {kind: regression, source: a.csv, label: stars}
data: {min_words: 2}
"""
HEADER = "text,who,when,part,mood,stars\n"


def read(tmp_path, rows, *, overrides=(), text=PARAMS):
    (tmp_path / "a.csv").write_text(HEADER + rows, encoding="utf-8")
    params = parse_params(text, overrides=overrides)
    return read_rows(params, load_sources(params, base=tmp_path, raw=tmp_path))


def test_cells_become_texts_groups_times_splits_and_labels(tmp_path):
    rows = read(tmp_path, "so  &amp; so,7,2024-05-31T12:00:00+02:00,test,good,\nit is bad,,,,,1.5\n")
    assert rows.texts == ["so & so", "it is bad"]
    assert rows.groups == ["a.csv:7", None]
    assert rows.times.tolist() == [1717149600000000, NO_TIME]
    assert rows.splits == ["test", None]
    assert rows.labels == {"mood": ["good", None], "stars": [None, 1.5]}
    assert [len(name) for name in rows.ids] == [32, 32]
    assert rows.has_label(["mood"]).tolist() == [True, False]
    assert rows.has_label(["mood", "stars"]).all()


@pytest.mark.parametrize(
    "cell, seconds",
    [("2024-01-01", 1704067200), ("2024-01-01 00:00:01", 1704067201), ("2024-01-01T00:00:02Z", 1704067202)],
)
def test_times_without_a_zone_are_utc(tmp_path, cell, seconds):
    assert read(tmp_path, f"two words,,{cell},,good,\n").times.tolist() == [seconds * 1_000_000]


BAD_ROWS = [
    ("two words,,yesterday,,good,", "column 'when' holds 'yesterday', not an ISO 8601 time"),
    ("two words,,,tset,good,", "column 'part' holds 'tset'. Did you mean 'test'?"),
    ("two words,,,,good,many", "column 'stars' holds 'many', not a number"),
    ("two words,,,,good", "has 5 cells, the header has 6"),
]


@pytest.mark.parametrize("row, reason", BAD_ROWS)
def test_a_bad_row_fails_with_line_and_reason(tmp_path, row, reason):
    with pytest.raises(DataError) as caught:
        read(tmp_path, f"one two,,,,good,1\n{row}\n")
    assert str(caught.value).startswith(f"{tmp_path / 'a.csv'}: line 3: {reason}")
    assert "data.bad_rows: quarantine" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bad_rows_are_set_aside_in_quarantine_with_short_ones(tmp_path):
    lines = "".join(f"{row}\n" for row, _ in BAD_ROWS)
    rows = read(tmp_path, f"one two,,,,good,1\nshort,,,,bad,\n{lines}", overrides=["data.bad_rows=quarantine"])
    assert rows.texts == ["one two"]
    assert [(row.line, row.reason) for row in rows.set_aside] == [
        (3, "too few words"), (4, "bad row"), (5, "bad row"), (6, "bad row"), (7, "bad row"),
    ]  # fmt: skip
    assert [row.detail.startswith(reason) for row, (_, reason) in zip(rows.set_aside[1:], BAD_ROWS, strict=True)]
    assert rows.set_aside[0].text == "short"


def test_a_source_without_a_usable_row_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match=r"none of its 2 rows is usable: 0 cannot be read, 2 have fewer than 2 words"):
        read(tmp_path, "short,,,,bad,\n,,,,good,\n")


@pytest.mark.parametrize(
    "override, message",
    [
        ("suite.inputs.text=txet", r"no column 'txet', which suite\.inputs\.text names\. Did you mean 'text'\?"),
        ("suite.inputs.group=how", r"no column 'how', which suite\.inputs\.group names\. Did you mean 'who'\?"),
        (
            "suite.tasks.mood.label=mod",
            r"no column 'mod', which suite\.tasks\.mood\.label names\. Did you mean ",
        ),
        ("suite.tasks.mood.source=b.csv", r"b\.csv: not found"),
    ],
)
def test_a_missing_column_or_file_is_a_data_error(tmp_path, override, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, "one two,,,,good,1\n", overrides=[override])


def test_a_table_separated_by_semicolons_is_told_so(tmp_path):
    (tmp_path / "b.csv").write_text("text;mood\none two;good\n", encoding="utf-8")
    with pytest.raises(DataError, match="looks separated by semicolons or tabs"):
        read(tmp_path, "one two,,,,good,1\n", overrides=["suite.tasks.mood.source=b.csv"])


@pytest.mark.parametrize("source", ["newsgroup", "a.xlsx", "a"])
def test_a_source_that_is_neither_built_in_nor_a_known_file_is_a_usage_error(tmp_path, source):
    with pytest.raises(UsageError, match=f"suite.tasks.mood.source: {source!r} is no built-in data set"):
        read(tmp_path, "one two,,,,good,1\n", overrides=[f"suite.tasks.mood.source={source}"])


def test_tasks_share_a_source_unless_their_inputs_differ(tmp_path):
    (tmp_path / "a.csv").write_text(HEADER + "one two,,,,good,1\n", encoding="utf-8")
    params = parse_params(PARAMS)
    assert [source.tasks for source in load_sources(params, base=tmp_path, raw=tmp_path)] == [("mood", "stars")]
    value = params.model_dump()
    value["suite"]["tasks"]["stars"]["inputs"] = {"text": "text"}
    sources = load_sources(Params.model_validate(value), base=tmp_path, raw=tmp_path)
    assert [source.tasks for source in sources] == [("mood",), ("stars",)]
    assert sources[0].slices == ()
    assert sources[1].slices == ("who", "when", "part")


def test_json_and_parquet_cells_of_the_wrong_type_are_bad_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "one two", "mood": "good"}\n{"text": 5, "mood": "bad"}\n{"text": "one two", "mood": ["bad"]}\n'
        '{"text": "three four", "mood": "bad", "who": {"id": 1}}\n{"text": "five six", "mood": "bad", "when": 3}\n',
        encoding="utf-8",
    )
    text = PARAMS.replace("a.csv", "a.jsonl").replace(", split: part", "").replace("label: stars", "label: mood")
    text = text.replace("    stars: {kind: regression, source: a.jsonl, label: mood}\n", "")
    params = parse_params(text, overrides=["data.bad_rows=quarantine"])
    rows = read_rows(params, load_sources(params, base=tmp_path, raw=tmp_path))
    assert [row.detail for row in rows.set_aside] == [
        "column 'text' holds a int, not text",
        "column 'mood' holds ['bad'], not one class",
        "column 'who' holds a dict, not a name or number",
        "column 'when' holds a int, not a time",
    ]


def test_dates_of_parquet_are_times(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table({
        "text": ["one two", "three four"], "mood": ["good", "bad"],
        "when": [dt.date(1970, 1, 2), None], "who": [1.0, 2.5],
    })  # fmt: skip
    pq.write_table(table, tmp_path / "a.parquet")
    text = PARAMS.replace("a.csv", "a.parquet").replace(", split: part", "")
    text = text.replace("    stars: {kind: regression, source: a.parquet, label: stars}\n", "")
    params = parse_params(text)
    rows = read_rows(params, load_sources(params, base=tmp_path, raw=tmp_path))
    assert rows.times.tolist() == [86_400_000_000, NO_TIME]
    assert rows.groups == ["a.parquet:1", "a.parquet:2.5"]


TAGGING = """
suite:
  name: s
  inputs: {text: tokens}
  tasks:
    names: {kind: tagging, source: a.jsonl, label: tags, classes: [O, B-x, I-x]}
    mood: {kind: binary, source: a.jsonl, label: mood, classes: [bad, good]}
data: {bad_rows: quarantine}
"""


def read_tagged(tmp_path, *rows):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = parse_params(TAGGING)
    return read_rows(params, load_sources(params, base=tmp_path, raw=tmp_path))


def test_words_become_one_text_for_all_tasks_and_tags_stay_with_them(tmp_path):
    rows = read_tagged(
        tmp_path,
        {"tokens": ["R&amp;D", "of", "Café"], "tags": ["B-x", "O", 1], "mood": "good"},
        {"tokens": "a plain  text", "tags": ["O", "B-x", "I-x"]},
        {"tokens": ["no", "tags"], "mood": "bad"},
    )
    assert rows.texts == ["R&D of Café", "a plain text", "no tags"]
    assert rows.labels["names"] == [("B-x", "O", "B-x"), ("O", "B-x", "I-x"), None]
    assert rows.labels["mood"] == ["good", None, "bad"]


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"tokens": ["a", "b"], "tags": ["O"]}, "task names: 1 tags for 2 words"),
        ({"tokens": ["a", " "], "tags": ["O", "O"]}, "column 'tokens' holds a list whose word 2 is blank"),
        ({"tokens": ["a", "new york"], "tags": ["O", "O"]}, "column 'tokens' holds a list whose word 2 is"),
        ({"tokens": ["a", 3], "tags": ["O", "O"]}, "column 'tokens' holds a list whose word 2 is"),
        ({"tokens": ["a", "\ufeff"], "tags": ["O", "O"]}, "column 'tokens' holds a list whose word 2 is"),
        ({"tokens": ["a"], "tags": "O"}, "column 'tags' holds 'O', not a list with one tag for each word"),
    ],
)
def test_rows_whose_words_and_tags_do_not_fit_are_set_aside(tmp_path, row, reason):
    rows = read_tagged(tmp_path, {"tokens": ["fine"], "tags": ["O"], "mood": "good"}, row)
    assert len(rows) == 1 and [found.detail.startswith(reason) for found in rows.set_aside] == [True]
