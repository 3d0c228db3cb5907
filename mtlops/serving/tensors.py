"""Tensors of the Open Inference Protocol v2: as JSON values, as raw bytes (Triton's binary extension), as arrays."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.serving.refusal import bad

_INTEGERS: Mapping[str, str] = MappingProxyType({"INT64": "<i8", "INT32": "<i4"})
_MOST_DIMENSIONS = 3
_LENGTH_BYTES = 4


@dataclass(frozen=True)
class Tensor:
    """A named tensor.

    Attributes:
        name: of an input or output.
        datatype: `BYTES`, `INT64`, `INT32` or `FP32`.
        shape: its sizes.
        values: texts in row-major order for `BYTES`, else an array of the shape.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    values: Sequence[str] | NDArray[Any]


def as_json(tensor: Tensor) -> dict[str, Any]:
    """Returns a tensor as the protocol's JSON has it; an array stays one, for orjson."""
    data = tensor.values.reshape(-1) if isinstance(tensor.values, np.ndarray) else tensor.values
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape, "data": data}


def check_head(name: Any, datatype: Any, shape: Any, *, most: int) -> tuple[str, str, tuple[int, ...]]:
    """Returns name, datatype and shape of an input. Raises Refusal when they are malformed or too large."""
    if not isinstance(name, str) or not name:
        raise bad("inputs: every input needs a name (a string).")
    if datatype != "BYTES" and datatype not in [*_INTEGERS]:
        kind = _short(datatype)
        raise bad(f"input {name!r}: datatype {kind} is not taken. Send BYTES for texts, INT64 for token ids.")
    sizes = shape if isinstance(shape, list | tuple) else []
    if not 1 <= len(sizes) <= _MOST_DIMENSIONS or not all(type(size) is int and size >= 0 for size in sizes):
        raise bad(f"input {name!r}: shape must be 1 to {_MOST_DIMENSIONS} whole numbers, not {_short(shape)}.")
    if math.prod(sizes) > most:
        raise bad(f"input {name!r}: shape {list(sizes)} has more than {most} elements. Send smaller requests.")
    return name, str(datatype), tuple(sizes)


def from_values(name: str, datatype: str, shape: tuple[int, ...], values: Any) -> Tensor:
    """Returns an input from JSON values, flat or nested. Raises Refusal when they do not fit."""
    if not isinstance(values, list):
        raise bad(f"input {name!r}: data must be a list.")
    flat = _flat(values, depth=len(shape))
    if len(flat) != math.prod(shape):
        raise bad(f"input {name!r}: data has {len(flat)} elements, shape {list(shape)} needs {math.prod(shape)}.")
    wanted = str if datatype == "BYTES" else int
    for position, value in enumerate(flat):
        if type(value) is not wanted:
            kind = "a string" if datatype == "BYTES" else "a whole number"
            raise bad(f"input {name!r}: data[{position}]: {datatype} needs {kind}, not {_short(value)}.")
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, flat)
    try:
        return Tensor(name, datatype, shape, np.asarray(flat, dtype=np.int64).reshape(shape))
    except OverflowError:
        raise bad(f"input {name!r}: data: a number does not fit {datatype}.") from None


def from_bytes(name: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Tensor:
    """Returns an input from raw bytes: little-endian numbers, or texts with 4 bytes of length before each."""
    if datatype == "BYTES":
        return Tensor(name, datatype, shape, _texts(name, raw, count=math.prod(shape)))
    kind = np.dtype(_INTEGERS[datatype])
    if len(raw) != math.prod(shape) * kind.itemsize:
        raise bad(
            f"input {name!r}: {len(raw)} bytes were sent, {datatype} {list(shape)} needs "
            f"{math.prod(shape) * kind.itemsize}."
        )
    return Tensor(name, datatype, shape, np.frombuffer(raw, dtype=kind).reshape(shape).astype(np.int64))


def to_bytes(tensor: Tensor) -> bytes:
    """Returns the raw bytes of an output."""
    if isinstance(tensor.values, np.ndarray):
        return tensor.values.tobytes()
    parts = []
    for text in tensor.values:
        encoded = text.encode()
        parts += [len(encoded).to_bytes(_LENGTH_BYTES, "little"), encoded]
    return b"".join(parts)


def decode_text(name: str, position: int, raw: bytes | memoryview) -> str:
    """Returns a text from its UTF-8. Raises Refusal when it is none."""
    try:
        return bytes(raw).decode()
    except UnicodeDecodeError as error:
        raise bad(f"input {name!r}: text {position} is not UTF-8 ({error.reason} at byte {error.start}).") from None


def _texts(name: str, raw: bytes | memoryview, *, count: int) -> list[str]:
    texts, at = [], 0
    for position in range(count):
        start = at + _LENGTH_BYTES
        length = int.from_bytes(raw[at:start], "little")
        if start > len(raw) or start + length > len(raw):
            raise bad(
                f"input {name!r}: the bytes end within text {position} of {count}. "
                f"Each text is 4 bytes of length, little-endian, then UTF-8."
            )
        texts.append(decode_text(name, position, raw[start : start + length]))
        at = start + length
    if at != len(raw):
        raise bad(f"input {name!r}: {len(raw) - at} bytes are left over after {count} texts.")
    return texts


def _flat(values: list[Any], *, depth: int) -> list[Any]:
    for _ in range(depth - 1):
        if not any(isinstance(value, list) for value in values):
            break
        values = [inner for value in values for inner in (value if isinstance(value, list) else [value])]
    return values


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
