"""Arrow in a process that has to stay small."""

import importlib.abc
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType


class _NoPandas(importlib.abc.MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:  # fmt: skip
        if name == "pandas":
            raise ModuleNotFoundError("No module named 'pandas': pyarrow is asked to do without it", name=name)
        return None


def keep_arrow_small() -> None:
    """Makes Arrow give memory back to the system, and do without pandas; for a process's first lines.

    `pyarrow.array` imports pandas where it is installed, only to recognise its types: 33 MB and 0.3 CPU seconds. It
    looks once; while it looks, pandas is hidden. Afterwards the process can import pandas, but Arrow's tables no longer
    turn into its frames. Arrow's own allocator keeps some 30 MB that it has freed; the system's returns them.
    """
    import pyarrow as pa

    pa.set_memory_pool(pa.system_memory_pool())
    hiding = _NoPandas()
    sys.meta_path.insert(0, hiding)
    try:
        pa.array([0])
    finally:
        sys.meta_path.remove(hiding)
