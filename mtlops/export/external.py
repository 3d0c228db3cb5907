"""An ONNX graph as files: its large tensors lie beside it, as ONNX external data."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from mtlops.files import atomic_path

if TYPE_CHECKING:
    import onnx

_PAGE = 4096
_LARGE = 1 << 14

BANK = "bank."
"""Start of the names of adapters and heads, stacked over the tasks: `bank.layers_3_down`, `bank.head_weight`."""


def write_weights(proto: "onnx.ModelProto", path: Path) -> None:
    """Writes the trunk's large tensors one after the other, each at the start of a page so that it can be mapped."""
    with atomic_path(path) as part, part.open("wb") as file:
        for tensor in _large(proto):
            file.write(bytes(-file.tell() % _PAGE))
            file.write(tensor.raw_data)


def move_out(proto: "onnx.ModelProto", path: Path) -> None:
    """Replaces large tensors by where their bytes lie in the file of weights, if they do."""
    content, found = path.read_bytes(), {}
    start = 0
    for tensor in _large(proto):
        size = len(tensor.raw_data)
        digest = hashlib.sha256(tensor.raw_data).digest()
        if digest not in found:
            at = content.find(tensor.raw_data, start)
            found[digest] = at if at >= 0 else content.find(tensor.raw_data)
        offset = found[digest]
        if offset < 0:
            continue
        start = offset + size
        tensor.ClearField("raw_data")
        tensor.data_location = tensor.EXTERNAL
        for key, value in (("location", path.name), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))


def write_graph(proto: "onnx.ModelProto", path: Path, *, weights: Path | None = None) -> int:
    """Writes a graph and its weights, `<path>.data`; returns its number of nodes. The same graph gives the same bytes.

    `weights`: external data of another graph in the same folder: what lies there is used, no file is written.
    """
    if weights is None:
        weights = path.with_name(f"{path.name}.data")
        write_weights(proto, weights)
    move_out(proto, weights)
    with atomic_path(path) as part:
        part.write_bytes(proto.SerializeToString(deterministic=True))
    return len(proto.graph.node)


def _large(proto: "onnx.ModelProto") -> "list[onnx.TensorProto]":
    """The trunk's tensors that are worth a place of their own; adapters and heads stay in the graph."""
    tensors = proto.graph.initializer
    return [t for t in tensors if not t.name.startswith(BANK) and len(t.raw_data) >= _LARGE]


def subgraphs(graph: "onnx.GraphProto") -> "Iterator[onnx.GraphProto]":
    """The graph and all that lie in its nodes, as the branches of an `If` do."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)
