"""What Prometheus scrapes, made from the newest report: the names are contracts."""

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from mtlops.drift.detector import DRIFTED, LEVELS


class Metrics(Collector):
    """The newest report as Prometheus metrics; before the first one, nothing but whether the monitor works."""

    def __init__(self) -> None:
        self._report: Mapping[str, Any] | None = None
        self._last_success = 0.0
        self._failures = 0
        self._newest = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def succeed(self, report: Mapping[str, Any], *, time: float, newest: float) -> None:
        """Takes the report of a pass that ended well at `time`; `newest` row of the log, both in Unix seconds."""
        self._report, self._last_success, self._newest = report, time, newest

    def fail(self) -> None:
        """Counts a pass that ended in an error."""
        self._failures += 1

    def text(self) -> bytes:
        """Returns the page that Prometheus reads."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """Yields the metrics."""
        yield _gauge(
            "mtlops_monitor_last_success_timestamp_seconds", "When the last pass ended well.", self._last_success
        )
        failures = CounterMetricFamily("mtlops_monitor_failures", "Passes that ended in an error.")
        failures.add_metric([], self._failures)
        yield failures
        if self._report is not None:
            yield _gauge("mtlops_monitor_newest_row_timestamp_seconds", "Time of the newest row read.", self._newest)
            yield from _drift(self._report)
            yield from _quality(self._report)
            yield from _log(self._report)
            yield from _retrain(self._report)


def _gauge(name: str, about: str, value: float) -> Metric:
    return GaugeMetricFamily(name, about, value=value)


def _drift(report: Mapping[str, Any]) -> Iterator[Metric]:
    labels = ["task", "kind"]
    score = GaugeMetricFamily("mtlops_drift_score", "Largest effect of a column over its floor.", labels=labels)
    alert = GaugeMetricFamily("mtlops_drift_alert", "1 while the level is drifted.", labels=labels)
    level = GaugeMetricFamily("mtlops_drift_level", "0 ok, 1 suspected, 2 drifted.", labels=labels)
    p_value = GaugeMetricFamily("mtlops_drift_p_value", "p-value of the newest window.", labels=labels)
    evidence = GaugeMetricFamily("mtlops_drift_evidence_ratio", "Evidence over that of an alarm.", labels=labels)
    short = GaugeMetricFamily("mtlops_drift_insufficient", "1 while rows are too few to judge.", labels=labels)
    for name, task in report["tasks"].items():
        for kind, cell in task["cells"].items():
            alert.add_metric([name, kind], float(cell["level"] == DRIFTED))
            level.add_metric([name, kind], LEVELS.index(cell["level"]))
            evidence.add_metric([name, kind], cell["evidence"])
            short.add_metric([name, kind], float(cell["verdict"] == "insufficient data"))
            for family, value in ((score, cell["score"]), (p_value, cell["p_value"])):
                if value is not None:
                    family.add_metric([name, kind], value)
    yield from (score, alert, level, p_value, evidence, short, _causes(report))


def _causes(report: Mapping[str, Any]) -> Metric:
    info = InfoMetricFamily("mtlops_drift_cause", "Likely cause of a task's alarm and what to do.", labels=["task"])
    for name, task in report["tasks"].items():
        found = task["diagnosis"]
        if found:
            causes = ", ".join(cause["cause"] for cause in found["causes"])
            info.add_metric([name], {"cause": causes, "action": found["action"]})
    return info


def _quality(report: Mapping[str, Any]) -> Iterator[Metric]:
    labels = ["task", "metric"]
    families = {
        "estimated": GaugeMetricFamily("mtlops_estimated_metric", "Expected without labels.", labels=labels),
        "realised": GaugeMetricFamily("mtlops_realised_metric", "On rows with late labels.", labels=labels),
    }
    for name, task in report["tasks"].items():
        for kind, family in families.items():
            for metric, value in task["metrics"].get(kind, {}).items():
                family.add_metric([name, metric], value)
    yield from families.values()


def _log(report: Mapping[str, Any]) -> Iterator[Metric]:
    counts, log = report["log"]["counts"], report["log"]
    for key, about in (
        ("rows", "Rows of predictions read."),
        ("labels", "Rows of feedback read."),
        ("labels_joined", "Labels that met their answer."),
        ("labels_without_answer", "Labels given up."),
        ("rows_of_other_bundles", "Rows that another bundle answered: not judged."),
    ):
        family = CounterMetricFamily(f"mtlops_monitor_{key}", about)
        family.add_metric([], counts.get(key, 0))
        yield family
    windows = CounterMetricFamily("mtlops_monitor_windows", "Windows judged.", labels=["source"])
    for source in ("traffic", "labels"):
        windows.add_metric([source], counts.get(f"windows.{source}", 0))
    yield windows
    yield _gauge("mtlops_monitor_quarantined_files", "Files of the log set aside.", log["num_set_aside"])
    yield _gauge("mtlops_monitor_lost_files", "Gaps in a writer's numbers.", len(log["lost"]))
    rows = GaugeMetricFamily("mtlops_monitor_open_rows", "Rows in the open window.", labels=["task", "source"])
    for name, task in report["tasks"].items():
        for source, found in task["open"].items():
            rows.add_metric([name, source], found["rows"])
    yield rows


def _retrain(report: Mapping[str, Any]) -> Iterator[Metric]:
    family = CounterMetricFamily(
        "mtlops_retrain", "Requests to train again, by what became of them.", labels=["task", "verdict"]
    )
    for key, number in report["log"]["counts"].items():
        if key.startswith("retrain."):
            _, task, verdict = key.split(".")
            family.add_metric([task, verdict], number)
    yield family
