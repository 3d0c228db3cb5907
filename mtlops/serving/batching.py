"""Requests wait here for the model; threads take them, put rows of similar length together and compute.

A thread takes what waits, never waits for more unless told to, and leaves its share to idle threads. On a CPU a batch
saves little, and padding a short text to a long one's length costs more than that: rows are grouped by length.
"""

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtlops.serving.limits import Limits
from mtlops.serving.questions import Answer, Question
from mtlops.serving.refusal import Refusal
from mtlops.serving.runtime import Runtime

logger = logging.getLogger(__name__)

_SLACK_TOKENS = 8
_SLACK_SHARE = 1.25
_RETRY_SECONDS = 1


@dataclass(eq=False)
class Work:
    """A question on its way through the model.

    Attributes:
        question: what is asked.
        runtime: who answers; chosen when the request arrived.
        with_embedding: embeddings are wanted, by the client or by the log.
        future: gets the answer in its own event loop.
        deadline: time of `time.monotonic` after which it is not begun.
        arrived: time of `time.monotonic`.
    """

    question: Question
    runtime: Runtime
    with_embedding: bool
    future: "asyncio.Future[Answer]"
    deadline: float
    arrived: float = field(default_factory=time.monotonic)


@dataclass(eq=False)
class _Row:
    """A row of a work, and where its logits go."""

    work: Work
    number: int
    ids: Sequence[int]


class Batcher:
    """A bounded queue and the threads behind it.

    Args:
        limits: of the queue.
        threads: that compute at the same time.
        batch_rows: rows that are computed together at most.
        delay_seconds: that a thread waits for more rows before it computes fewer; 0 waits for nothing.
        observe: is told the number of rows of each pass.

    Attributes:
        threads: those that compute.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        threads: int,
        batch_rows: int,
        delay_seconds: float = 0.0,
        observe: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._limits, self._batch_rows, self._delay_seconds = limits, batch_rows, delay_seconds
        self._observe = observe
        self._waiting: deque[Work] = deque()
        self._num_rows = 0
        self._idle = 0
        self._is_open = True
        self._changed = threading.Condition()
        self.threads = [threading.Thread(target=self._work, name=f"model-{i}", daemon=True) for i in range(threads)]
        for thread in self.threads:
            thread.start()

    @property
    def waiting_rows(self) -> int:
        """Rows that wait."""
        return self._num_rows

    def submit(self, question: Question, runtime: Runtime, *, with_embedding: bool) -> "asyncio.Future[Answer]":
        """Returns the future answer, in the running event loop.

        Raises:
            Refusal: too much waits already.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        work = Work(question, runtime, with_embedding, future, time.monotonic() + question.timeout_seconds)
        with self._changed:
            if not self._is_open:
                raise Refusal(503, "the server is stopping. Ask another one.", retry_after_seconds=_RETRY_SECONDS)
            if self._num_rows + question.num_rows > self._limits.queue_rows and self._num_rows:
                raise Refusal(
                    429, f"{self._num_rows} rows wait already; at most {self._limits.queue_rows} may. Try again later.",
                    retry_after_seconds=_RETRY_SECONDS,
                )  # fmt: skip
            self._waiting.append(work)
            self._num_rows += question.num_rows
            self._changed.notify()
        return future

    def close(self) -> None:
        """Answers what waits, takes nothing new, and ends the threads."""
        with self._changed:
            self._is_open = False
            self._changed.notify_all()
        for thread in self.threads:
            thread.join()

    def _work(self) -> None:
        while works := self._take():
            begun, now = [], time.monotonic()
            for work in works:
                if now > work.deadline:
                    _fail(work, Refusal(504, "the model was not free in time. Try again later.", retry_after_seconds=1))
                elif not work.future.cancelled():
                    begun.append(work)
            try:
                self._answer(begun)
            except Exception:
                logger.exception("%d requests failed in the model", len(begun))
                for work in begun:
                    _fail(work, Refusal(500, "the model failed. The server's log says why."))

    def _take(self) -> list[Work]:
        """Waits for work and takes the thread's share of it, the oldest first, all of one runtime; none at the end."""
        with self._changed:
            while True:
                self._idle += 1
                self._wait()
                self._idle -= 1
                if self._waiting:
                    return self._share()
                if not self._is_open:
                    return []

    def _wait(self) -> None:
        """Waits for work, and then for more of it if it may; meanwhile another thread can take it all."""
        while not self._waiting and self._is_open:
            self._changed.wait()
        if self._delay_seconds and self._waiting:
            until = self._waiting[0].arrived + self._delay_seconds
            while self._num_rows < self._batch_rows and self._is_open and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)

    def _share(self) -> list[Work]:
        share = min(self._batch_rows, -(-self._num_rows // (self._idle + 1)))
        taken = [self._waiting.popleft()]
        rows = taken[0].question.num_rows
        while self._waiting and self._fits(taken[0], rows, share):
            taken.append(self._waiting.popleft())
            rows += taken[-1].question.num_rows
        self._num_rows -= rows
        if self._waiting:
            self._changed.notify()
        return taken

    def _fits(self, first: Work, rows: int, share: int) -> bool:
        following = self._waiting[0]
        return following.runtime is first.runtime and rows + following.question.num_rows <= share

    def _answer(self, works: list[Work]) -> None:
        rows = list(_rows(works))
        logits: dict[Work, list[NDArray[np.float32] | None]] = {w: [None] * w.question.num_rows for w in works}
        vectors: dict[Work, list[NDArray[np.float32] | None]] = {w: [None] * w.question.num_rows for w in works}
        for group in _groups(rows, most=self._batch_rows):
            self._observe(len(group))
            pair_row = [i for i, row in enumerate(group) for _ in row.work.question.positions]
            pair_task = [position for row in group for position in row.work.question.positions]
            embed_row = [i for i, row in enumerate(group) if row.work.with_embedding]
            found, embeddings = group[0].work.runtime.compute(
                [row.ids for row in group], pair_row, pair_task, embed_row=embed_row
            )
            for i, vector in zip(embed_row, embeddings, strict=True):
                vectors[group[i].work][group[i].number] = vector
            at = 0
            for row in group:
                count = len(row.work.question.positions)
                logits[row.work][row.number] = found[at : at + count]
                at += count
        for work in works:
            _succeed(work, _decoded(work, logits[work], vectors[work]))


def _rows(works: list[Work]) -> Iterator[_Row]:
    """The rows of all works as token ids; their texts are tokenised together."""
    texts = [text for work in works for text in work.question.texts or ()]
    tokens = iter(works[0].runtime.tokenizer.ids(texts) if texts else ())
    for work in works:
        ids = work.question.ids if work.question.ids is not None else [next(tokens) for _ in work.question.texts or ()]
        for number, row in enumerate(ids):
            yield _Row(work, number, row)


def _groups(rows: list[_Row], *, most: int) -> Iterator[list[_Row]]:
    """Rows of similar length, at most so many together; padding stays below a fifth."""
    group: list[_Row] = []
    for row in sorted(rows, key=lambda row: len(row.ids)):
        if group and (len(group) == most or len(row.ids) > len(group[0].ids) * _SLACK_SHARE + _SLACK_TOKENS):
            yield group
            group = []
        group.append(row)
    if group:
        yield group


def _decoded(
    work: Work, logits: Sequence[NDArray[np.float32] | None], vectors: Sequence[NDArray[np.float32] | None]
) -> Answer:
    runtime, stacked = work.runtime, np.stack([row for row in logits if row is not None])
    outputs = {
        runtime.tasks[position].name: runtime.decode(position, stacked[:, i])
        for i, position in enumerate(work.question.positions)
    }
    found = [vector for vector in vectors if vector is not None]
    return Answer(runtime, outputs, np.stack(found) if found else None)


def _succeed(work: Work, answer: Answer) -> None:
    work.future.get_loop().call_soon_threadsafe(_set, work.future, answer)


def _fail(work: Work, refusal: Refusal) -> None:
    work.future.get_loop().call_soon_threadsafe(_set, work.future, refusal)


def _set(future: "asyncio.Future[Answer]", result: Answer | Refusal) -> None:
    if future.done():
        return
    if isinstance(result, Answer):
        future.set_result(result)
    else:
        future.set_exception(result)
