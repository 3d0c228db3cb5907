"""A project whose suite also tags words. The tags are made by a rule (runs of some nouns are things), not by people."""

import json
import random
from pathlib import Path

from mtlops.params import Params, read_params
from tests.tiny_encoder import write_encoder
from tests.tiny_suite import Workspace, make_workspace

_THINGS = ("phone", "battery", "screen", "car", "engine", "chip")
_PLACES = ("moon", "planet", "church", "road")
_OTHERS = ("the", "a", "of", "and", "is", "was", "not", "very", "good", "great", "bad", "film", "plot", "game", "team")

CLASSES = ("O", "B-thing", "I-thing", "B-place")

OVERRIDES = ("train.learning_rate=0.01", "train.epochs=8", "train.patience=8", "export.tolerance=0.00001")

SPEC = """\
    names:
      kind: tagging
      source: data/sources/tags.jsonl
      label: ner_tags
      classes: [O, B-thing, I-thing, B-place]
      inputs: {text: tokens}

data:
"""


def tag(words: list[str]) -> list[str]:
    """The rule: a thing after a thing goes on with it, a place is one word."""
    tags: list[str] = []
    for word in words:
        goes_on = bool(tags) and tags[-1].endswith("-thing")
        tags.append(("I-thing" if goes_on else "B-thing") if word in _THINGS else "B-place" if word in _PLACES else "O")
    return tags


class Tagged(Workspace):
    """A workspace that trains longer: the tags of a random encoder's words are not learned in two epochs."""

    def params(self, *overrides: str) -> Params:
        """Returns its params."""
        return read_params(self.params_file, overrides=[*OVERRIDES, *overrides])


def make_tagged_workspace(root: Path, *, num_rows: int = 240) -> Tagged:
    """Writes the project of `tiny_suite` with a fifth of its words things, and some texts that are too long."""
    work = make_workspace(root)
    write_encoder(root / "data/sources/encoder", hidden=32, seed=3)
    drawn, rows = random.Random(0), []
    for number in range(num_rows):
        length = drawn.randint(3, 12) + (30 if number % 40 == 7 else 0)
        words = [drawn.choice(drawn.choice((_OTHERS, _OTHERS, _THINGS, _PLACES))) for _ in range(length)]
        rows.append({"tokens": words, "ner_tags": tag(words)})
    path = root / "data/sources/tags.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    params = work.params_file.read_text(encoding="utf-8")
    work.params_file.write_text(params.replace("data:\n", SPEC, 1), encoding="utf-8")
    return Tagged(root)
