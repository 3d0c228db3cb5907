"""The profiling pipeline: some days of a prediction log that is too large for one machine, judged as one window.

    profile, once for each part, side by side -> merge

A part is profiled by the step of `python -m monitoring profile`, and merged counts are the same to the bit as those of
a single pass. It makes no request to train and keeps no state: it answers how those days looked.
"""

from typing import List, NamedTuple  # noqa: UP035

from kfp import dsl

from components.merge import merge
from components.profile import profile
from pipelines.training import place

PARTS = ("1/4", "2/4", "3/4", "4/4")
"""Parts when nothing is said: all of them have to be named."""


class Outputs(NamedTuple):
    """What the pipeline hands on."""

    reports: dsl.Artifact
    level: str


def profiling_pipeline(image: str, *, accelerator: str = "") -> dsl.base_component.BaseComponent:
    """Returns the pipeline `mtlops-profiling`.

    Args:
        image: container image of every task.
        accelerator: not used: counting needs none.
    """

    def profiling(
        params: str,
        log: str,
        registry: str,
        since: str,
        until: str,
        parts: List[str] = list(PARTS),  # noqa: B006, UP006 - kfp reads the default as a value
    ) -> Outputs:
        with dsl.ParallelFor(parts, name="each-part") as part:
            counted = profile(log=log, registry=registry, since=since, until=until, part=part)
            # Neither the log nor the champion is in the key.
            place(counted, "profile", image).set_caching_options(False)
        merged = merge(counts=dsl.Collected(counted.outputs["counts"]), params=params, log=log, registry=registry)
        place(merged, "merge", image).set_caching_options(False)
        return Outputs(reports=merged.outputs["reports"], level=merged.outputs["level"])

    about = "Drift of some days of a large prediction log, profiled in parts side by side."
    return dsl.pipeline(name="mtlops-profiling", description=about)(profiling)
