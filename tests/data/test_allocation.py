import datetime as dt
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlops.data.allocation import NOWHERE, allocate, without_conflicts
from mtlops.data.prepared import SPLITS
from mtlops.data.rows import Rows, read_rows
from mtlops.data.sources import Source
from mtlops.errors import DataError, UsageError
from mtlops.params import Inputs, Params, parse_params

PARAMS = parse_params("""
suite:
  name: s
  inputs: {group: who, timestamp: when, split: part}
  tasks:
    one: {kind: binary, source: a.csv, label: one, classes: [x, y]}
    two: {kind: multiclass, source: a.csv, label: two, classes: [x, y, z]}
    three: {kind: binary, source: b.csv, label: three, classes: [x, y]}
""")
COLUMNS = ("text", "who", "when", "part", "domain", "one", "two")
TEXTS = st.sampled_from(["Good day!", "good day", "bad", "Bad...", "so so", "fine", "ok ok", "what?", "no", "yes"])
ROW = st.tuples(
    TEXTS | st.text("ab ", min_size=1, max_size=4).filter(str.strip),
    st.sampled_from([None, "p", "q", "r", "s", "t"]),
    st.none() | st.integers(0, 30).map(lambda day: dt.datetime(2024, 1, 1 + day, tzinfo=dt.UTC)),
    st.sampled_from([None, None, *SPLITS]),
    st.sampled_from(["shop", "news", None]),
    st.sampled_from([None, "x", "y"]),
    st.sampled_from([None, "x", "y", "z"]),
)
WINDOWS = st.dictionaries(
    st.sampled_from(["w", "v", "u"]),
    st.fixed_dictionaries({
        "tasks": st.lists(st.sampled_from(["one", "two", "three"]), min_size=1, unique=True),
        "rule": st.sampled_from([
            {"where": {"domain": ["news"]}}, {"after": "2024-01-20T00:00:00Z"}, {"share": 0.3}, {"share": 0.9},
        ]),
    }),
)  # fmt: skip


def source(name, rows):
    columns = {column: [row[i] for row in rows] for i, column in enumerate(COLUMNS)}
    tasks = ("one", "two") if name == "a.csv" else ("three",)
    columns["three"] = columns["one"]
    return Source(
        name=name, where=name, sha256="0" * 64, tasks=tasks, columns=columns, lines=range(1, len(rows) + 1),
        inputs=Inputs(group="who", timestamp="when", split="part"), unit="row", slices=("domain",),
    )  # fmt: skip


def with_windows(windows, **data) -> Params:
    value = PARAMS.model_dump()
    value["data"] |= data | {
        "windows": {name: {"tasks": window["tasks"], **window["rule"]} for name, window in windows.items()}
    }
    return Params.model_validate(value)


def rows_of(*tables) -> Rows:
    return read_rows(PARAMS, [source(name, rows) for name, rows in zip(("a.csv", "b.csv"), tables, strict=False)])


@settings(max_examples=150)
@given(st.lists(ROW, min_size=1, max_size=40), st.lists(ROW, min_size=1, max_size=20), WINDOWS, st.integers(0, 9))
def test_no_text_and_no_group_is_on_two_sides(one, two, windows, seed):
    rows = without_conflicts(rows_of(one, two))
    params = with_windows(windows, seed=seed)
    try:
        found = allocate(params, rows)
    except DataError:  # a window that takes no row: nothing is allocated
        return
    by_text, by_group = defaultdict(set), defaultdict(set)
    controls = {name for name, window in params.data.windows.items() if window.share is not None}
    for row in range(len(rows)):
        sides = {SPLITS[found.splits[row]]} if found.splits[row] != NOWHERE else set()
        taken = {name for name, mask in found.windows.items() if mask[row]}
        assert not (sides and taken)
        assert len(taken & controls) <= 1
        by_text[rows.keys[row]] |= sides | ({"a rule"} if taken - controls else taken & controls)
        by_group[rows.groups[row]] |= sides | (taken & controls)
    by_group.pop(None, None)
    assert all(len(sides) <= 1 for sides in by_text.values())
    assert all(len(sides) <= 1 for sides in by_group.values())


@given(st.lists(ROW, min_size=1, max_size=40), WINDOWS)
def test_every_labelled_row_is_somewhere_or_counted(one, windows):
    rows = without_conflicts(rows_of(one, [("z", *[None] * 6)]))
    try:
        found = allocate(with_windows(windows), rows)
    except DataError:  # a window that takes no row: nothing is allocated
        return
    somewhere = (found.splits != NOWHERE) | np.any([np.zeros(len(rows), dtype=bool), *found.windows.values()], axis=0)
    assert somewhere.sum() + found.left_out.total() == rows.has_label(["one", "two", "three"]).sum()


@given(st.lists(ROW, min_size=1, max_size=30), st.randoms())
def test_the_order_of_rows_does_not_matter(one, random):
    shuffled = random.sample(range(len(one)), len(one))
    ordered = allocate(PARAMS, rows_of(one)).splits
    mixed = allocate(PARAMS, rows_of([one[row] for row in shuffled])).splits
    assert mixed.tolist() == ordered[shuffled].tolist()


def table(*rows):
    """Rows of (text, group, domain, label one, label two)."""
    return [(text, who, None, None, domain, one, two) for text, who, domain, one, two in rows]


def test_conflicting_labels_leave_that_task_only():
    rows = without_conflicts(rows_of(table(("a b", 1, None, "x", "z"), ("a  b", 2, None, "y", "z"))))
    assert rows.labels["one"] == [None, None]
    assert rows.labels["two"] == ["z", "z"]
    assert [(row.task, row.reason, row.detail) for row in rows.set_aside] == [
        ("one", "conflicting labels", "'x' here, another label elsewhere"),
        ("one", "conflicting labels", "'y' here, another label elsewhere"),
    ]


def test_a_window_takes_its_rows_and_the_same_texts_leave_training():
    many = [(f"text {n}", None, "shop", "x", None) for n in range(50)]
    rows = rows_of(table(*many, ("Breaking: rain!", 1, "news", "x", None), ("breaking rain", 2, "shop", "x", None)))
    found = allocate(with_windows({"w": {"tasks": ["one"], "rule": {"where": {"domain": ["news"]}}}}), rows)
    assert np.flatnonzero(found.windows["w"]).tolist() == [50]
    assert np.flatnonzero(found.splits == NOWHERE).tolist() == [50, 51]
    assert found.left_out["text is also in a window"] == 1


def test_a_control_takes_whole_groups_and_what_else_is_in_them():
    many = table(*((f"text {n}", n // 2, None, "x" if n % 2 else None, "z") for n in range(200)))
    found = allocate(with_windows({"w": {"tasks": ["one"], "rule": {"share": 0.2}}}), rows_of(many))
    taken = np.flatnonzero(found.windows["w"])
    assert 10 <= len(taken) <= 30
    assert (taken % 2 == 1).all()
    assert (found.splits[taken - 1] == NOWHERE).all()
    assert found.left_out["belongs to rows of a control window"] == len(taken)


@pytest.mark.parametrize(
    "rule, message",
    [
        ({"where": {"domian": ["news"]}}, r"w\.where: a\.csv has no column 'domian'\. Did you mean 'domain'\?"),
        ({"where": {"domain": ["nwes"]}}, r"takes no row\. No row has 'nwes' in 'domain'\. Did you mean 'news'"),
        ({"after": "2030-01-01T00:00:00Z"}, r"data\.windows\.w: takes no row\. No row is as new as `after`"),
    ],
)  # fmt: skip
def test_a_window_that_takes_nothing_is_a_data_error(rule, message):
    rows = rows_of(table(("a b", None, "news", "x", None)))
    with pytest.raises(DataError, match=message):
        allocate(with_windows({"w": {"tasks": ["one"], "rule": rule}}), rows)


def test_a_window_by_time_needs_a_timestamp():
    rows = rows_of(table(("a b", None, "news", "x", None)))
    rows.sources[0].inputs.__dict__["timestamp"] = None
    with pytest.raises(UsageError, match=r"data\.windows\.w\.after: a\.csv has no timestamp"):
        allocate(with_windows({"w": {"tasks": ["one"], "rule": {"after": "2024-01-01T00:00:00Z"}}}), rows)
