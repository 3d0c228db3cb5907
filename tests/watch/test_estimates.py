"""The estimate without labels follows a covariate shift, also of a model that promises too much."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.decoding import Outputs
from mtlops.drift.columns import chance_of_right
from mtlops.params import Drift
from mtlops.tasks import Task
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.state import State
from tests.watch.logs import MOOD, World, Writer, write_bundle


class Boastful(World):
    """Answers whose probabilities are too sure; `hard` gives only those that are least sure."""

    hard = False

    def answers(self, task: Task, rows: int) -> tuple[Outputs, list[Any]]:
        outputs, labels = super().answers(task, 3 * rows if self.hard else rows)
        assert outputs.probabilities is not None and outputs.labels is not None
        sure = outputs.probabilities.astype(np.float64) ** 2.5
        found = Outputs(
            probabilities=(sure / sure.sum(axis=1, keepdims=True)).astype(np.float32), labels=outputs.labels
        )
        some = np.argsort(chance_of_right(task, found), kind="stable")[:rows] if self.hard else np.arange(rows)
        some = self.rng.permutation(some)
        assert found.probabilities is not None and found.labels is not None
        return Outputs(probabilities=found.probabilities[some], labels=found.labels[some]), [labels[k] for k in some]


@pytest.mark.parametrize("hard", [False, True])
def test_the_estimate_is_what_labels_show_under_covariate_shift(tmp_path: Path, hard: bool) -> None:
    bundle: Bundle = write_bundle(tmp_path / "bundle", tasks=[MOOD], world=Boastful(0), rows=8000)
    world = Boastful(1)
    world.hard = hard
    writer = Writer(tmp_path / "log", bundle.id)
    writer.traffic(world, 4000, tasks=[MOOD])
    writer.feedback()
    watch = Watch(Drift(window_rows=4000, window_minutes=1e6, audit_rows=4000), References.of_bundle(bundle.folder),
                  State(":memory:"))  # fmt: skip
    reader = PredictionLog(str(tmp_path / "log"))
    watch.catch_up(reader, listed=reader.files())
    estimated, realised = (
        watch.state.windows("mood", source=source, limit=1)[0]["metrics"][kind]["accuracy"]
        for source, kind in (("traffic", "estimated"), ("labels", "realised"))
    )
    # A tenth of promises is as fine as it sees: of one that is cut in two it knows the mean of both.
    assert abs(estimated - realised) < 0.035, (estimated, realised)
    promised = watch.state.windows("mood", source="traffic", limit=1)[0]["cells"]
    mean = next(c for c in promised if c["kind"] == "estimate")["columns"]["estimate.accuracy"]["moved"]["current"]
    assert mean > realised + 0.08
