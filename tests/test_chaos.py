"""The loop under kill -9, on a few seeds; `python -m tests.chaos` plays as many as one likes."""

from pathlib import Path

import pytest

from tests import chaos
from tests.tiny_suite import Workspace


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return chaos.make_project(tmp_path_factory.mktemp("chaos") / "finished")


@pytest.mark.slow
@pytest.mark.e2e
@pytest.mark.xdist_group("chaos")
@pytest.mark.parametrize("seed", [0, 1])
def test_killed_at_random_moments_the_loop_ends_with_one_promotion(
    project: Workspace, tmp_path: Path, seed: int
) -> None:
    ended = chaos.play(project, tmp_path / "run", seed=seed)
    assert ended.wrong == [] and ended.promotions == 1
