"""The process that stays, as it is started, scraped and stopped; with Prometheus and Alertmanager around it."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from monitoring.resident import status_page
from mtlops.bundle import Bundle
from tests.clones import ROOT
from tests.monitoring.daemons import find, free_port, running, wait_for
from tests.monitoring.reports import REPORT
from tests.watch.logs import MOOD, World, Writer
from tests.watch.test_kills import PARAMS


def command(tmp_path: Path, bundle: Bundle, *more: str) -> list[str]:
    (tmp_path / "params.yaml").write_text(PARAMS)
    return [sys.executable, "-m", "monitoring", "run", "--bundle", str(bundle.folder), "--log", str(tmp_path / "log"),
            "--state", str(tmp_path / "state.sqlite"), "--params", str(tmp_path / "params.yaml"), "--interval", "0.2",
            "--requests", str(tmp_path / "requests"), *more]  # fmt: skip


def read(address: str) -> str:
    with urllib.request.urlopen(address, timeout=5) as found:
        return found.read().decode()


def value(text: str, series: str) -> float | None:
    lines = [line for line in text.splitlines() if line.startswith(f"{series} ")]
    return float(lines[0].split()[-1]) if lines else None


@pytest.fixture
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))


def test_the_status_page_shows_what_is_known_and_escapes_it() -> None:
    page = status_page(REPORT, trouble="")
    for words in (
        "prior shift: bad from 30% to 60%.",
        "prediction.label: bad from",
        "cannot be read",
        "writer w: missing",
    ):
        assert words in page
    assert "<b>" not in page and "&lt;b&gt;" in page
    assert "No pass: the disk" in status_page(None, trouble="the disk is full")


@pytest.mark.e2e
@pytest.mark.usefixtures("_here")
def test_it_sees_a_shift_while_it_runs_and_stops_when_told(bundle: Bundle, tmp_path: Path) -> None:
    port = free_port()
    writer = Writer(tmp_path / "log", bundle.id)
    writer.traffic(World(1), 300, tasks=[MOOD])
    address = f"http://127.0.0.1:{port}"
    log = tmp_path / "out.txt"
    with running(*command(tmp_path, bundle, "--port", str(port)), log=log, ready=f"{address}/health") as process:
        alert = 'mtlops_drift_alert{kind="input",task="mood"}'
        assert value(read(f"{address}/metrics"), alert) == 0.0
        writer.traffic(World(2, shift=1.5), 400, tasks=[MOOD])
        wait_for(lambda: value(read(f"{address}/metrics"), alert) == 1.0, what="the alarm")
        page = read(address)
        assert "covariate shift" in page and 'class="chip bad"' in page
        report = json.loads(read(f"{address}/drift.json"))
        assert report["tasks"]["mood"]["level"] == "drifted" and report["log"]["counts"]["rows"] == 700
        with pytest.raises(urllib.error.HTTPError, match="404"):
            read(f"{address}/nothing")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0


@pytest.mark.e2e
@pytest.mark.usefixtures("_here")
def test_without_a_champion_it_waits_and_says_so(tmp_path: Path) -> None:
    port = free_port()
    (tmp_path / "params.yaml").write_text(PARAMS)
    arguments = [sys.executable, "-m", "monitoring", "run", "--registry", str(tmp_path / "registry"), "--log",
                 str(tmp_path / "log"), "--params", str(tmp_path / "params.yaml"), "--port", str(port)]  # fmt: skip
    address = f"http://127.0.0.1:{port}"
    with running(*arguments, log=tmp_path / "out.txt", ready=f"{address}/metrics"):
        wait_for(lambda: "has no champion yet" in read(address), what="the reason")
        with pytest.raises(urllib.error.HTTPError, match="503"):
            read(f"{address}/health")


class Receiver:
    """Takes what Alertmanager posts."""

    def __init__(self) -> None:
        self.posts: list[Any] = []
        posts = self.posts

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                posts.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args: Any) -> None:
                """Says nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server.server_address[1]}"


def configure(folder: Path, *, monitor: int, alerts: int, receiver: str) -> None:
    """The shipped files, with this test's addresses and waits."""
    own = ROOT / "monitoring"
    (folder / "rules.yml").write_text((own / "prometheus/rules.yml").read_text())
    prometheus = yaml.safe_load((own / "prometheus/prometheus.yml").read_text())
    prometheus["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    prometheus["alerting"]["alertmanagers"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{alerts}"]}]
    prometheus["scrape_configs"] = [
        {"job_name": "mtlops-monitor", "static_configs": [{"targets": [f"127.0.0.1:{monitor}"]}]}
    ]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(prometheus))
    routes = yaml.safe_load((own / "alertmanager/alertmanager.yml").read_text())
    routes["route"] |= {"group_wait": "1s", "group_interval": "1s"}
    for one in routes["receivers"]:
        one["webhook_configs"][0]["url"] = f"{receiver}/{one['name']}"
    (folder / "alertmanager.yml").write_text(yaml.safe_dump(routes))


@pytest.mark.e2e
@pytest.mark.usefixtures("_here")
def test_planted_drift_goes_from_the_log_to_a_webhook_once(bundle: Bundle, tmp_path: Path) -> None:
    programs = find("prometheus"), find("prometheus-alertmanager")
    ports = free_port(), free_port(), free_port()
    monitor, prometheus, alerts = (f"http://127.0.0.1:{port}" for port in ports)
    receiver = Receiver()
    configure(tmp_path, monitor=ports[0], alerts=ports[2], receiver=receiver.address)
    writer = Writer(tmp_path / "log", bundle.id)
    writer.traffic(World(1), 300, tasks=[MOOD])
    with (
        running(*command(tmp_path, bundle, "--port", str(ports[0])), log=tmp_path / "m.txt", ready=f"{monitor}/health"),
        running(programs[1], f"--config.file={tmp_path}/alertmanager.yml", f"--storage.path={tmp_path}/am",
                f"--web.listen-address=127.0.0.1:{ports[2]}", "--cluster.listen-address=", log=tmp_path / "a.txt",
                ready=f"{alerts}/-/ready"),
        running(programs[0], f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb",
                f"--web.listen-address=127.0.0.1:{ports[1]}", log=tmp_path / "p.txt", ready=f"{prometheus}/-/ready"),
    ):  # fmt: skip
        series = f"{prometheus}/api/v1/query?query=mtlops_drift_alert"
        wait_for(lambda: json.loads(read(series))["data"]["result"], what="the first scrape")
        assert receiver.posts == []
        writer.traffic(World(2, shift=1.5), 400, tasks=[MOOD])
        wait_for(lambda: len(receiver.posts) >= 1, what="the webhook")
        writer.traffic(World(3, shift=1.5), 400, tasks=[MOOD])
        wait_for(lambda: "mtlops_monitor_rows_total 1100.0" in read(f"{monitor}/metrics"), what="the rows")
        wait_for(lambda: json.loads(read(f"{prometheus}/api/v1/query?query=mtlops_monitor_rows_total"))
                 ["data"]["result"][0]["value"][1] == "1100", what="the second scrape")  # fmt: skip
    firing = [(path, alert) for path, post in receiver.posts for alert in post["alerts"] if alert["status"] == "firing"]
    drifted = [(path, alert["labels"]["kind"]) for path, alert in firing if alert["labels"]["scope"] == "task"]
    assert drifted and {path for path, _ in drifted} == {"/pages"}
    assert {kind for _, kind in drifted} == {"input", "embedding"}
    # Grouped by task: one message, or a second one when the two kinds came to fire in different evaluations.
    assert len([1 for path, _ in receiver.posts if path == "/pages"]) <= 2
    assert len(drifted) == len(set(drifted)) or len(receiver.posts) == 2
    text = firing[0][1]["annotations"]["description"]
    assert "Likely cause: covariate shift" in text


def test_a_second_port_user_is_told(tmp_path: Path, bundle: Bundle) -> None:
    receiver = Receiver()
    done = subprocess.run(
        command(tmp_path, bundle, "--port", receiver.address.rpartition(":")[2]),
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 5 and "cannot listen" in done.stderr and "Traceback" not in done.stderr
