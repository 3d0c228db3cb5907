"""Rules, routes and dashboard: accepted by the programs that use them, and about metrics that the code exports."""

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from monitoring.metrics import Metrics
from mtlops import prediction_log
from tests.clones import ROOT
from tests.monitoring.daemons import find
from tests.monitoring.reports import REPORT

FOLDER = ROOT / "monitoring"
RULES = FOLDER / "prometheus/rules.yml"
OF_THE_SERVER = {"mtlops_requests_total", "mtlops_predictions_total"}
NAME = re.compile(r"\bmtlops_\w+")


def run(*command: str, cwd: Path = ROOT) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def exported() -> set[str]:
    metrics = Metrics()
    metrics.succeed(REPORT, time=1.0, newest=1.0)
    lines = metrics.text().decode().splitlines()
    return {line.split()[2] for line in lines if line.startswith("# TYPE")}


def rules() -> list[dict]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def expressions() -> list[str]:
    panels = json.loads((FOLDER / "grafana/drift.json").read_text())["panels"]
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_promtool_accepts_the_rules_and_they_fire_as_their_tests_say() -> None:
    promtool = find("promtool")
    assert f"{len(rules())} rules found" in run(promtool, "check", "rules", str(RULES))
    run(promtool, "test", "rules", str(FOLDER / "prometheus/rules_test.yml"))
    run(promtool, "check", "config", str(FOLDER / "prometheus/prometheus.yml"))


def test_every_alert_has_a_test() -> None:
    text = (FOLDER / "prometheus/rules_test.yml").read_text()
    assert not [rule["alert"] for rule in rules() if f"alertname: {rule['alert']}" not in text]


def test_promtool_finds_no_fault_in_the_metrics() -> None:
    metrics = Metrics()
    metrics.succeed(REPORT, time=1.0, newest=1.0)
    command = [find("promtool"), "check", "metrics"]
    done = subprocess.run(command, input=metrics.text(), capture_output=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_prometheus_can_parse_every_expression_of_the_dashboard(tmp_path: Path) -> None:
    promtool = find("promtool")
    plain = [found.replace("$task", ".*") for found in expressions()]
    recorded = [{"record": f"dashboard:{k}", "expr": found} for k, found in enumerate(plain)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": recorded}]}))
    assert f"{len(plain)} rules found" in run(promtool, "check", "rules", str(tmp_path / "rules.yml"))


def test_rules_and_dashboard_speak_of_metrics_that_there_are() -> None:
    known = exported() | OF_THE_SERVER
    for text in (RULES.read_text(), "\n".join(expressions())):
        names = {name for name in NAME.findall(text) if not name.endswith("_")}
        assert names - known == set()


def test_contract_names_are_exported() -> None:
    contract = {
        "mtlops_drift_score", "mtlops_drift_alert", "mtlops_drift_p_value", "mtlops_estimated_metric",
        "mtlops_realised_metric", "mtlops_retrain_total", "mtlops_monitor_last_success_timestamp_seconds",
    }  # fmt: skip
    assert contract <= exported() and prediction_log.PREDICTIONS == "predictions"


@pytest.mark.parametrize(
    "labels, receiver",
    [
        (["alertname=MtlopsTaskDrifted", "task=topic", "severity=page"], "pages"),
        (["alertname=MtlopsMonitorStale", "severity=page"], "pages"),
        (["alertname=MtlopsDriftSuspected", "task=topic", "severity=ticket"], "tickets"),
    ],
)
def test_alerts_reach_their_receiver(labels: list[str], receiver: str) -> None:
    amtool, config = find("amtool"), str(FOLDER / "alertmanager/alertmanager.yml")
    run(amtool, "check-config", config)
    assert run(amtool, "config", "routes", "test", f"--config.file={config}", *labels).strip() == receiver


def test_every_alert_has_a_place_in_the_runbook() -> None:
    runbook = (FOLDER / "README.md").read_text()
    for rule in rules():
        file, _, anchor = rule["annotations"]["runbook"].partition("#")
        assert file == "monitoring/README.md" and f"##{anchor}" in runbook.lower().replace(" ", "")
