"""Graphs whose trunk computes in 8-bit integers; adapters and heads stay as they are, so a swap gives the same bank.

A product x W of the trunk becomes

    x -> QuantizeLinear -> DequantizeLinear -> MatMul <- DequantizeLinear <- int8 W, one scale a column

which ONNX Runtime computes as one integer product. Static: the scale of x was measured once, on validation rows, so a
row's answer depends on that row alone. Dynamic: it is that of each pass, so it depends on which rows come together.
Some columns of x are a hundred times as large as the others, and would leave those no levels. So column j is divided by
s_j = max |x_j|^0.4, which row j of W is multiplied by (Xiao et al. 2023, "SmoothQuant", section 4.1, arXiv:2211.10438;
without its denominator, which costs weights of 7 bits too much): it halves the error of a logit. Weights have 7 bits:
with 8, processors without VNNI saturate the 16-bit sums in between and answer otherwise (ONNX Runtime's guide to
quantisation, "reduce_range"). Tables of embeddings are int8, one scale a dimension.
"""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops.errors import ArtefactError
from mtlops.export.external import BANK, subgraphs, write_graph

if TYPE_CHECKING:
    import onnx

_WEIGHT_LIMIT = 63
_TABLE_LIMIT = 127
_LEVELS = 255
_SMALLEST_TABLE = 1 << 14
_ERRORS_ONLY = 3
_LEVELLED = ".levelled"

LEVELLING = 0.4
"""How much of a column's size goes over to the weights: 0 none, 1 all."""

Feeds = Mapping[str, NDArray[np.int64]]
"""Inputs of one pass, by name."""


@dataclass(frozen=True)
class Range:
    """How a value (..., K) is written in 8 bits: value * factors = scale * (uint8 - zero_point)."""

    scale: float
    zero_point: int
    factors: tuple[float, ...]


@dataclass(frozen=True)
class _Product:
    """A product of the trunk.

    Attributes:
        node: MatMul.
        weight: name of its constant factor's tensor.
        is_transposed: whether the graph multiplies by the tensor's transpose.
    """

    node: "onnx.NodeProto"
    weight: str
    is_transposed: bool

    @property
    def value(self) -> str:
        """Name of the other factor."""
        return str(self.node.input[0])


def calibrate(source: Path, passes: Iterable[Feeds]) -> dict[str, Range]:
    """Returns the ranges of all values that the trunk multiplies, by name: from the lowest to the highest seen.

    Args:
        source: `model.onnx`, its external data beside it.
        passes: rows without padding, since what stands at padding does not count.
    """
    import onnx
    import onnxruntime

    proto = onnx.load(source, load_external_data=False)
    names = list(dict.fromkeys(product.value for product in _products(proto)))
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(source.parent))
    session = onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    lowest: dict[str, NDArray[np.float32]] = {}
    highest: dict[str, NDArray[np.float32]] = {}
    for feeds in passes:
        for name, value in zip(names, session.run(names, dict(feeds)), strict=True):
            columns = np.asarray(value, np.float32).reshape(-1, value.shape[-1])
            lowest[name] = np.minimum(lowest.get(name, np.float32(0)), columns.min(axis=0, initial=0.0))
            highest[name] = np.maximum(highest.get(name, np.float32(0)), columns.max(axis=0, initial=0.0))
    factors = _factors(_products(proto), {name: np.maximum(-lowest[name], highest[name]) for name in names})
    return {
        name: _range(float((lowest[name] * of).min()), float((highest[name] * of).max()), of)
        for name, of in factors.items()
    }


def _factors(
    products: Sequence[_Product], largest: Mapping[str, NDArray[np.float32]]
) -> dict[str, NDArray[np.float32]]:
    """Returns 1 / s of every value's columns; values that meet the same weights have the same."""
    groups: dict[str, set[str]] = {}
    for product in products:
        names = {product.value, f"times {product.weight}"}
        names = names.union(*(groups.get(name, set()) for name in names))
        groups.update(dict.fromkeys(names, names))
    found = {}
    for value in largest:
        of_group = np.max([largest[name] for name in groups[value] if name in largest], axis=0)
        found[value] = np.where(of_group > 0, of_group, 1).astype(np.float32) ** np.float32(-LEVELLING)
    return found


def read_ranges(path: Path) -> dict[str, Range]:
    """Returns the ranges that `write_static` wrote into a graph."""
    import onnx
    from onnx import numpy_helper

    proto = onnx.load(path, load_external_data=False)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    levelled = {node.output[0]: node.input for node in proto.graph.node if node.output[0].endswith(_LEVELLED)}
    ranges = {}
    for node in proto.graph.node:
        if node.op_type == "QuantizeLinear":
            value, factors = levelled[node.input[0]]
            scale, zero_point, of = (numpy_helper.to_array(tensors[name]) for name in (*node.input[1:], factors))
            ranges[value] = Range(float(scale), int(zero_point), tuple(of.tolist()))
    return ranges


def write_static(source: Path, path: Path, *, passes: Iterable[Feeds], like: Path | None = None) -> int:
    """Writes the graph in integers with fixed ranges; returns its number of nodes.

    Args:
        source: `model.onnx`, its external data beside it.
        path: of the file to write.
        passes: rows without padding, from which ranges are taken.
        like: the same variant of another bundle with this trunk: its ranges are taken instead, and its weights.

    Raises:
        ArtefactError: `like` is of another graph.
    """
    ranges = calibrate(source, passes) if like is None else read_ranges(like)
    rewriting = _Rewriting.of(source)
    if missing := {product.value for product in rewriting.products} - ranges.keys():
        raise ArtefactError(
            f"{path.name}: {len(missing)} values of the graph have no range in {like}: it is of another graph. Export "
            f"the whole suite."
        )

    def multiply(product: _Product) -> None:
        value, rounded = product.value, f"{product.value}.rounded"
        if rewriting.is_new(rounded):
            scale, zero_point, factors = f"{value}.scale", f"{value}.zero_point", f"{value}.factors"
            rewriting.keep(scale, np.asarray(ranges[value].scale, np.float32))
            rewriting.keep(zero_point, np.asarray(ranges[value].zero_point, np.uint8))
            rewriting.keep(factors, np.asarray(ranges[value].factors, np.float32))
            rewriting.add("Mul", [value, factors], f"{value}{_LEVELLED}")
            rewriting.add("QuantizeLinear", [f"{value}{_LEVELLED}", scale, zero_point], f"{value}.uint8")
            rewriting.add("DequantizeLinear", [f"{value}.uint8", scale, zero_point], rounded)
        weight, of_columns = rewriting.weight(product, factors=ranges[value].factors)
        if rewriting.is_new(f"{weight}.rounded"):
            rewriting.add("DequantizeLinear", [weight, of_columns], f"{weight}.rounded", axis=1)
        rewriting.add("MatMul", [rounded, f"{weight}.rounded"], product.node.output[0])

    return rewriting.write(multiply, path=path, like=like)


def write_dynamic(source: Path, path: Path, *, passes: Iterable[Feeds] = (), like: Path | None = None) -> int:
    """Writes the graph in integers whose ranges are measured in each pass; returns its number of nodes.

    Arguments are those of `write_static`; `passes` are not used.
    """
    from onnx import TensorProto

    rewriting = _Rewriting.of(source)

    def multiply(product: _Product) -> None:
        value, out = product.value, product.node.output[0]
        parts = [f"{value}.{part}" for part in ("uint8", "scale", "zero_point")]
        if rewriting.is_new(parts[0]):
            rewriting.add("DynamicQuantizeLinear", [value], *parts)
        weight, of_columns = rewriting.weight(product)
        rewriting.add("MatMulInteger", [parts[0], weight, parts[2]], f"{out}.int32")
        rewriting.add("Cast", [f"{out}.int32"], f"{out}.unscaled", to=TensorProto.FLOAT)
        rewriting.add("Mul", [parts[1], of_columns], f"{out}.scale")
        rewriting.add("Mul", [f"{out}.unscaled", f"{out}.scale"], out)

    return rewriting.write(multiply, path=path, like=like)


class _Rewriting:
    """A graph whose nodes are written anew, one after the other."""

    def __init__(self, proto: "onnx.ModelProto") -> None:
        self._proto, self.products = proto, _products(proto)
        self._tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
        self._nodes: list[onnx.NodeProto] = []
        self._made: dict[str, onnx.TensorProto] = {}
        self._values: set[str] = set()

    @classmethod
    def of(cls, source: Path) -> "_Rewriting":
        import onnx

        return cls(onnx.load(source))

    def is_new(self, value: str) -> bool:
        """Whether it is asked for the first time."""
        found = value not in self._values
        self._values.add(value)
        return found

    def keep(self, name: str, value: NDArray[Any]) -> None:
        from onnx import numpy_helper

        self._made[name] = numpy_helper.from_array(value, name)

    def add(self, kind: str, inputs: list[str], *outputs: str, **attributes: Any) -> None:
        from onnx import helper

        self._nodes.append(helper.make_node(kind, inputs, list(outputs), name=f"{outputs[0]}.node", **attributes))

    def weight(self, product: _Product, *, factors: Sequence[float] = (1.0,)) -> tuple[str, str]:
        """Names of a factor (K, N), its rows divided by `factors`, in integers, and of its columns' scales (N,)."""
        name = f"{product.weight}.{'transposed.' if product.is_transposed else ''}int8"
        if name not in self._made:
            array = self.factor(product)
            self._round(name, array / np.asarray(factors, np.float32)[:, None], limit=_WEIGHT_LIMIT)
        return name, f"{name}.scale"

    def factor(self, product: _Product) -> NDArray[np.float32]:
        """The constant factor (K, N) of a product."""
        array = self._array(product.weight)
        return array.T if product.is_transposed else array

    def write(self, multiply: Callable[[_Product], None], *, path: Path, like: Path | None) -> int:
        products = {product.node.output[0]: product for product in self.products}
        for node in self._proto.graph.node:
            if node.output[0] in products:
                multiply(products[node.output[0]])
            elif node.op_type == "Gather" and self._is_table(node.input[0]):
                self._look_up(node)
            else:
                self._nodes.append(node)
        graph = self._proto.graph
        kept = [*graph.initializer, *self._made.values()]
        del graph.node[:], graph.initializer[:]
        graph.node.extend(self._nodes)
        graph.initializer.extend(kept)
        _drop_unread(graph)
        if like is None:
            return write_graph(self._proto, path)
        weights = path.with_name(f"{path.name}.data")
        shutil.copyfile(like.with_name(f"{like.name}.data"), weights)
        return write_graph(self._proto, path, weights=weights)

    def _look_up(self, node: "onnx.NodeProto") -> None:
        table, out = f"{node.input[0]}.int8", node.output[0]
        if table not in self._made:
            self._round(table, self._array(node.input[0]), limit=_TABLE_LIMIT)
        self.add("Gather", [table, node.input[1]], f"{out}.int8")
        self.add("DequantizeLinear", [f"{out}.int8", f"{table}.scale"], out, axis=-1)

    def _is_table(self, name: str) -> bool:
        tensor = self._tensors.get(name)
        if tensor is None or name.startswith(BANK) or tensor.data_type != tensor.FLOAT or len(tensor.dims) != 2:
            return False
        return int(np.prod(tensor.dims)) >= _SMALLEST_TABLE

    def _array(self, name: str) -> NDArray[np.float32]:
        from onnx import numpy_helper

        return np.asarray(numpy_helper.to_array(self._tensors[name]), np.float32)

    def _round(self, name: str, array: NDArray[np.float32], *, limit: int) -> None:
        """Keeps an array (K, N) in integers of -limit to limit, and the scales (N,) of its columns."""
        scale = np.abs(array).max(axis=0) / np.float32(limit)
        scale = np.where(scale > 0, scale, 1).astype(np.float32)
        self.keep(name, np.clip(np.rint(array / scale), -limit, limit).astype(np.int8))
        self.keep(f"{name}.scale", scale)


def _products(proto: "onnx.ModelProto") -> list[_Product]:
    """The products by a constant matrix of the trunk; adapters and heads are inputs of the graph, and no constants."""
    matrices = {
        tensor.name
        for tensor in proto.graph.initializer
        if len(tensor.dims) == 2 and tensor.data_type == tensor.FLOAT and not tensor.name.startswith(BANK)
    }
    turned = {n.output[0]: n.input[0] for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] in matrices}
    return [
        _Product(node, turned.get(node.input[1], node.input[1]), node.input[1] in turned)
        for node in proto.graph.node
        if node.op_type == "MatMul" and (node.input[1] in matrices or node.input[1] in turned)
    ]


def _range(lowest: float, highest: float, factors: NDArray[np.float32]) -> Range:
    scale = np.float32((highest - lowest) / _LEVELS) or np.float32(1)
    return Range(float(scale), int(np.clip(np.rint(-lowest / scale), 0, _LEVELS)), tuple(factors.tolist()))


def _drop_unread(graph: "onnx.GraphProto") -> None:
    """Removes nodes and tensors that nothing reads any more; inputs' defaults stay."""
    is_done = False
    while not is_done:
        read = {name for inner in subgraphs(graph) for node in inner.node for name in node.input}
        read |= {value.name for value in (*graph.output, *graph.input)}
        nodes = [node for node in graph.node if read.intersection(node.output)]
        is_done = len(nodes) == len(graph.node)
        del graph.node[:]
        graph.node.extend(nodes)
    tensors = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(tensors)
