"""The graph in half precision. Adapters and heads are given in float32 as ever, and halved inside."""

import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mtlops.export.external import BANK, subgraphs, write_graph

if TYPE_CHECKING:
    import onnx

_LARGEST = 65504.0
_CONSTANTS = ("Constant", "ConstantOfShape")


def write_half(source: Path, path: Path, *, passes: Iterable[Any] = (), like: Path | None = None) -> int:
    """Writes the graph in half precision, inputs and outputs as they were; returns its number of nodes.

    Numbers beyond half precision's range become its largest: they only mask padding.

    Args:
        source: `model.onnx`, its external data beside it.
        path: of the file to write.
        passes: not used.
        like: the same variant of another bundle with this trunk, whose weights are taken.
    """
    import onnx

    proto = onnx.load(source)
    graph = proto.graph
    for inner in subgraphs(graph):
        for tensor in [*(t for t in inner.initializer if not t.name.startswith(BANK)), *_constants(inner)]:
            _halve(tensor)
        for node in inner.node:
            for attribute in node.attribute:
                if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                    attribute.i = onnx.TensorProto.FLOAT16
    _convert_borders(graph)
    if like is None:
        return write_graph(proto, path)
    weights = path.with_name(f"{path.name}.data")
    shutil.copyfile(like.with_name(f"{like.name}.data"), weights)
    return write_graph(proto, path, weights=weights)


def _constants(graph: "onnx.GraphProto") -> "Iterator[onnx.TensorProto]":
    for node in graph.node:
        if node.op_type in _CONSTANTS:
            yield from (attribute.t for attribute in node.attribute if attribute.HasField("t"))


def _halve(tensor: "onnx.TensorProto") -> None:
    from onnx import numpy_helper

    if tensor.data_type == tensor.FLOAT:
        value = np.clip(numpy_helper.to_array(tensor), -_LARGEST, _LARGEST).astype(np.float16)
        tensor.CopyFrom(numpy_helper.from_array(value, tensor.name))


def _convert_borders(graph: "onnx.GraphProto") -> None:
    """Halves the bank where it is read, and gives the outputs in float32."""
    from onnx import TensorProto, helper

    bank = [tensor.name for tensor in graph.initializer if tensor.name.startswith(BANK)]
    outputs = [value.name for value in graph.output]
    inside = {name: f"{name}.half" for name in [*bank, *outputs]}
    for inner in subgraphs(graph):
        for node in inner.node:
            node.input[:] = [inside.get(name, name) for name in node.input]
            node.output[:] = [inside.get(name, name) for name in node.output]
    halved = [helper.make_node("Cast", [name], [inside[name]], to=TensorProto.FLOAT16) for name in bank]
    given = [helper.make_node("Cast", [inside[name]], [name], to=TensorProto.FLOAT) for name in outputs]
    nodes = [*halved, *graph.node, *given]
    del graph.node[:]
    graph.node.extend(nodes)
