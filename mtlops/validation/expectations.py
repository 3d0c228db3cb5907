"""The promises about one split, generated from the definition of its task.

Nothing here knows a task or a kind by name: what is promised follows from the task's classes and range.
"""

import great_expectations.expectations as gxe
import numpy as np

from mtlops.tasks import Task
from mtlops.validation.checks import Wording
from mtlops.validation.engine import Promise

LEAST_ROWS = {"train": 10, "valid": 2, "test": 2}
"""With fewer rows a split cannot serve its purpose at all."""

USEFUL_ROWS = {"train": 200, "valid": 50, "test": 100}
"""With fewer rows training is luck and intervals are wider than most differences between models:
the 95 % interval of an accuracy of 0.8 on 100 rows is 0.16 wide."""

LONGEST_TEXT = 100_000
"""Characters; a longer text is more likely a broken file than something to read."""

_PREPARE = "Run `mtlops prepare` again."


def table_promises(split: str, *, min_words: int) -> tuple[Promise, ...]:
    """Returns what is promised about the columns that every task has, whatever its labels are."""
    return (*_size_promises(split), *_row_promises(min_words))


def label_promises(task: Task) -> tuple[Promise, ...]:
    """Returns what is promised about single labels, in a table `row_id`, `label` with one label a row."""
    is_list = task.kind == "multilabel"
    present = Promise(
        "label_present",
        Wording("a label in every row", f"Rows without a label do not belong to the task: {_PREPARE.lower()}"),
        gxe.ExpectColumnValuesToNotBeNull,
        {"column": "label"},
        counted="labels",
    )
    return (present, _class_promise(task, is_list) if task.classes else _range_promise(task))


def _size_promises(split: str) -> tuple[Promise, ...]:
    least = LEAST_ROWS.get(split, 1)
    promises = [
        Promise(
            "row_count",
            Wording(f"at least {least} rows", "Give the task more labelled rows, or raise data.max_rows_per_task."),
            gxe.ExpectTableRowCountToBeBetween,
            {"min_value": least},
        )
    ]
    if split in USEFUL_ROWS:
        promises.append(
            Promise(
                "useful_row_count",
                Wording(
                    f"at least {USEFUL_ROWS[split]} rows",
                    "Results will be uncertain: trust their intervals, and give the task more rows.",
                    "warning",
                ),
                gxe.ExpectTableRowCountToBeBetween,
                {"min_value": USEFUL_ROWS[split]},
            )
        )
    return tuple(promises)


def _row_promises(min_words: int) -> tuple[Promise, ...]:
    return (
        Promise(
            "row_id_unique",
            Wording("every text once", f"A text stands there twice: {_PREPARE.lower()}"),
            gxe.ExpectColumnValuesToBeUnique,
            {"column": "row_id"},
        ),
        Promise(
            "text_present",
            Wording("a text in every row", _PREPARE),
            gxe.ExpectColumnValuesToNotBeNull,
            {"column": "text"},
        ),
        Promise(
            "text_words",
            Wording(f"texts of at least {min_words} words (data.min_words)", _PREPARE),
            gxe.ExpectColumnValuesToMatchRegex,
            {"column": "text", "regex": rf"^\s*\S+(?:\s+\S+){{{min_words - 1},}}"},
        ),
        Promise(
            "text_length",
            Wording(
                f"texts of at most {LONGEST_TEXT} characters",
                "Look at these rows: a missing quote or line break in the source glues rows together.",
                "warning",
            ),
            gxe.ExpectColumnValueLengthsToBeBetween,
            {"column": "text", "max_value": LONGEST_TEXT},
        ),
        Promise(
            "group_present",
            Wording("a group in every row", _PREPARE),
            gxe.ExpectColumnValuesToNotBeNull,
            {"column": "group"},
        ),
    )


def _class_promise(task: Task, is_list: bool) -> Promise:
    some_of = "any of" if is_list else "one of"
    return Promise(
        "label_in_classes",
        Wording(
            f"{some_of} {', '.join(task.classes)}",
            f"Correct the labels in the source, or add the class to suite.tasks.{task.name}.classes.",
        ),
        gxe.ExpectColumnValuesToBeInSet,
        {"column": "label", "value_set": list(task.classes)},
        counted="labels",
    )


def _range_promise(task: Task) -> Promise:
    lowest, highest = task.range or (-np.finfo(np.float32).max, np.finfo(np.float32).max)
    expected = f"a number from {lowest:g} to {highest:g}" if task.range else "a finite number"
    return Promise(
        "label_in_range",
        Wording(expected, f"Correct the labels in the source, or change suite.tasks.{task.name}.range."),
        gxe.ExpectColumnValuesToBeBetween,
        # Labels are stored as float32: the limits must be rounded in the same way, or a label that
        # stands exactly on a limit like 0.1 would lie outside.
        {"column": "label", "min_value": float(np.float32(lowest)), "max_value": float(np.float32(highest))},
        counted="labels",
    )
