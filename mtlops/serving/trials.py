"""A challenger beside the champion: it answers a share of the requests for some tasks, or answers all for the log."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

from mtlops.errors import UsageError
from mtlops.serving.runtime import Runtime


@dataclass(frozen=True)
class Trial:
    """How a challenger takes part.

    Attributes:
        challenger: its runtime.
        stages: (share, runtime) pairs, shares rising: a request whose id falls below a share is answered by that
            runtime, which is the champion's with some tasks of the challenger.
        looks_on: it answers every request too, for the log alone.
    """

    challenger: Runtime
    stages: tuple[tuple[float, Runtime], ...]
    looks_on: bool

    @classmethod
    def of(cls, champion: Runtime, challenger: Runtime, *, shares: Mapping[str, float], looks_on: bool) -> "Trial":
        """Returns a trial.

        Args:
            champion: who answers otherwise.
            challenger: on trial; for a canary it must share the champion's session.
            shares: for each canary task, the share of requests that the challenger answers, 0 to 1.
            looks_on: see above.

        Raises:
            UsageError: the two do not fit, or a task is unknown.
        """
        if champion.tasks != challenger.tasks:
            raise UsageError(
                f"bundle {challenger.bundle_id} has other tasks or classes than {champion.bundle_id}: it cannot be "
                f"tried beside it. Promote it, or serve it on its own with --bundle."
            )
        champion.positions(list(shares))
        if shares and not champion.can_take(challenger.bundle):
            raise UsageError(
                f"bundle {challenger.bundle_id} has another trunk or graph than {champion.bundle_id}: use --shadow."
            )
        levels = sorted({share for share in shares.values() if share > 0})
        stages = tuple(
            (level, champion.with_tasks_of(challenger, [task for task, share in shares.items() if share >= level]))
            for level in levels
        )
        return cls(challenger, stages, looks_on)

    def choose(self, request_id: str, champion: Runtime) -> Runtime:
        """Returns who answers a request: the same for the same id, whatever the process."""
        place = (zlib.crc32(request_id.encode()) + 0.5) / 2**32
        return next((runtime for share, runtime in self.stages if place < share), champion)
