"""What the server counts, for Prometheus. The names are contracts (README)."""

from collections.abc import Iterable
from functools import lru_cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mtlops.serving.description import label_names
from mtlops.serving.questions import Answer
from mtlops.serving.runtime import Runtime

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SWAP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self._requests = Counter(
            "mtlops_requests", "requests by task asked (empty: none was understood) and status",
            ["task", "code"], registry=registry,
        )  # fmt: skip
        self._seconds = Histogram(
            "mtlops_request_duration_seconds", "seconds from the whole request to its answer",
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self._predictions = Counter(
            "mtlops_predictions", "answers by task and label", ["task", "label"], registry=registry
        )  # fmt: skip
        self._batches = Histogram("mtlops_batch_rows", "rows of a pass", buckets=_ROWS, registry=registry)
        self._bundle = Gauge(
            "mtlops_bundle_info", "1 for each task that is served, and where its adapter and head come from",
            ["bundle_id", "task_version", "task"], registry=registry,
        )  # fmt: skip
        self.queue_rows = Gauge("mtlops_queue_rows", "rows that wait for the model", registry=registry)
        self.swaps = Counter(
            "mtlops_swap", "changes of the bundle: swapped, reloaded, returned (new one went wrong), failed",
            ["outcome"], registry=registry,
        )  # fmt: skip
        for outcome in ("swapped", "reloaded", "returned", "failed"):
            self.swaps.labels(outcome)
        self.swap_seconds = Histogram(
            "mtlops_swap_duration_seconds", "seconds from a change of the champion seen to its answers",
            buckets=_SWAP_SECONDS, registry=registry,
        )  # fmt: skip
        self.log_rows = Counter("mtlops_log_rows", "rows written to the prediction log", ["table"], registry=registry)
        self.log_dropped = Counter(
            "mtlops_log_dropped", "rows that the prediction log had no room for", registry=registry
        )
        self.events_dropped = Counter(
            "mtlops_events_dropped", "CloudEvents that their receiver was too slow for, or refused", registry=registry
        )
        self.events_taken = Counter(
            "mtlops_events_taken", "CloudEvents of another server by what became of them: logged, alone (no request), "
            "unmatched (no answer), refused, dropped", ["outcome"], registry=registry,
        )  # fmt: skip
        self.shadow_skipped = Counter(
            "mtlops_shadow_skipped", "requests that a shadow did not answer: the queue was full, or it failed",
            registry=registry,
        )  # fmt: skip
        self._request = lru_cache(maxsize=10_000)(self._requests.labels)
        self._prediction = lru_cache(maxsize=10_000)(self._predictions.labels)

    def answered(self, answer: Answer, seconds: float) -> None:
        """Counts a request that was answered."""
        self._seconds.observe(seconds)
        tasks = {task.name: task for task in answer.runtime.tasks}
        for name, outputs in answer.outputs.items():
            self._request(name, "200").inc()
            rows = len(outputs.labels) if outputs.labels is not None else 0
            for row in range(rows):
                for label in label_names(tasks[name], outputs, row) or ():
                    self._prediction(name, label).inc()

    def refused(self, code: int, tasks: Iterable[str] = ()) -> None:
        """Counts a request that was not answered."""
        for task in [*tasks] or [""]:
            self._request(task, str(code)).inc()

    def batch(self, rows: int) -> None:
        """Counts a pass of the model."""
        self._batches.observe(rows)

    def serving(self, runtime: Runtime) -> None:
        """Says what is served from now on."""
        self._bundle.clear()
        for served in runtime.served:
            self._bundle.labels(served.bundle_id, served.version, served.task.name).set(1)

    def page(self) -> bytes:
        """Returns what Prometheus reads."""
        page: bytes = generate_latest(self.registry)
        return page
