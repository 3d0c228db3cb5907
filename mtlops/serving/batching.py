"""Requests wait here for the model; threads take them, put rows of similar length together and compute.

A thread takes what waits, never waits for more unless told to, and leaves its share to idle threads. On a CPU a batch
saves little, and padding a short text to a long one's length costs more than that: rows are grouped by length.
"""

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtlops.serving.limits import Limits
from mtlops.serving.questions import Answer, Question, Turn
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


@dataclass(eq=False, slots=True)
class _Row:
    """A row of a work.

    Attributes:
        work: see above.
        ids: its tokens.
        words: the tokens of its words (W,), where a task is asked for that tags them.
        at: where the logits of its tasks begin in those of the pass.
        vector: its embedding.
        of_words: the logits (W, C) of its words by position of a task.
    """

    work: Work
    ids: Sequence[int]
    words: NDArray[np.int64] | None = None
    at: int = 0
    vector: NDArray[np.float32] | None = None
    of_words: dict[int, NDArray[np.float32]] = field(default_factory=dict)


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
        self._lock = threading.Lock()
        # Wakes threads that sleep. A Condition is written in Python: it costs a request more than all else here.
        self._wake: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._sleeping = 0
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
        with self._lock:
            if not self._is_open:
                raise Refusal(503, "the server is stopping. Ask another one.", retry_after_seconds=_RETRY_SECONDS)
            if self._num_rows + question.num_rows > self._limits.queue_rows and self._num_rows:
                raise Refusal(
                    429, f"{self._num_rows} rows wait already; at most {self._limits.queue_rows} may. Try again later.",
                    retry_after_seconds=_RETRY_SECONDS,
                )  # fmt: skip
            self._waiting.append(work)
            self._num_rows += question.num_rows
            self._wake_one()
        return future

    def close(self) -> None:
        """Answers what waits, takes nothing new, and ends the threads."""
        with self._lock:
            self._is_open = False
            for _ in self.threads:
                self._wake.put(None)
        for thread in self.threads:
            thread.join()

    def _wake_one(self) -> None:
        """Wakes a thread if one sleeps; where several are woken for the same work, all but one sleep again."""
        if self._sleeping:
            self._wake.put(None)

    def _work(self) -> None:
        while works := self._take():
            now = time.monotonic()
            late = [work for work in works if now > work.deadline]
            begun = [work for work in works if now <= work.deadline and not work.future.cancelled()]
            _refuse(late, 504, "the model was not free in time. Try again later.", retry_after_seconds=_RETRY_SECONDS)
            try:
                if begun:
                    self._answer(begun, now)
            except Exception:
                logger.exception("%d requests failed in the model", len(begun))
                _refuse(begun, 500, "the model failed. The server's log says why.")

    def _take(self) -> list[Work]:
        """Waits for work and takes the thread's share of it, the oldest first, all of one runtime; none at the end."""
        with self._lock:
            self._idle += 1
            try:
                self._wait()
            finally:
                self._idle -= 1
            return self._share() if self._waiting else []

    def _wait(self) -> None:
        """Waits, with the lock held, for work, and then for more of it if it may; meanwhile another may take it all."""
        while self._is_open:
            left = None
            if self._waiting:
                left = self._waiting[0].arrived + self._delay_seconds - time.monotonic() if self._delay_seconds else 0.0
                if left <= 0 or self._num_rows >= self._batch_rows:
                    return
            self._sleep(left)

    def _sleep(self, seconds: float | None) -> None:
        """Lets go of the lock until the thread is woken, or for so many seconds."""
        self._sleeping += 1
        self._lock.release()
        try:
            with contextlib.suppress(queue.Empty):
                self._wake.get(timeout=seconds)
        finally:
            self._lock.acquire()
            self._sleeping -= 1

    def _share(self) -> list[Work]:
        share = min(self._batch_rows, -(-self._num_rows // (self._idle + 1)))
        taken = [self._waiting.popleft()]
        rows = taken[0].question.num_rows
        while self._waiting and self._fits(taken[0], rows, share):
            taken.append(self._waiting.popleft())
            rows += taken[-1].question.num_rows
        self._num_rows -= rows
        if self._waiting:
            self._wake_one()
        return taken

    def _fits(self, first: Work, rows: int, share: int) -> bool:
        following = self._waiting[0]
        return following.runtime is first.runtime and rows + following.question.num_rows <= share

    def _answer(self, works: list[Work], begun: float) -> None:
        rows, parts, at = list(_rows(works)), [], 0
        for group in _groups(rows, most=self._batch_rows):
            self._observe(len(group))
            pair_row = [i for i, row in enumerate(group) for _ in row.work.question.positions]
            pair_task = [position for row in group for position in row.work.question.positions]
            embed_row = [i for i, row in enumerate(group) if row.work.with_embedding]
            found, embeddings = _computed(group, pair_row, pair_task, embed_row)
            parts.append(found)
            for i, vector in zip(embed_row, embeddings, strict=True):
                group[i].vector = vector
            for row in group:
                row.at, at = at, at + len(row.work.question.positions)
        logits = parts[0] if len(parts) == 1 else np.concatenate(parts)
        _tell(works, _answers(works, rows, logits=logits, begun=begun))


def _computed(
    group: Sequence[_Row], pair_row: Sequence[int], pair_task: Sequence[int], embed_row: Sequence[int]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The logits of all pairs and the embeddings of some rows; logits of words go to their rows."""
    runtime, ids = group[0].work.runtime, [row.ids for row in group]
    words = {
        pair: tokens
        for pair, (row, task) in enumerate(zip(pair_row, pair_task, strict=True))
        if runtime.tasks[task].per_word and (tokens := group[row].words) is not None
    }
    if not words:
        return runtime.compute(ids, pair_row, pair_task, embed_row=embed_row)
    logits, embeddings, of_words = runtime.compute_words(ids, pair_row, pair_task, words=words, embed_row=embed_row)
    for pair, found in of_words.items():
        group[pair_row[pair]].of_words[pair_task[pair]] = found
    return logits, embeddings


def _rows(works: list[Work]) -> Iterator[_Row]:
    """The rows of all works as token ids; their texts are tokenised together."""
    texts = [text for work in works for text in work.question.texts or ()]
    tokens = iter(works[0].runtime.tokenizer.ids(texts) if texts else ())
    for work in works:
        asked, tasks = work.question, work.runtime.tasks
        ids = asked.ids if asked.ids is not None else [next(tokens) for _ in asked.texts or ()]
        if asked.texts is not None and any(tasks[position].per_word for position in asked.positions):
            words = work.runtime.tokenizer.word_tokens(asked.texts)
            yield from (_Row(work, row, of_row) for row, of_row in zip(ids, words, strict=True))
        else:
            yield from (_Row(work, row) for row in ids)


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


def _answers(works: list[Work], rows: Sequence[_Row], *, logits: NDArray[np.float32], begun: float) -> Iterator[Answer]:
    """The answer to each work from the logits of all; a task is decoded once, for all rows that want it."""
    ended, runtime, of_task = time.monotonic(), works[0].runtime, dict[int, list[int]]()
    for row in rows:
        for i, position in enumerate(row.work.question.positions):
            of_task.setdefault(position, []).append(row.at + i)
    decoded = {
        position: runtime.decode(position, _word_logits(rows, position) if runtime.tasks[position].per_word
                                 else logits[pairs])
        for position, pairs in of_task.items()
    }  # fmt: skip
    taken, seen = dict.fromkeys(decoded, 0), 0
    for work in works:
        count, outputs = work.question.num_rows, {}
        for position in work.question.positions:
            start, every = taken[position], decoded[position]
            taken[position] = start + count
            is_alone = count == len(of_task[position])
            outputs[runtime.tasks[position].name] = every if is_alone else every.part(slice(start, start + count))
        vectors = [row.vector for row in rows[seen : seen + count] if row.vector is not None]
        seen += count
        yield Answer(runtime, outputs, np.stack(vectors) if vectors else None, Turn(work.arrived, begun, ended))


def _word_logits(rows: Sequence[_Row], position: int) -> NDArray[np.float32]:
    """The logits (N, W, C) of the words of all rows that ask for a task, not-a-number behind a row's last word."""
    parts = [row.of_words[position] for row in rows if position in row.of_words]
    found = np.full((len(parts), max(map(len, parts)), parts[0].shape[1]), np.nan, dtype=np.float32)
    for row, part in enumerate(parts):
        found[row, : len(part)] = part
    return found


def _refuse(works: Sequence[Work], status: int, reason: str, *, retry_after_seconds: int | None = None) -> None:
    _tell(works, [Refusal(status, reason, retry_after_seconds=retry_after_seconds) for _ in works])


def _tell(works: Sequence[Work], results: Iterable[Answer | Refusal]) -> None:
    """Gives each work its result, in the event loop it came from: each loop is woken once."""
    of_loop: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[Answer], Answer | Refusal]]] = {}
    for work, result in zip(works, results, strict=True):
        of_loop.setdefault(work.future.get_loop(), []).append((work.future, result))
    for loop, found in of_loop.items():
        loop.call_soon_threadsafe(_set, found)


def _set(found: Sequence[tuple["asyncio.Future[Answer]", Answer | Refusal]]) -> None:
    for future, result in found:
        if future.done():
            continue
        if isinstance(result, Answer):
            future.set_result(result)
        else:
            future.set_exception(result)
