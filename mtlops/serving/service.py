"""What answers, whatever protocol asked: the present runtime, the queue before it, metrics and the prediction log."""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mtlops.serving.batching import Batcher
from mtlops.serving.events import EventSender
from mtlops.serving.limits import Limits
from mtlops.serving.log import PredictionLog
from mtlops.serving.log_rows import Feedback, Record
from mtlops.serving.metrics import Metrics
from mtlops.serving.questions import Answer, Question
from mtlops.serving.refusal import Refusal
from mtlops.serving.runtime import Runtime
from mtlops.serving.tracing import Traced, Tracing
from mtlops.serving.trials import Trial

logger = logging.getLogger(__name__)

_MINUTE = 60.0


@dataclass(frozen=True)
class Serving:
    """What is served at a moment.

    Attributes:
        runtime: the champion's.
        trial: a challenger that answers some requests, or only looks on.
    """

    runtime: Runtime
    trial: Trial | None = None


class Service:
    """Answers questions.

    Args:
        batcher: computes.
        limits: of a request.
        metrics: counts.
        log: keeps what was answered; None keeps nothing.
        events: sends what was answered to somebody else; None sends nothing.
        tracing: sends how long it took; None sends nothing.
        embeddings_a_minute: rows whose embedding goes into the log; each costs more of the model.
        access_log: a line for each request goes to the log of the process.
    """

    def __init__(
        self,
        batcher: Batcher,
        limits: Limits,
        *,
        metrics: Metrics,
        log: PredictionLog | None,
        events: EventSender | None = None,
        tracing: Tracing | None = None,
        embeddings_a_minute: int = 0,
        access_log: bool = False,
    ) -> None:
        self.limits, self.metrics = limits, metrics
        self.is_draining = False
        self._batcher, self._log, self._events, self._access_log = batcher, log, events, access_log
        self._tracing = tracing
        self._embeddings = _Budget(embeddings_a_minute)
        self._serving: Serving | None = None

    @property
    def is_ready(self) -> bool:
        """A runtime whose golden outputs were reproduced is there, and the server is not stopping."""
        return self._serving is not None and not self.is_draining

    @property
    def serving(self) -> Serving:
        """What is served now. Raises Refusal while nothing is."""
        if self._serving is None:
            raise Refusal(503, "the model is not loaded yet. Ask again soon.", retry_after_seconds=1)
        return self._serving

    @property
    def runtime(self) -> Runtime:
        """The champion's runtime. Raises Refusal while there is none."""
        return self.serving.runtime

    def serve(self, serving: Serving) -> None:
        """Serves this from now on; requests that were accepted before finish on what was served then."""
        self._serving = serving
        self.metrics.serving(serving.runtime)

    def check_model(self, name: str, version: str = "") -> Runtime:
        """Returns the runtime of a model. Raises Refusal when no such model or version is served."""
        runtime = self.runtime
        suite = str(runtime.bundle.manifest["suite"])
        if name != suite:
            raise Refusal(404, f"model {name!r} is not served here; {suite!r} is.")
        if version and version != runtime.bundle_id:
            raise Refusal(404, f"version {version!r} of model {suite!r} is not served; {runtime.bundle_id} is.")
        return runtime

    async def answer(
        self,
        ask: Callable[[Runtime], Question],
        *,
        name: str = "",
        version: str = "",
        parent: Callable[[], Mapping[str, str]] = dict,
    ) -> "Answered":
        """Returns the answer to a question.

        Args:
            ask: reads the request for the runtime that will answer it.
            name: of the model; empty stands for the one that is served.
            version: of the model; empty stands for the present one.
            parent: says which trace the request belongs to; asked only where traces are sent.

        Raises:
            Refusal: it is not answered.
        """
        if self._tracing is None:
            return await self._answer(ask, name, version)
        started_ns, found = time.time_ns(), parent()
        try:
            answered = await self._answer(ask, name, version)
        except Refusal as refusal:
            self._tracing.add(Traced(started_ns, found, {}, refusal.status))
            raise
        self._tracing.add(Traced(started_ns, found, _attributes(answered)), answered.answer)
        return answered

    async def _answer(self, ask: Callable[[Runtime], Question], name: str, version: str) -> "Answered":
        started = time.perf_counter()
        try:
            serving = self.serving
            runtime = self.check_model(name, version) if name else serving.runtime
            asked = ask(runtime)
        except Refusal as refusal:
            self.metrics.refused(refusal.status)
            raise
        tasks = [runtime.tasks[position].name for position in asked.positions]
        try:
            answer = await self._compute(asked, serving.trial.choose(asked.id, runtime) if serving.trial else runtime)
        except Refusal as refusal:
            self.metrics.refused(refusal.status, tasks)
            raise
        seconds = time.perf_counter() - started
        self.metrics.answered(answer, seconds)
        self._keep(asked, answer, "champion")
        if self._events is not None:
            self._events.add(asked, answer)
        if serving.trial is not None and serving.trial.looks_on and self._log is not None:
            self._look_on(asked, serving.trial.challenger)
        if self._access_log:
            logger.info(
                "request id=%s rows=%d tasks=%s ms=%.1f", asked.id, asked.num_rows, ",".join(tasks), seconds * 1000
            )
        return Answered(asked, answer)

    def feedback(self, rows: list[Feedback]) -> None:
        """Keeps late labels. Raises Refusal when no log is kept, or it has no room."""
        if self._log is None:
            raise Refusal(409, "no prediction log is kept here, so labels have no place. Start with --log URL.")
        if not self._log.add_feedback(rows):
            raise Refusal(429, "the log has no room now. Send the labels again later.", retry_after_seconds=5)

    async def _compute(self, asked: Question, runtime: Runtime) -> Answer:
        keeps = self._log is not None and runtime.has_embedding and self._embeddings.take(asked.num_rows)
        future = self._batcher.submit(asked, runtime, with_embedding=asked.wants_embedding or keeps)
        return await future

    def _keep(self, asked: Question, answer: Answer, role: str) -> None:
        if self._log is not None:
            self._log.add(Record.of(asked, answer, role=role))

    def _look_on(self, asked: Question, challenger: Runtime) -> None:
        """The challenger answers too, for the log alone; nobody waits for it, and under load it is left out."""
        try:
            future = self._batcher.submit(asked, challenger, with_embedding=False)
        except Refusal:
            self.metrics.shadow_skipped.inc()
            return

        def keep(done: "asyncio.Future[Answer]") -> None:
            if done.cancelled() or done.exception() is not None:
                self.metrics.shadow_skipped.inc()
            else:
                self._keep(asked, done.result(), "shadow")

        future.add_done_callback(keep)


class _Budget:
    """So many a minute, evenly: what was not used within a minute is lost, so that a rush cannot use it up later."""

    def __init__(self, a_minute: int) -> None:
        self._most = self._left = float(a_minute)
        self._at = time.monotonic()

    def take(self, number: int) -> bool:
        """Returns whether there is room for a number, and if so takes it."""
        now = time.monotonic()
        self._left = min(self._most, self._left + (now - self._at) * self._most / _MINUTE)
        self._at = now
        if number > self._left:
            return False
        self._left -= number
        return True


@dataclass(frozen=True)
class Answered:
    """A question with its answer."""

    question: Question
    answer: Answer


def _attributes(answered: Answered) -> dict[str, str | int | Sequence[str]]:
    answer = answered.answer
    return {
        "mtlops.request_id": answered.question.id, "mtlops.bundle_id": answer.runtime.bundle_id,
        "mtlops.rows": answered.question.num_rows, "mtlops.tasks": list(answer.outputs),
    }  # fmt: skip
