"""What a request asks of the model, and the answer as tensors: the same for REST and gRPC.

Inputs: `text` BYTES [N], or `input_ids` and `attention_mask` INT64 [N, S].
Outputs: for each task `<task>.label` BYTES [N] and `<task>.probabilities` FP32 [N, C], or `<task>.value` FP32 [N], or,
where it tags words, `<task>.tags` BYTES [N], a JSON object each (`description.describe_tags`), for texts only;
`embedding` FP32 [N, H] only when it is named.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.catalog import suggest
from mtlops.decoding import Outputs
from mtlops.errors import UsageError
from mtlops.serving.description import describe_tags, label_names
from mtlops.serving.limits import Limits
from mtlops.serving.passes import EMBEDDING
from mtlops.serving.refusal import Refusal, bad
from mtlops.serving.runtime import Runtime
from mtlops.serving.tensors import Tensor
from mtlops.tasks import Task

_MICROSECONDS = 1e6
_LONGEST_ID = 200


@dataclass(frozen=True)
class Question:
    """A valid request.

    Attributes:
        id: the client's, or a new one.
        texts: N texts; None where token ids were sent.
        ids: token ids of N rows; None where texts were sent.
        positions: of the wanted tasks, in the order of the graph.
        outputs: names of the wanted outputs, in the order of the answer.
        timeout_seconds: from its arrival until it must have been begun.
    """

    id: str
    texts: Sequence[str] | None
    ids: Sequence[Sequence[int]] | None
    positions: tuple[int, ...]
    outputs: tuple[str, ...]
    timeout_seconds: float

    @property
    def num_rows(self) -> int:
        """N."""
        return len(self.texts if self.texts is not None else self.ids or ())

    @property
    def wants_embedding(self) -> bool:
        """The answer holds embeddings."""
        return EMBEDDING in self.outputs


@dataclass(frozen=True)
class Turn:
    """When the model came to a question, in seconds of `time.monotonic`.

    Attributes:
        arrived: it began to wait.
        begun: a thread took it.
        ended: the last pass for it, and for those that were taken with it, was over.
    """

    arrived: float
    begun: float
    ended: float


@dataclass(frozen=True)
class Answer:
    """What the model said.

    Attributes:
        runtime: that said it.
        outputs: by task, N rows each.
        embeddings: (N, H), where they were asked for.
        turn: when.
    """

    runtime: Runtime
    outputs: Mapping[str, Outputs]
    embeddings: NDArray[np.float32] | None
    turn: Turn | None = None


def question(
    runtime: Runtime,
    limits: Limits,
    *,
    inputs: Sequence[Tensor],
    outputs: Sequence[str],
    parameters: Mapping[str, Any],
    request_id: Any,
) -> Question:
    """Returns what a request of the Open Inference Protocol asks.

    Raises:
        Refusal: something is malformed or too large; the reason names it.
    """
    by_name = {tensor.name: tensor for tensor in inputs}
    if len(by_name) < len(inputs):
        raise bad("inputs: a name is there twice.")
    if by_name.keys() == {"text"}:
        texts, ids = check_texts(_rows_of_text(by_name["text"]), limits, where="input 'text'"), None
    elif by_name.keys() == {"input_ids", "attention_mask"}:
        texts, ids = None, _token_ids(runtime, limits, by_name["input_ids"], mask=by_name["attention_mask"])
    else:
        raise bad(
            f"inputs: {', '.join(map(repr, by_name)) or 'none'}; this model takes 'text' (BYTES), or 'input_ids' and "
            f"'attention_mask' (INT64) together."
        )
    positions = wanted_positions(runtime, parameters.get("tasks"), where="parameters.tasks")
    names, positions = _wanted_outputs(runtime, outputs, positions)
    tagging = [runtime.tasks[position].name for position in positions if runtime.tasks[position].per_word]
    if tagging and texts is None:
        raise bad(
            f"inputs: task {tagging[0]!r} tags words, which token ids do not show. Send 'text', or name other tasks in "
            f"parameters.tasks."
        )
    found = Question(
        check_id(request_id), texts, ids, positions, names, _timeout(parameters.get("timeout"), limits)
    )  # fmt: skip
    check_pairs(found, limits)
    return found


def plain_question(runtime: Runtime, limits: Limits, body: Any) -> Question:
    """Returns what the body of POST /predict asks: {"text": [...], "tasks": [...]}. Raises Refusal."""
    if not isinstance(body, dict):
        raise bad('the body must be a JSON object: {"text": ["..."], "tasks": ["..."]}.')
    if unknown := [key for key in body if key not in ("text", "tasks", "id")]:
        raise bad(f"{unknown[0]!r}: unknown key. {suggest(unknown[0], ['text', 'tasks', 'id'])}")
    text = body.get("text")
    texts = [text] if isinstance(text, str) else text
    if not isinstance(texts, list) or not texts or not all(isinstance(one, str) for one in texts):
        raise bad("'text' must be a string, or a list of at least one string.")
    positions = wanted_positions(runtime, body.get("tasks"), where="'tasks'")
    found = Question(
        check_id(body.get("id")), check_texts(texts, limits, where="'text'"), None, positions,
        output_names(runtime, positions), limits.timeout_seconds,
    )  # fmt: skip
    check_pairs(found, limits)
    return found


def check_id(value: Any) -> str:
    """Returns the id of a request: the client's, or a new one. Raises Refusal when it is malformed."""
    if value is None or value == "":
        return uuid.uuid4().hex
    if not isinstance(value, str) or len(value) > _LONGEST_ID or not value.isprintable():
        raise bad(f"id: must be a string of at most {_LONGEST_ID} printable characters.")
    return value


def check_texts(texts: Sequence[str], limits: Limits, *, where: str) -> Sequence[str]:
    """Returns the texts. Raises Refusal when there are none or too many, or one is too long."""
    if not texts:
        raise bad(f"{where}: has no rows. Send at least one text.")
    if len(texts) > limits.rows:
        raise bad(f"{where}: has {len(texts)} rows; at most {limits.rows} are taken. Send several requests.")
    for position, text in enumerate(texts):
        if len(text) > limits.characters:
            raise bad(f"{where}: row {position} has {len(text)} characters; at most {limits.characters} are taken.")
    return texts


def check_pairs(asked: Question, limits: Limits) -> None:
    """Raises Refusal when a request asks for too many (row, task) pairs."""
    pairs = asked.num_rows * len(asked.positions)
    if pairs > limits.pairs:
        raise bad(
            f"{asked.num_rows} rows for {len(asked.positions)} tasks are {pairs} answers; at most {limits.pairs}."
        )


def wanted_positions(runtime: Runtime, tasks: Any, *, where: str) -> tuple[int, ...]:
    """Returns the positions of the asked tasks: a list of names, or one string with commas. Raises Refusal."""
    if tasks is None or tasks == "":
        return runtime.positions(None)
    names = [name.strip() for name in tasks.split(",")] if isinstance(tasks, str) else tasks
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise bad(f"{where}: must be names of tasks, as in 'a,b'.")
    try:
        return runtime.positions(names)
    except UsageError as error:
        raise bad(f"{where}: {error}") from None


def output_names(runtime: Runtime, positions: Sequence[int]) -> tuple[str, ...]:
    """Returns the names of all outputs of the tasks at these positions."""
    return tuple(name for p in positions for name in _outputs_of(runtime.tasks[p]))


def answer_tensors(asked: Question, answer: Answer) -> list[Tensor]:
    """Returns the wanted outputs."""
    tasks = {task.name: task for task in answer.runtime.tasks}
    return [_tensor(name, tasks, answer, asked) for name in asked.outputs]


def metadata(runtime: Runtime) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Returns the model's inputs and outputs, each with name, datatype and shape; -1 stands for any size."""
    inputs = [{"name": "text", "datatype": "BYTES", "shape": [-1]}]
    inputs += [{"name": name, "datatype": "INT64", "shape": [-1, -1]} for name in ("input_ids", "attention_mask")]
    outputs: list[dict[str, Any]] = []
    for task in runtime.tasks:
        if task.kind == "regression":
            outputs += [{"name": f"{task.name}.value", "datatype": "FP32", "shape": [-1]}]
            continue
        if task.per_word:
            outputs += [{"name": f"{task.name}.tags", "datatype": "BYTES", "shape": [-1]}]
            continue
        outputs += [
            {"name": f"{task.name}.label", "datatype": "BYTES", "shape": [-1]},
            {"name": f"{task.name}.probabilities", "datatype": "FP32", "shape": [-1, len(task.classes)]},
        ]
    if runtime.has_embedding:
        width = runtime.bundle.manifest["embedding"]["width"]
        outputs.append({"name": EMBEDDING, "datatype": "FP32", "shape": [-1, width]})
    return inputs, outputs


def _outputs_of(task: Task) -> tuple[str, ...]:
    names = ("value",) if task.kind == "regression" else ("tags",) if task.per_word else ("label", "probabilities")
    return tuple(f"{task.name}.{name}" for name in names)


def _tensor(name: str, tasks: Mapping[str, Task], answer: Answer, asked: Question) -> Tensor:
    if name == EMBEDDING:
        assert answer.embeddings is not None
        return Tensor(name, "FP32", answer.embeddings.shape, answer.embeddings)
    task_name, _, what = name.rpartition(".")
    task, outputs = tasks[task_name], answer.outputs[task_name]
    if what == "tags":
        assert asked.texts is not None
        rows = [describe_tags(task, outputs, row, text=text) for row, text in enumerate(asked.texts)]
        return Tensor(name, "BYTES", (len(rows),), [json.dumps(row, ensure_ascii=False) for row in rows])
    if what == "label":
        assert outputs.labels is not None
        labels = [label_names(task, outputs, row) or [] for row in range(len(outputs.labels))]
        texts = [json.dumps(names) if task.kind == "multilabel" else names[0] for names in labels]
        return Tensor(name, "BYTES", (len(texts),), texts)
    values = outputs.values if what == "value" else outputs.probabilities
    assert values is not None
    return Tensor(name, "FP32", values.shape, np.ascontiguousarray(values))


def _wanted_outputs(
    runtime: Runtime, names: Sequence[str], positions: tuple[int, ...]
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The wanted outputs, and the tasks that they need: named outputs decide, else all of the asked tasks."""
    if not names:
        return output_names(runtime, positions), positions
    owner = {name: p for p in positions for name in _outputs_of(runtime.tasks[p])}
    known = [*owner, *([EMBEDDING] if runtime.has_embedding else [])]
    for name in names:
        if name not in known:
            raise bad(f"output {name!r}: this model has none of that name for the asked tasks. {suggest(name, known)}")
    needed = {owner[name] for name in names if name in owner}
    return tuple(names), tuple(p for p in positions if p in needed)


def _rows_of_text(tensor: Tensor) -> Sequence[str]:
    if tensor.datatype != "BYTES":
        raise bad(f"input 'text': datatype {tensor.datatype}; texts are BYTES.")
    if len(tensor.shape) > 1 and tensor.shape[1:] != (1,):
        raise bad(f"input 'text': shape {list(tensor.shape)}; it must be [N] or [N, 1].")
    assert not isinstance(tensor.values, np.ndarray)
    return tensor.values


def _token_ids(runtime: Runtime, limits: Limits, ids: Tensor, *, mask: Tensor) -> list[list[int]]:
    most = runtime.tokenizer.max_tokens
    for tensor in (ids, mask):
        if tensor.datatype == "BYTES" or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise bad(f"input {tensor.name!r}: must be INT64 [N, S], not {tensor.datatype} {list(tensor.shape)}.")
        if tensor.shape != ids.shape:
            raise bad(f"input 'attention_mask': shape {list(mask.shape)} is not that of 'input_ids' {list(ids.shape)}.")
    rows, tokens = ids.shape
    if rows > limits.rows or tokens > most:
        raise bad(f"input 'input_ids': [{rows}, {tokens}]; at most [{limits.rows}, {most}] are taken.")
    id_values, mask_values = np.asarray(ids.values), np.asarray(mask.values)
    if ((mask_values != 0) & (mask_values != 1)).any():
        raise bad("input 'attention_mask': holds other numbers than 0 and 1.")
    lengths = mask_values.sum(axis=1)
    if (lengths == 0).any() or (np.arange(tokens) < lengths[:, None]).astype(np.int64).tolist() != mask_values.tolist():
        raise bad("input 'attention_mask': every row must be one or more 1, then 0 for padding.")
    words = runtime.tokenizer.vocabulary_size
    if id_values.min() < 0 or id_values.max() >= words:
        raise bad(f"input 'input_ids': this encoder's token ids go from 0 to {words - 1}.")
    return [row[:length].tolist() for row, length in zip(id_values, lengths, strict=True)]


def _timeout(value: Any, limits: Limits) -> float:
    """Triton's parameter `timeout`, in microseconds."""
    if value is None:
        return limits.timeout_seconds
    if type(value) is not int or value <= 0:
        raise Refusal(400, "parameters.timeout: must be a whole number of microseconds above 0.")
    return min(value / _MICROSECONDS, limits.timeout_seconds)
