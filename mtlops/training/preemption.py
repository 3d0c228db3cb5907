"""SIGTERM while training: the machine is taken away. Finish the step, save, and say so by the exit code."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Preemption:
    """A context in which SIGTERM is noted instead of ending the process; in the main thread only.

    Attributes:
        is_asked: whether SIGTERM came.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._before: Any = None

    def __enter__(self) -> "Preemption":
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.is_asked = True
