"""The pairs graph: one encoder pass a row, then one light pass for each wanted (row, task) pair.

Shape suffixes: B rows, S tokens, P pairs, E embedded rows, T tasks, C widest task's outputs.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from mtlops.export.external import BANK, subgraphs, write_graph
from mtlops.files import atomic_path
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.encoders import Trunk
from mtlops.model.multitask import PairModel

if TYPE_CHECKING:
    import onnx

    from mtlops.export.rows import RowsGraph

_OUTPUT = ".output"

INPUTS = ("input_ids", "attention_mask", "pair_row", "pair_task", "embed_row")
"""The last one has a default: no row. An embedding costs layers that nobody else needs."""
OUTPUTS = ("logits", "embedding")

WORD_PAIR, TOKEN_LOGITS = "word_pair", "token_logits"
"""The further input and output of a suite with tasks that tag words."""


class PairsGraph(nn.Module):
    """The whole model as one function of token ids and wanted pairs.

    Args:
        trunk: the frozen encoder.
        pairs: what lies above the cut.
        tasks: the tensors of each task, in order of task positions.
        embedding: which vector of a row is its embedding (`drift.embedding` of params.yaml).
    """

    inputs: tuple[str, ...] = INPUTS
    outputs: tuple[str, ...] = OUTPUTS

    def __init__(self, trunk: Trunk, pairs: PairModel, *, tasks: list[Tensors], embedding: str) -> None:
        super().__init__()
        self._embedding = embedding
        self.trunk, self.pairs = trunk, pairs
        self.bank = nn.Module()
        self._names = {}
        for name, tensor in multitask.stack(tasks).items():
            self._names[name] = name.replace(".", "_")
            self.bank.register_parameter(self._names[name], nn.Parameter(tensor, requires_grad=False))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pair_row: Tensor, pair_task: Tensor, embed_row: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (P, C), columns beyond a task's outputs 0, and the embeddings (E, H) of some rows.

        Shapes: input_ids and attention_mask (B, S) int64; pair_row and pair_task (P,) int64;
        embed_row (E,) int64, the rows whose embedding is wanted.
        """
        state_BSV = self.pairs.state(self.trunk, input_ids, attention_mask)
        bank = {name: getattr(self.bank, attribute) for name, attribute in self._names.items()}
        picked = multitask.pick(bank, pair_task)
        pooled = self.pairs(state_BSV.index_select(0, pair_row), attention_mask.index_select(0, pair_row), picked)
        some_ESV, mask_ES = state_BSV.index_select(0, embed_row), attention_mask.index_select(0, embed_row)
        return multitask.logits(pooled, picked), self.pairs.embedding(some_ESV, mask_ES, layer=self._embedding)


class WordsGraph(PairsGraph):
    """The same with a logit for each token of those pairs whose tasks tag words.

    Which pairs these are says a further input, by default none: the last layer is computed for all tokens of these
    pairs alone, and every other pair costs what it costs in a suite without such tasks. Which tokens begin words is
    known to whoever made them (`Tokenizer.word_tokens`).
    """

    inputs, outputs = (*INPUTS, WORD_PAIR), (*OUTPUTS, TOKEN_LOGITS)

    def forward(  # type: ignore[override]
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        pair_row: Tensor,
        pair_task: Tensor,
        embed_row: Tensor,
        word_pair: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Returns what `PairsGraph` does, and the logits (Q, S, C) of the tokens of some pairs.

        Shapes: those of `PairsGraph.forward`; word_pair (Q,) int64, positions among the pairs.
        """
        state_BSV = self.pairs.state(self.trunk, input_ids, attention_mask)
        bank = {name: getattr(self.bank, attribute) for name, attribute in self._names.items()}
        picked = multitask.pick(bank, pair_task)
        pooled_PH, tokens_QSH = self.pairs.pooled_and_tokens(
            state_BSV.index_select(0, pair_row), attention_mask.index_select(0, pair_row), picked, chosen_Q=word_pair
        )
        some_ESV, mask_ES = state_BSV.index_select(0, embed_row), attention_mask.index_select(0, embed_row)
        embedding = self.pairs.embedding(some_ESV, mask_ES, layer=self._embedding)
        of_words = {name: picked[name].index_select(0, word_pair) for name in ("head.weight", "head.bias")}
        return multitask.logits(pooled_PH, picked), embedding, multitask.token_logits(tokens_QSH, of_words)


def write_onnx(graph: "PairsGraph | RowsGraph", path: Path, *, opset: int, weights: Path | None = None) -> int:
    """Writes the graph as ONNX, all dimensions dynamic, no trace of this machine in it; returns its number of nodes.

    The trunk's large tensors go into `<path>.data` beside it, as ONNX external data, so that a new adapter makes a new
    graph of some hundred kilobytes and leaves those bytes alone. The same graph gives the same bytes.

    Args:
        graph: the whole model.
        path: of the graph.
        opset: ONNX operator set.
        weights: external data of another graph of this model in the same folder: what lies there is used, and no
            file of its own is written.
    """
    names = ("rows", "tokens", "pairs", "embedded", "words")
    rows, tokens, pairs, *chosen = (torch.export.Dim(name, min=1) for name in names)
    further = tuple({0: dim} for dim in chosen[: len(graph.inputs) - 4])
    with _quiet_exporter():
        program = torch.onnx.export(
            graph.eval(),
            _example()[: len(graph.inputs)],
            dynamo=True,
            opset_version=opset,
            input_names=list(graph.inputs),
            output_names=[f"{name}{_OUTPUT}" for name in graph.outputs],
            dynamic_shapes=({0: rows, 1: tokens}, {0: rows, 1: tokens}, {0: pairs}, {0: pairs}, *further),
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    _strip(proto)
    _name_outputs(proto)
    _open_bank(proto, optional=graph.inputs[4:])
    return write_graph(proto, path, weights=weights)


def replace_bank(graph: PairsGraph, path: Path, *, like: Path) -> int | None:
    """Writes another graph's ONNX file with this graph's adapters and heads, without tracing; returns its nodes.

    Nothing else in it changes, so the external data of `like` serve it, too. None, and nothing is written, when its
    bank has other tensors or shapes.

    Args:
        graph: whose bank is written.
        path: of the file to write.
        like: graph of a model with the same trunk, layers and tasks.
    """
    import onnx

    proto = onnx.load(str(like), load_external_data=False)
    there = {tensor.name: tensor for tensor in proto.graph.initializer if tensor.name.startswith(BANK)}
    bank = {f"{BANK}{name}": tensor.detach().cpu().contiguous() for name, tensor in graph.bank.named_parameters()}
    if {name: list(tensor.dims) for name, tensor in there.items()} != {n: list(t.shape) for n, t in bank.items()}:
        return None
    for name, tensor in bank.items():
        there[name].raw_data = tensor.numpy().tobytes()
    with atomic_path(path) as part:
        part.write_bytes(proto.SerializeToString(deterministic=True))
    return len(proto.graph.node)


def structure(path: Path) -> str:
    """Returns the sha256 of a graph without its adapters and heads: equal where only those differ.

    A session over one of two such graphs computes the other when it is given the other's bank, if their external data
    is the same too.
    """
    import onnx

    proto = onnx.load(path, load_external_data=False)
    kept = [tensor for tensor in proto.graph.initializer if not tensor.name.startswith(BANK)]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return hashlib.sha256(proto.SerializeToString(deterministic=True)).hexdigest()


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Keeps the exporter's notes on missing torchvision, its own deprecations and axis names from the user."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            warnings.filterwarnings("ignore", message="# The axis name")
            yield
    finally:
        logger.setLevel(level)


def _example() -> tuple[Tensor, ...]:
    ids = torch.ones(2, 7, dtype=torch.int64)
    some = torch.tensor([0, 1, 0, 1])
    return (
        ids,
        torch.ones_like(ids),
        torch.tensor([0, 1, 1]),
        torch.tensor([0, 0, 0]),
        some,
        torch.tensor([2, 0, 1, 0, 1]),
    )


def _strip(proto: "onnx.ModelProto") -> None:
    """Removes what the exporter notes for debugging (source paths, stack traces, shapes) and constants nobody reads."""
    del proto.metadata_props[:]
    proto.doc_string = ""
    graphs = list(subgraphs(proto.graph))
    for graph in graphs:
        del graph.metadata_props[:]
        del graph.value_info[:]
        graph.doc_string = ""
        for value in [*graph.input, *graph.output, *graph.initializer]:
            del value.metadata_props[:]
            value.doc_string = ""
    for node in [*(n for graph in graphs for n in graph.node), *(n for f in proto.functions for n in f.node)]:
        del node.metadata_props[:]
        node.doc_string = ""
    read = {name for graph in graphs for node in graph.node for name in node.input}
    read |= {value.name for graph in graphs for value in graph.output}
    for graph in graphs:
        kept = [tensor for tensor in graph.initializer if tensor.name in read]
        if len(kept) < len(graph.initializer):
            del graph.initializer[:]
            graph.initializer.extend(kept)


def _open_bank(proto: "onnx.ModelProto", *, optional: Sequence[str]) -> None:
    """Gives some inputs a default, no row, and declares adapters and heads as such inputs: a server can give others.

    Sizes that depend on the tasks (how many, the widest bottleneck and head) are left open.
    """
    from onnx import TensorProto, helper

    for name in optional:
        proto.graph.initializer.append(helper.make_tensor(name, TensorProto.INT64, [0], []))
    for tensor in _bank(proto):
        sizes = [f"{tensor.name}.{axis}" for axis in range(len(tensor.dims))]
        proto.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, sizes))
    for output in proto.graph.output:
        if output.name in ("logits", TOKEN_LOGITS):
            output.type.tensor_type.shape.dim[-1].dim_param = "outputs"


def _bank(proto: "onnx.ModelProto") -> "list[onnx.TensorProto]":
    return [tensor for tensor in proto.graph.initializer if tensor.name.startswith(BANK)]


def _name_outputs(proto: "onnx.ModelProto") -> None:
    """Gives the outputs their names. The exporter calls values inside by the same words, and would not notice."""
    for graph in subgraphs(proto.graph):
        values = [*graph.input, *graph.output, *graph.initializer]
        for value in values:
            value.name = _named(value.name)
        for node in graph.node:
            node.input[:] = [_named(name) for name in node.input]
            node.output[:] = [_named(name) for name in node.output]


def _named(name: str) -> str:
    return f"{name}.inner" if name in (*OUTPUTS, TOKEN_LOGITS) else name.removesuffix(_OUTPUT)
