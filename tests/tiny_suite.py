"""A real run of every step on a suite of all five kinds, small enough for tests: two data files, a tiny encoder."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from mtlops.params import Params, read_params
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from mtlops.steps.validate import validate
from tests.tiny_encoder import write_encoder

DATA_FILES = Path(__file__).parent / "data_files"


@dataclass(frozen=True)
class Workspace:
    """A user's project folder with the layout of the repository."""

    root: Path

    @property
    def params_file(self) -> Path:
        return self.root / "params.yaml"

    @property
    def bundle(self) -> Path:
        return self.root / "models/candidate"

    def params(self, *overrides: str) -> Params:
        return read_params(self.params_file, overrides=overrides)

    def paths(self, *names: str) -> dict[str, Path]:
        """The paths of a step's arguments, below this folder."""
        known = {
            "raw": "data/raw", "prepared": "data/prepared", "encoder": "data/encoder", "cache": "data/cache",
            "trained": "models/trained", "evaluation": "reports/evaluation.json", "decision": "reports/decision.json",
        }  # fmt: skip
        return {name: self.root / known[name] for name in names}


def make_workspace(root: Path) -> Workspace:
    """Writes params.yaml, the data files and the encoder folder."""
    sources = root / "data/sources"
    sources.mkdir(parents=True)
    shutil.copy(DATA_FILES / "params.yaml", root)
    for name in ("reviews.csv", "posts.jsonl", "checks.yaml"):
        shutil.copy(DATA_FILES / name, sources)
    write_encoder(sources / "encoder")
    return Workspace(root)


def run_prepare(work: Workspace, params: Params | None = None) -> None:
    """Runs `prepare` where DVC would."""
    prepare(params or work.params(), base=work.root, **work.paths("raw", "encoder"), out=work.root / "data/prepared")


def run_all(work: Workspace) -> None:
    """Runs every step where DVC would."""
    params, root = work.params(), work.root
    run_prepare(work)
    validate(params, **work.paths("prepared"), report=root / "reports/validation.json")
    train(
        params, **work.paths("prepared", "encoder", "cache"),
        out=root / "models/trained", report=root / "reports/training.json",
    )  # fmt: skip
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
        out=work.bundle, report=root / "reports/export.json",
    )  # fmt: skip
