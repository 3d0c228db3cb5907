"""Passes of the graph: what a session is fed with, and what comes out, by text and task.

Shape suffixes: B rows, S tokens, W words, C widest task's outputs, H hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtlops.catalog import PROVIDERS, REFERENCE_VARIANT, suggest
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.errors import ArtefactError, UsageError
from mtlops.tasks import Task

if TYPE_CHECKING:
    import onnxruntime

_ROWS = 32
_ERRORS_ONLY = 3

EMBEDDING = "embedding"
"""The graph's output of one vector (H,) a row, which drift watches."""

TOKEN_LOGITS = "token_logits"  # noqa: S105 - tokens of a text
"""The graph's output of logits (C,) for each token of pairs whose tasks tag words."""

PAIRS = 32
"""(row, task) pairs of one pass: its memory grows with them, about 1 MB each with 384 numbers and 64 tokens."""


class Runs(Protocol):
    """What computes the graph: a runtime with its adapters and heads, or a bare session with those it came with."""

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns the named outputs of a pass."""


def expected_logits(row: Mapping[str, Any], variant: str) -> Mapping[str, list[float]]:
    """Returns what a variant answers to a golden row, by task."""
    found: Mapping[str, list[float]] = row["logits"] if variant == REFERENCE_VARIANT else row["variants"][variant]
    return found


def golden_logits(
    session: Runs, tokenizer: Tokenizer, tasks: Sequence[Task], texts: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the logits of each text by task, one text a pass, so that no text's answer depends on another.

    Of a task that tags words they are a list for each word that the model sees.
    """
    rows, positions = [], range(len(tasks))
    for text in texts:
        inputs = pad(tokenizer.ids([text]), pad_id=tokenizer.pad_id)
        parts = [run(session, *inputs, positions[at : at + PAIRS]) for at in range(0, len(tasks), PAIRS)]
        found = dict(enumerate(np.concatenate(parts)[:, 0]))
        if tagging := [position for position, task in enumerate(tasks) if task.per_word]:
            words = tokenizer.word_tokens([text])
            of_words = run_words(session, *inputs, tagging, words=words)[:, 0]
            found |= {position: of_words[i][words[0] >= 0] for i, position in enumerate(tagging)}
        rows.append({task.name: found[i][..., : task.num_outputs].tolist() for i, task in enumerate(tasks)})
    return rows


def task_logits(
    session: Runs, tokenizer: Tokenizer, tasks: Sequence[Task], texts: Sequence[str], *, position: int
) -> NDArray[np.float32]:
    """Returns the logits (N, C), or (N, W, C) of words, of the task at a position, in batches of similar length."""
    task = tasks[position]
    if task.per_word:
        words = tokenizer.word_tokens(texts)
        result = np.full((*words.shape, task.num_outputs), np.nan, dtype=np.float32)
        for rows, batch in batches(tokenizer, texts):
            result[rows] = run_words(session, *batch, [position], words=words[rows])[0, :, :, : task.num_outputs]
        return result
    result = np.empty((len(texts), task.num_outputs), dtype=np.float32)
    for rows, batch in batches(tokenizer, texts):
        result[rows] = run(session, *batch, [position])[0, :, : task.num_outputs]
    return result


def batches(
    tokenizer: Tokenizer, texts: Sequence[str]
) -> Iterable[tuple[list[int], tuple[NDArray[np.int64], NDArray[np.int64]]]]:
    """Yields the positions of texts of similar length, and their token ids and mask, padded to the longest."""
    ids = tokenizer.ids(texts)
    order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), i))
    for start in range(0, len(order), _ROWS):
        rows = order[start : start + _ROWS]
        yield rows, pad([ids[i] for i in rows], pad_id=tokenizer.pad_id)


def run(
    session: Runs, input_ids: NDArray[np.int64], mask: NDArray[np.int64], positions: Sequence[int]
) -> NDArray[np.float32]:
    """Returns the logits of every row for every task position: (len(positions), B, C) float32."""
    num_rows = len(input_ids)
    feeds = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "pair_row": np.tile(np.arange(num_rows, dtype=np.int64), len(positions)),
        "pair_task": np.repeat(np.asarray(positions, dtype=np.int64), num_rows),
    }
    (logits,) = session.run(["logits"], feeds)
    by_task: NDArray[np.float32] = logits.reshape(len(positions), num_rows, -1)
    return by_task


def run_words(
    session: Runs,
    input_ids: NDArray[np.int64],
    mask: NDArray[np.int64],
    positions: Sequence[int],
    *,
    words: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Returns the logits of every row's words for tasks that tag words: (len(positions), B, W, C) float32.

    `words`: (B, W) as `Tokenizer.word_tokens` returns them; where a row has no such word, logits are not-a-number.
    """
    num_rows, num_tasks = len(input_ids), len(positions)
    pair_row = np.tile(np.arange(num_rows, dtype=np.int64), num_tasks)
    feeds = {
        "input_ids": input_ids,
        "attention_mask": mask,
        "pair_row": pair_row,
        "pair_task": np.repeat(np.asarray(positions, dtype=np.int64), num_rows),
        "word_pair": np.arange(len(pair_row), dtype=np.int64),
    }
    (found,) = session.run([TOKEN_LOGITS], feeds)
    by_task = found.reshape(num_tasks, num_rows, found.shape[1], -1)
    return at_words(by_task, words)


def at_words(logits: NDArray[np.float32], words: NDArray[np.int64]) -> NDArray[np.float32]:
    """Returns the logits (..., B, W, C) of words from those of tokens (..., B, S, C); not-a-number without a word."""
    rows = np.arange(len(words))[:, None]
    picked = logits[..., rows, np.maximum(words, 0), :]
    of_words: NDArray[np.float32] = np.where(words[..., None] >= 0, picked, np.float32(np.nan))
    return of_words


def embed(
    session: "onnxruntime.InferenceSession", input_ids: NDArray[np.int64], mask: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Returns the embeddings of every row: (B, H) float32. Nothing above the embedding's layer is computed."""
    nobody = int64(())
    feeds = {"input_ids": input_ids, "attention_mask": mask, "pair_row": nobody, "pair_task": nobody}
    vectors: NDArray[np.float32] = session.run([EMBEDDING], {**feeds, "embed_row": int64(range(len(input_ids)))})[0]
    return vectors


def int64(values: Sequence[int]) -> NDArray[np.int64]:
    """Returns whole numbers as an input of the graph."""
    return np.asarray(values, dtype=np.int64)


def open_session(path: Path, provider: str, *, threads: int, optimised: bool = True) -> "onnxruntime.InferenceSession":
    """Returns an ONNX Runtime session on exactly the asked provider. Raises like `Runtime`.

    Not `optimised`, every node is computed as it stands in the graph: slow, and rounded otherwise.
    """
    provider, available = check_provider(provider)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = _ERRORS_ONLY  # it would warn of every adapter that can be replaced
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        # What TensorRT cannot do is done by CUDA, before the CPU is asked.
        more = [name for name in (PROVIDERS["cuda"],) if provider == PROVIDERS["tensorrt"] and name in available]
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider, *more])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors share no base class
        raise ArtefactError(f"{path}: ONNX Runtime cannot load it ({error}). Export the bundle again.") from None
    if session.get_providers()[0] != provider:
        raise UsageError(f"{provider} could not start here; ONNX Runtime fell back to {session.get_providers()[0]}.")
    return session


def check_provider(provider: str) -> tuple[str, list[str]]:
    """Returns an execution provider by its own name, and all that are installed.

    Raises:
        UsageError: ONNX Runtime or the provider is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("onnxruntime is not installed. Install `mtlops[cpu]` or `mtlops[gpu]`.") from None
    available: list[str] = onnxruntime.get_available_providers()
    name = PROVIDERS.get(provider, provider)
    if name not in available:
        raise UsageError(f"execution provider {name!r} is not installed. {suggest(name, available)}")
    return name, available
