"""A bundle that answers: tokenizer, one ONNX Runtime session, adapters and heads, decoding.

Shape suffixes: B rows, S tokens, P (row, task) pairs, C widest task's outputs, H hidden.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from mtlops.bundle import Bundle
from mtlops.catalog import PROVIDERS, REFERENCE_VARIANT, suggest
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.decoding import Calibration, Outputs, decode
from mtlops.errors import ArtefactError, UsageError
from mtlops.serving import bank as banks
from mtlops.serving.bank import Bank
from mtlops.serving.binding import DEVICES, BoundBank
from mtlops.serving.passes import (
    EMBEDDING,
    PAIRS,
    TOKEN_LOGITS,
    at_words,
    batches,
    embed,
    expected_logits,
    golden_logits,
    int64,
    open_session,
    run,
    run_words,
    task_logits,
)
from mtlops.tasks import Task

if TYPE_CHECKING:
    pass

_NOTHING = np.zeros((0, 0), dtype=np.float32)

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a golden logit on another machine type; on the same type it is 0."""


@dataclass(frozen=True)
class ServedTask:
    """A task as a runtime answers it.

    Attributes:
        task: what it is.
        calibration: how its logits become answers.
        bundle_id: of the bundle that its adapter and head come from.
        version: names its adapter and head (`bank.task_version`).
        tensors: its adapter and head; empty in bundles of earlier versions.
    """

    task: Task
    calibration: Calibration
    bundle_id: str
    version: str
    tensors: Mapping[str, NDArray[np.float32]]

    @classmethod
    def all_of(cls, bundle: Bundle, *, known: Iterable[Self] = ()) -> list[Self]:
        """Returns the tasks of a bundle; files of a task that is the same in `known` are not read again."""
        bundle_id, calibrations = bundle.id, bundle.calibrations
        same = {(one.version, one.task, one.calibration): one for one in known}
        found = []
        for task in bundle.tasks:
            version, calibration = banks.task_version(bundle, task.name), calibrations[task.name]
            if one := same.get((version, task, calibration)):
                found.append(replace(one, bundle_id=bundle_id))
            else:
                tensors = banks.task_tensors(bundle, task.name) if "graph" in bundle.manifest else {}
                found.append(cls(task, calibration, bundle_id, version, tensors))
        return found


class Runtime:
    """A session over a bundle's graph, ready to answer: its golden outputs have been reproduced. It never changes.

    Args:
        bundle: a checked bundle.
        provider: an ONNX Runtime execution provider; it is never silently replaced by another.
        threads: threads of one run; 0 lets ONNX Runtime choose.
        variant: of the bundle's graph, in which number format.

    Attributes:
        bundle: where it comes from.
        bundle_id: its id.
        variant: see above.
        served: its tasks as they are answered, in the order of their positions in the graph.
        tasks: the same, what they are.
        session: of ONNX Runtime; runtimes of several bundles may share it.
        bank: adapters and heads that take the place of the session's own.

    Raises:
        UsageError: ONNX Runtime or the provider is not installed.
        ArtefactError: the bundle has no such variant, the graph does not load or does not reproduce the golden outputs.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        provider: str = "CPUExecutionProvider",
        threads: int = 0,
        variant: str = REFERENCE_VARIANT,
    ) -> None:
        self.variant, self._device = variant, DEVICES.get(PROVIDERS.get(provider, provider))
        graph = bundle.variant(variant)["file"]
        self._tokenizer = Tokenizer(bundle.folder / "trunk/tokenizer.json", max_tokens=bundle.manifest["max_tokens"])
        self.session = open_session(bundle.folder / graph, provider, threads=threads)
        self.has_embedding = EMBEDDING in {output.name for output in self.session.get_outputs()}
        self._take(bundle, ServedTask.all_of(bundle))
        self.check_golden()

    @property
    def tokenizer(self) -> Tokenizer:
        """Turns texts into what the graph reads."""
        return self._tokenizer

    def can_take(self, bundle: Bundle) -> bool:
        """Returns whether `with_bundle` works: only adapters, heads and what follows them are different."""
        return bool(self.served[0].tensors) and _frame(self.bundle, self.variant) == _frame(bundle, self.variant)

    def with_bundle(self, bundle: Bundle) -> "Runtime":
        """Returns a runtime of another bundle over the same session; this one goes on answering as before.

        Files of tasks that are the same are not read again. Golden outputs are not checked.
        """
        return self._over_same_session(bundle, ServedTask.all_of(bundle, known=self.served))

    def with_tasks_of(self, other: "Runtime", names: Iterable[str]) -> "Runtime":
        """Returns a runtime that answers the named tasks as `other` does, and the rest as this one.

        `other` must be over the same session.
        """
        assert other.session is self.session
        theirs = {served.task.name: served for served in other.served if served.task.name in names}
        return self._over_same_session(self.bundle, [theirs.get(s.task.name, s) for s in self.served])

    def positions(self, tasks: Sequence[str] | None) -> tuple[int, ...]:
        """Returns the positions of the named tasks, in their order in the graph; None stands for all.

        Raises:
            UsageError: a name is not a task of the bundle.
        """
        names = [task.name for task in self.tasks]
        for name in tasks or ():
            if name not in names:
                raise UsageError(f"no task {name!r} in this bundle. {suggest(name, names)}")
        return tuple(position for position, name in enumerate(names) if tasks is None or name in tasks)

    def predict(self, texts: Sequence[str], *, tasks: Sequence[str] | None = None) -> dict[str, Outputs]:
        """Returns the answers of the named tasks (default: all) for each text, by task, in one pass.

        Raises:
            UsageError: a name is not a task of the bundle.
        """
        wanted = self.positions(tasks)
        if not texts:
            raise UsageError("no text to predict from. Give at least one.")
        input_ids, mask = pad(self._tokenizer.ids(texts), pad_id=self._tokenizer.pad_id)
        plain = [position for position in wanted if not self.tasks[position].per_word]
        logits = dict(zip(plain, run(self, input_ids, mask, plain), strict=True)) if plain else {}
        if tagging := [position for position in wanted if self.tasks[position].per_word]:
            words = self._tokenizer.word_tokens(texts)
            logits |= dict(zip(tagging, run_words(self, input_ids, mask, tagging, words=words), strict=True))
        return {self.tasks[position].name: self.decode(position, logits[position]) for position in wanted}

    def compute(
        self,
        ids: Sequence[Sequence[int]],
        pair_row: Sequence[int],
        pair_task: Sequence[int],
        *,
        embed_row: Sequence[int] = (),
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Returns the logits (P, C) of the wanted pairs and the embeddings (E, H) of the wanted rows.

        One pass, or one for each `PAIRS` pairs.

        Shapes: ids: B rows of token ids; pair_row, pair_task: P; embed_row: E positions of rows.
        """
        if len(pair_row) > PAIRS:
            parts = []
            for at in range(0, len(pair_row), PAIRS):
                rows = sorted(set(pair_row[at : at + PAIRS]))
                place = {row: position for position, row in enumerate(rows)}
                own = [place[row] for row in pair_row[at : at + PAIRS]]
                parts.append(self.compute([ids[row] for row in rows], own, pair_task[at : at + PAIRS])[0])
            return np.concatenate(parts), self._embed([ids[row] for row in embed_row])
        found = self.run(
            ["logits", *([EMBEDDING] if embed_row else [])], self._feeds(ids, pair_row, pair_task, embed_row)
        )
        return found[0], found[1] if embed_row else _NOTHING

    def compute_words(
        self,
        ids: Sequence[Sequence[int]],
        pair_row: Sequence[int],
        pair_task: Sequence[int],
        *,
        words: Mapping[int, NDArray[np.int64]],
        embed_row: Sequence[int] = (),
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], dict[int, NDArray[np.float32]]]:
        """Returns what `compute` does, and for the pairs that `words` names the logits (W, C) of each word.

        The logits of these pairs among all others mean nothing.

        Shapes: words: position of a pair -> (W,) tokens of its row's words, as `Tokenizer.word_tokens` returns them.
        """
        logits, of_words = [], dict[int, NDArray[np.float32]]()
        for at in range(0, len(pair_row), PAIRS):
            rows = sorted(set(pair_row[at : at + PAIRS]))
            place = {row: position for position, row in enumerate(rows)}
            wanted = [pair for pair in words if at <= pair < at + PAIRS]
            feeds = self._feeds(
                [ids[row] for row in rows], [place[row] for row in pair_row[at : at + PAIRS]],
                pair_task[at : at + PAIRS],
            )  # fmt: skip
            found, tokens = self.run(
                ["logits", TOKEN_LOGITS], {**feeds, "word_pair": int64([pair - at for pair in wanted])}
            )
            logits.append(found)
            of_words |= {
                pair: at_words(one[None], words[pair][None])[0] for pair, one in zip(wanted, tokens, strict=True)
            }
        return np.concatenate(logits), self._embed([ids[row] for row in embed_row]), of_words

    def _feeds(
        self,
        ids: Sequence[Sequence[int]],
        pair_row: Sequence[int],
        pair_task: Sequence[int],
        embed_row: Sequence[int] = (),
    ) -> dict[str, NDArray[np.int64]]:
        input_ids, mask = pad(ids, pad_id=self._tokenizer.pad_id)
        feeds = {"input_ids": input_ids, "attention_mask": mask}
        feeds |= {"pair_row": int64(pair_row), "pair_task": int64(pair_task)}
        return {**feeds, "embed_row": int64(embed_row)} if embed_row else feeds

    def run(self, names: Sequence[str], feeds: Mapping[str, NDArray[Any]], /) -> list[NDArray[Any]]:
        """Returns the named outputs of a pass of the session with this runtime's adapters and heads."""
        if self._bound is not None:
            return self._bound.run(self.session, names, feeds)
        found: list[NDArray[Any]] = self.session.run(names, {**feeds, **self.bank})
        return found

    def _embed(self, ids: Sequence[Sequence[int]]) -> NDArray[np.float32]:
        return embed(self.session, *pad(ids, pad_id=self._tokenizer.pad_id)) if ids else _NOTHING

    def decode(self, position: int, logits: NDArray[np.float32]) -> Outputs:
        """Returns the answers of the task at a position from its logits (N, C), columns of wider tasks included.

        Of a task that tags words they are (N, W, C), as `run_words` returns them.
        """
        served = self.served[position]
        return decode(served.task, logits[..., : served.task.num_outputs], served.calibration)

    def logits(self, texts: Sequence[str], task: str) -> NDArray[np.float32]:
        """Returns one task's logits (N, C) in label units, computed in batches of similar length.

        Those of a task that tags words are (N, W, C), not-a-number where a row has no such word, or its text is cut.

        Raises:
            UsageError: `task` is not a task of the bundle.
        """
        (position,) = self.positions([task])
        return task_logits(self, self._tokenizer, self.tasks, texts, position=position)

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Returns the vectors (N, H) that drift watches, computed in batches of similar length.

        Raises:
            ArtefactError: the bundle's graph does not give them.
        """
        self.check_embedding()
        found: dict[int, NDArray[np.float32]] = {}
        for rows, batch in batches(self._tokenizer, texts):
            found |= dict(zip(rows, embed(self.session, *batch), strict=True))
        return np.stack([found[i] for i in range(len(texts))])

    def check_embedding(self) -> None:
        """Checks that the graph gives the vectors that drift watches. Raises ArtefactError when it does not."""
        if not self.has_embedding:
            raise ArtefactError(f"{self.bundle.folder}: its graph has no output `embedding`. Export the bundle again.")

    def check_unchanged(self, before: "Runtime") -> None:
        """Checks that tasks with the same adapter and head as in `before` answer its shortest golden text alike.

        Raises:
            ArtefactError: a bit is different. (Where the sizes of the stacked adapters differ, rounding may, too.)
        """
        if {n: t.shape for n, t in self.bank.items()} != {n: t.shape for n, t in before.bank.items()}:
            return
        versions = {one.task.name: one.version for one in before.served}
        text = min((row["text"] for row in before.bundle.golden()), key=len)
        was, now = before.golden_answer(text), self.golden_answer(text)
        for one in self.served:
            name = one.task.name
            if versions.get(name) == one.version and was[name] != now[name]:
                raise ArtefactError(f"{self.bundle.folder}: task {name} did not change, but its answers did.")

    def check_golden(self, rows: slice = slice(None)) -> None:
        """Checks that expected logits are reproduced, one text a pass. Raises ArtefactError when they are not.

        `rows`: which, the shortest text first.
        """
        limit = self.bundle.variant(self.variant).get("golden_tolerance", GOLDEN_TOLERANCE)
        for row in sorted(self.bundle.golden(), key=lambda row: len(row["text"]))[rows]:
            answer = self.golden_answer(row["text"])
            for task, expected in expected_logits(row, self.variant).items():
                error = float(np.abs(np.subtract(answer[task], expected)).max())
                if not error <= limit:
                    raise ArtefactError(
                        f"{self.bundle.folder}/golden.json: variant {self.variant}, task {task}: a logit differs by "
                        f"{error:.2g} (limit {limit:g}). Do not serve this bundle here; export it again."
                    )

    def golden_answer(self, text: str) -> dict[str, list[float]]:
        """Returns the logits by task of a golden text; they are computed once."""
        if text not in self._golden:
            (self._golden[text],) = golden_logits(self, self._tokenizer, self.tasks, [text])
        return self._golden[text]

    def _take(self, bundle: Bundle, served: Sequence[ServedTask]) -> None:
        self.bundle, self.bundle_id, self.served = bundle, bundle.id, tuple(served)
        self.tasks: tuple[Task, ...] = tuple(one.task for one in served)
        self.bank: Bank = banks.stack([one.tensors for one in served]) if served[0].tensors else {}
        self._bound = BoundBank(self.bank, device=self._device) if self._device and self.bank else None
        self._golden: dict[str, dict[str, list[float]]] = {}

    def _over_same_session(self, bundle: Bundle, served: Sequence[ServedTask]) -> "Runtime":
        made = object.__new__(Runtime)
        made.variant, made._tokenizer, made.session = self.variant, self._tokenizer, self.session
        made._device = self._device
        made.has_embedding = self.has_embedding
        made._take(bundle, served)
        return made


def _frame(bundle: Bundle, variant: str) -> tuple[Any, ...] | None:
    """All of a bundle that a session, its tokenizer and its bank's names depend on; None without that variant."""
    if variant not in bundle.variants:
        return None
    files, facts = bundle.manifest["files"], bundle.variant(variant)
    structure = (
        bundle.manifest.get("graph", {}).get("structure") if variant == REFERENCE_VARIANT else facts["structure"]
    )
    names = ("trunk/tokenizer.json", f"{facts['file']}.data")
    return bundle.manifest["max_tokens"], structure, *(files.get(name) for name in names)
