"""The model card says what evaluation and decision say, and leaves out what was not measured."""

from copy import deepcopy

import pytest

from mtlops.export.card import write_card
from mtlops.params import Params, read_params
from tests.test_report import everything
from tests.tiny_suite import DATA_FILES

ENCODER = {"name": "tiny", "licence": "MIT"}
DECISION = {
    "verdict": "HOLD",
    "reasons": ["tone: a loss is not ruled out."],
    "tasks": {name: {"verdict": "HOLD"} for name in ("tone", "tags", "many", "stars")},
}


@pytest.fixture
def params() -> Params:
    return read_params(DATA_FILES / "params.yaml")


def test_the_card_has_every_measured_part(params: Params) -> None:
    card = write_card(params, evaluation=everything(), decision=DECISION, encoder=ENCODER)
    for line in (
        "- tone: a loss is not ruled out.",
        "Bundle `feedfacefeedface`, on the same test rows:",
        "| tone | macro_f1 | 0.550 | 0.652 | +0.100 | +0.080 to +0.120 |",
        "| many | macro_f1 | 0.400 | 0.400 | identical | +0.000 to +0.000 |",
        (
            "- tone: temperature 1.377, calibration error 0.101 without it and 0.054 with it on the test rows; "
            "decision threshold 0.625"
        ),
        (
            "- tone: of 1 small changes of the text, dropped words costs most: macro_f1 -0.052 (-0.072 to -0.032) "
            "on 200 rows"
        ),
        "- tone: 9 of 12 behavioural cases pass; failing: names (2 of 8), all wrong (1 of 1)",
        "- tone: input drifted, label insufficient data",
    ):
        assert line in card.splitlines(), line
    slices = card.split("## Weakest slices\n\n")[1].split("\n\n")[0].splitlines()
    assert len(slices) == 2  # not those that are too small to be judged
    assert slices[0] == "- tone, by weak: macro_f1 0.340 (0.320 to 0.360) on 53 rows (all rows: 0.652)"


def test_what_was_not_measured_has_no_heading(params: Params) -> None:
    plain = deepcopy(everything())
    for task in plain["tasks"].values():
        for key in ("champion", "slices", "robustness", "behaviour", "drift", "calibration"):
            task[key] = None
    card = write_card(params, evaluation=plain, decision=DECISION, encoder=ENCODER)
    titles = [line for line in card.splitlines() if line.startswith("## ")]
    assert titles == ["## Intended use", "## Quality on held-out rows", "## Why", "## Data", "## Limits"]
