"""How a process that runs one command is set up: with less memory beside others, or less time around its work."""

import atexit
import gc
import importlib.abc
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

_THREADS = "OPENBLAS_NUM_THREADS"

_OBJECTS_UP_TO_A_COLLECTION = 100_000
"""More than 700, Python's own number; their cycles hold some ten megabytes at most."""


class _NoPandas(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:  # fmt: skip
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas': pyarrow is asked to do without it", name=name)
        return None


def keep_small() -> None:
    """Makes this process need little; to be called before NumPy is imported.

    - NumPy's matrix products are small here: threads that wait for one another cost three times the CPU time.
    - `pyarrow.array` imports pandas where it is installed, only to recognise its types: 33 MB and 0.3 CPU seconds. It
      looks once; while it looks, pandas is hidden. Afterwards the process can import pandas, but Arrow's tables no
      longer turn into its frames.
    - Arrow's own allocator keeps some 30 MB that was freed; the system's gives it back.
    """
    _import_numpy_with_one_thread()
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    _import_arrow_without_pandas()


def keep_quick(*, pandas: bool = False) -> None:
    """Makes a step lose no time around its work; to be called before NumPy is imported.

    - NumPy's matrix products are small here, too; the large ones are PyTorch's.
    - Most of the objects that Python counts up to a collection of garbage are made by imports and stay: half a second
      of looking through them again and again.
    - pyarrow's import of pandas, as above, unless the step needs frames: `pandas`.
    - Nor are they looked through at the exit, where almost everything is still in use: 0.3 seconds.
    - PyTorch asks the kernel for huge pages where it allows that (`madvise`): a twentieth of an update's CPU time.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.set_threshold(_OBJECTS_UP_TO_A_COLLECTION)
    atexit.register(gc.freeze)
    _import_numpy_with_one_thread()
    if not pandas:
        _import_arrow_without_pandas()


def _import_arrow_without_pandas() -> None:
    import pyarrow as pa

    hiding = _NoPandas()
    sys.meta_path.insert(0, hiding)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hiding)


def _import_numpy_with_one_thread() -> None:
    """The variable is read at the import; processes that this one starts, such as a training, must not inherit it."""
    if _THREADS in os.environ:
        return
    os.environ[_THREADS] = "1"
    try:
        import numpy  # noqa: F401
    finally:
        del os.environ[_THREADS]
