"""A bundle that answers: tokenizer, one ONNX Runtime session, decoding."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops.bundle import Bundle
from mtlops.catalog import suggest
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.decoding import Outputs, decode
from mtlops.errors import ArtefactError, UsageError
from mtlops.tasks import Task

if TYPE_CHECKING:
    import onnxruntime

_ROWS = 32

EMBEDDING = "embedding"
"""The graph's output of one vector (H,) a row, which drift watches."""

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a golden logit on another machine type; on the same type it is 0."""


class Runtime:
    """A session over a bundle's graph, ready to answer: its golden outputs have been reproduced.

    Args:
        bundle: a checked bundle.
        provider: an ONNX Runtime execution provider; it is never silently replaced by another.
        threads: threads of one run; 0 lets ONNX Runtime choose.

    Raises:
        UsageError: ONNX Runtime or the provider is not installed.
        ArtefactError: the graph does not load or does not reproduce the golden outputs.
    """

    def __init__(self, bundle: Bundle, *, provider: str = "CPUExecutionProvider", threads: int = 0) -> None:
        self.bundle = bundle
        self.tasks = bundle.tasks
        self._calibrations = bundle.calibrations
        self._tokenizer = Tokenizer(bundle.folder / "trunk/tokenizer.json", max_tokens=bundle.manifest["max_tokens"])
        self.bundle_id = bundle.id
        self._session = open_session(bundle.folder / "model.onnx", provider, threads=threads)
        self._check_golden()

    def predict(self, texts: Sequence[str], *, tasks: Sequence[str] | None = None) -> dict[str, Outputs]:
        """Returns the answers of the named tasks (default: all) for each text, by task, in one pass.

        Raises:
            UsageError: a name is not a task of the bundle.
        """
        names = [task.name for task in self.tasks]
        for name in tasks or ():
            if name not in names:
                raise UsageError(f"no task {name!r} in this bundle. {suggest(name, names)}")
        wanted = [position for position, name in enumerate(names) if tasks is None or name in tasks]
        if not texts:
            raise UsageError("no text to predict from. Give at least one.")
        logits = run(self._session, *pad(self._tokenizer.ids(texts), pad_id=self._tokenizer.pad_id), wanted)
        return {
            task.name: decode(task, logits[i, :, : task.num_outputs], self._calibrations[task.name])
            for i, task in enumerate(self.tasks[position] for position in wanted)
        }

    def logits(self, texts: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) in label units, computed in batches of similar length.

        Raises:
            UsageError: `task` is not a task of the bundle.
        """
        names = [known.name for known in self.tasks]
        if task not in names:
            raise UsageError(f"no task {task!r} in this bundle. {suggest(task, names)}")
        position = names.index(task)
        num_outputs = self.tasks[position].num_outputs
        ids = self._tokenizer.ids(texts)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        result = np.empty((len(ids), num_outputs), dtype=np.float32)
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            batch = pad([ids[i] for i in rows], pad_id=self._tokenizer.pad_id)
            result[rows] = run(self._session, *batch, [position])[0, :, :num_outputs]
        return result

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors (N, H) that drift watches, computed in batches of similar length.

        Raises:
            ArtefactError: the bundle's graph does not give them.
        """
        ids = self._tokenizer.ids(texts)
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
        found: dict[int, NDArray[np.float32]] = {}
        for start in range(0, len(order), _ROWS):
            rows = order[start : start + _ROWS]
            input_ids, mask = pad([ids[i] for i in rows], pad_id=self._tokenizer.pad_id)
            found |= dict(zip(rows, embed(self._session, input_ids, mask), strict=True))
        return np.stack([found[i] for i in range(len(ids))])

    def _check_golden(self) -> None:
        golden = self.bundle.golden()
        answers = golden_logits(self._session, self._tokenizer, self.tasks, [row["text"] for row in golden])
        for row, answer in zip(golden, answers, strict=True):
            for task, expected in row["logits"].items():
                error = float(np.abs(np.subtract(answer[task], expected)).max())
                if not error <= GOLDEN_TOLERANCE:
                    raise ArtefactError(
                        f"{self.bundle.folder}/golden.json: task {task}: a logit differs by {error:.2g} "
                        f"(limit {GOLDEN_TOLERANCE:g}). Do not serve this bundle here; export it again."
                    )


def golden_logits(
    session: "onnxruntime.InferenceSession", tokenizer: Tokenizer, tasks: Sequence[Task], texts: Sequence[str]
) -> list[dict[str, list[float]]]:
    """Returns the logits of each text by task, one text a pass, so that no text's answer depends on another."""
    rows = []
    for text in texts:
        logits = run(session, *pad(tokenizer.ids([text]), pad_id=tokenizer.pad_id), range(len(tasks)))
        rows.append({task.name: logits[i, 0, : task.num_outputs].tolist() for i, task in enumerate(tasks)})
    return rows


def run(
    session: "onnxruntime.InferenceSession",
    input_ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    positions: Sequence[int],
) -> NDArray[np.float32]:
    """Returns the logits of every row for every task position: (len(positions), B, C) float32."""
    num_rows = len(input_ids)
    feeds = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "pair_row": np.tile(np.arange(num_rows, dtype=np.int64), len(positions)),
        "pair_task": np.repeat(np.asarray(positions, dtype=np.int64), num_rows),
    }
    (logits,) = session.run(["logits"], feeds, only_what_is_asked())
    by_task: NDArray[np.float32] = logits.reshape(len(positions), num_rows, -1)
    return by_task


def embed(
    session: "onnxruntime.InferenceSession", input_ids: NDArray[np.int64], mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the embeddings of every row: (B, H) float32. Nothing above the cut is computed.

    Raises:
        ArtefactError: the graph has no such output.
    """
    if EMBEDDING not in {output.name for output in session.get_outputs()}:
        raise ArtefactError("model.onnx: has no output `embedding`. Export the bundle again.")
    nobody = np.zeros(1, dtype=np.int64)
    feeds = {"input_ids": input_ids, "attention_mask": mask, "pair_row": nobody, "pair_task": nobody}
    vectors: NDArray[np.float32] = session.run([EMBEDDING], feeds, only_what_is_asked())[0]
    return vectors


def only_what_is_asked() -> "onnxruntime.RunOptions":
    """Returns options of one run in which nodes that no wanted output needs are not computed."""
    import onnxruntime

    options = onnxruntime.RunOptions()
    options.only_execute_path_to_fetches = True
    return options


def open_session(path: Path, provider: str, *, threads: int) -> "onnxruntime.InferenceSession":
    """Returns an ONNX Runtime session on exactly the asked provider. Raises like `Runtime`."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("onnxruntime is not installed. Install `mtlops[cpu]` or `mtlops[gpu]`.") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise UsageError(f"execution provider {provider!r} is not installed. {suggest(provider, available)}")
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors share no base class
        raise ArtefactError(f"{path}: ONNX Runtime cannot load it ({error}). Export the bundle again.") from None
    if session.get_providers()[0] != provider:
        raise UsageError(f"{provider} could not start here; ONNX Runtime fell back to {session.get_providers()[0]}.")
    return session


def describe(tasks: Sequence[Task], answers: Mapping[str, Outputs], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns answers as plain values, one mapping a text.

    Each is `{"text": ..., "tasks": {task: {"label": ..., "probabilities": {class: share}}}}`; a multilabel
    label is a list; a regression has `{"value": ...}` instead.
    """
    by_name = {task.name: task for task in tasks}
    return [
        {"text": text, "tasks": {name: _describe_one(by_name[name], outputs, row) for name, outputs in answers.items()}}
        for row, text in enumerate(texts)
    ]


def _describe_one(task: Task, outputs: Outputs, row: int) -> dict[str, Any]:
    if outputs.values is not None:
        return {"value": float(outputs.values[row])}
    assert outputs.labels is not None and outputs.probabilities is not None
    label: str | list[str]
    if task.kind == "multilabel":
        label = [name for name, is_set in zip(task.classes, outputs.labels[row], strict=True) if is_set]
    else:
        label = task.classes[int(outputs.labels[row])]
    shares = {name: float(p) for name, p in zip(task.classes, outputs.probabilities[row], strict=True)}
    return {"label": label, "probabilities": shares}
