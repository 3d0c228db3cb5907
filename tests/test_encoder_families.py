"""The whole way on encoders of other families, and an adapter's journey to AdapterHub's layout and back."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.serving.runtime import Runtime
from tests.tiny_encoder import write_encoder
from tests.tiny_suite import Workspace, make_workspace, run_all

TEXTS = ["a great film", "the phone was bad", "god and law on the moon"]

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module", params=["roberta", "distilbert", "mpnet"])
def work(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A project whose encoder is of another family, after every step."""
    work = make_workspace(tmp_path_factory.mktemp(request.param))
    shutil.rmtree(work.root / "data/sources/encoder")
    write_encoder(work.root / "data/sources/encoder", family=request.param)
    run_all(work)
    return work


def test_the_bundle_answers_a_batch_as_it_answers_each_text(work: Workspace) -> None:
    runtime = Runtime(Bundle.open(work.bundle))
    together = runtime.predict(TEXTS)
    assert set(together) == {"mood", "grade", "stars", "about", "topic"}
    for row, text in enumerate(TEXTS):
        alone = runtime.predict([text])["mood"].probabilities
        assert alone is not None and together["mood"].probabilities is not None
        assert np.allclose(alone[0], together["mood"].probabilities[row], atol=1e-5)


def test_an_adapter_comes_back_and_the_steps_go_on(
    work: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Workspace(tmp_path / "copy")
    shutil.copytree(work.root, copy.root)
    monkeypatch.chdir(copy.root)
    exported = main(["adapters", "export", "--task", "topic", "--to", "hub", "--quiet"])
    if "mpnet" in (copy.root / "data/encoder/config.json").read_text(encoding="utf-8"):
        assert exported == 2  # AdapterHub has no models of this family.
        return
    assert exported == 0
    for path in Path("models/trained/tasks/topic").glob("*.safetensors"):
        save_file({name: tensor * 0 for name, tensor in load_file(path).items()}, path)
    assert main(["adapters", "import", "hub", "--task", "topic", "--quiet"]) == 0
    assert main(["evaluate", "--quiet"]) == 0
    assert main(["export", "--quiet"]) == 0
    before, after = (Runtime(Bundle.open(folder)).predict(TEXTS) for folder in (work.bundle, copy.bundle))
    for task, answer in before.items():
        expected, found = ((a.values if a.probabilities is None else a.probabilities) for a in (answer, after[task]))
        assert np.array_equal(expected, found), task
