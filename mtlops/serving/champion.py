"""The champion as an opponent: it answers the challenger's test rows itself, from its own bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from mtlops.bundle import Bundle
from mtlops.decoding import Outputs
from mtlops.registry import Registry
from mtlops.serving.runtime import Runtime
from mtlops.tasks import Task

_ROWS = 32


@dataclass(frozen=True)
class Champion:
    """The registry's champion, fetched and checked.

    Attributes:
        bundle: its bundle.
        url: of the registry; empty for a champion that was named otherwise.
        threads: of ONNX Runtime; 0 lets it choose.
    """

    bundle: Bundle
    url: str = ""
    threads: int = 0

    @cached_property
    def runtime(self) -> Runtime:
        """Its own graph, tokenizer and calibration, opened when it is first asked.

        Raises:
            ArtefactError: it does not reproduce its golden outputs.
        """
        return Runtime(self.bundle, threads=self.threads)

    def comparison(self, task: Task) -> str:
        """Returns `compared` when it does exactly this task, else `new` or `classes-changed`."""
        theirs = {t.name: t for t in self.bundle.tasks}.get(task.name)
        if theirs is None:
            return "new"
        return "compared" if theirs == task else "classes-changed"

    def removed(self, tasks: Sequence[Task]) -> list[str]:
        """Returns the names of its tasks that are not among `tasks`."""
        names = {task.name for task in tasks}
        return [task.name for task in self.bundle.tasks if task.name not in names]

    def answers(self, texts: Mapping[str, Sequence[str]]) -> dict[str, Outputs]:
        """Returns its answers to each task's texts, in their order; a text of several tasks is read once.

        Shapes: texts: N texts for each task's name; each Outputs: N rows. Raises like `runtime`.
        """
        tasks_of: dict[str, tuple[str, ...]] = {}
        for task, of_task in texts.items():
            for text in dict.fromkeys(of_task):
                tasks_of[text] = (*tasks_of.get(text, ()), task)
        row: dict[tuple[str, str], Outputs] = {}
        for tasks in dict.fromkeys(tasks_of.values()):
            together = sorted((t for t, names in tasks_of.items() if names == tasks), key=lambda t: (len(t), t))
            for start in range(0, len(together), _ROWS):
                batch = together[start : start + _ROWS]
                for task, outputs in self.runtime.predict(batch, tasks=tasks).items():
                    row |= {(task, text): _row(outputs, i) for i, text in enumerate(batch)}
        return {task: _stack([row[task, text] for text in of_task]) for task, of_task in texts.items()}


def open_champion(url: str, *, cache: Path, threads: int = 0) -> Champion | None:
    """Returns the champion of the registry at `url`, or None when it has none yet.

    Args:
        url: of the registry.
        cache: folder in which fetched bundles are kept.
        threads: of ONNX Runtime; 0 lets it choose.

    Raises:
        ArtefactError: the champion's bundle is missing or damaged.
        PlatformError: the registry cannot be reached.
    """
    registry = Registry(url)
    entry = registry.champion()
    if entry is None:
        return None
    bundle = Bundle.open(registry.fetch(entry.bundle_id, cache / "bundles"))
    return Champion(bundle, url, threads)


def _row(outputs: Outputs, position: int) -> Outputs:
    return Outputs(**{n: None if v is None else v[position] for n, v in vars(outputs).items()})


def _stack(rows: Sequence[Outputs]) -> Outputs:
    columns = {name: [vars(row)[name] for row in rows] for name in vars(rows[0])}
    return Outputs(**{n: None if values[0] is None else np.stack(values) for n, values in columns.items()})
