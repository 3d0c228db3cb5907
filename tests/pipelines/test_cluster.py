"""submit and schedule against a server that speaks the v2beta1 API."""

from pathlib import Path

import pytest
import yaml

from mtlops.errors import PlatformError, UsageError
from pipelines.__main__ import main
from pipelines.cluster import Cluster, check_cron
from pipelines.compiling import COMPILED
from tests.clones import ROOT
from tests.pipelines.kfp_server import Server, serve

TEXT = "a: pipeline\n"
NIGHTLY = "0 0 2 * * *"


@pytest.mark.slow
def test_submit_uploads_once_and_starts_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    with serve(server) as host:
        for _ in range(2):
            assert main(["submit", "--host", host, "--reason", "new data", "--tasks", "topic"]) == 0
    assert capsys.readouterr().out.split() == ["r1", "r2"]
    assert len(server.uploads) == 1
    assert "mtlops-training" in server.uploads[0]
    assert [e["display_name"] for e in server.experiments] == ["mtlops"]
    run = server.runs[1]
    assert run["pipeline_version_reference"] == {"pipeline_id": "p1", "pipeline_version_id": "v1"}
    assert run["experiment_id"] == "e1"
    parameters = run["runtime_config"]["parameters"]
    assert parameters["tasks"] == "topic"
    assert parameters["reason"] == "new data"
    assert set(yaml.safe_load(parameters["params"])["suite"]["tasks"]) > {"topic"}


def test_parameters_are_those_of_the_compiled_pipeline() -> None:
    server = Server()
    with serve(server) as host:
        assert main(["submit", "--host", host]) == 0
    compiled = next(yaml.safe_load_all((ROOT / COMPILED).read_text()))
    parameters = compiled["root"]["inputDefinitions"]["parameters"]
    assert set(server.runs[0]["runtime_config"]["parameters"]) == set(parameters)


def test_known_version_and_experiment_are_found_on_a_later_page() -> None:
    server = Server()
    with serve(server) as host:
        cluster = Cluster.connect(host)
        versions = [cluster.upload(f"{TEXT}{number}") for number in range(5)]
        assert cluster.upload(f"{TEXT}4") == versions[4]
        for name in ("one", "two", "three"):
            cluster.start(versions[0], {}, experiment=name, name="run")
        cluster.start(versions[0], {}, experiment="three", name="run")
    assert len(server.versions) == 5
    assert len(server.experiments) == 3


def test_schedule_is_made_paused_and_safe() -> None:
    server = Server()
    with serve(server) as host:
        assert main(["schedule", "--host", host, "--cron", NIGHTLY, "--name", "nightly"]) == 0
    [(_, made)] = [body for body in server.bodies if body[0].endswith("/recurringruns")]
    assert made["mode"] == "DISABLE"
    assert made["no_catchup"] is True
    assert made["max_concurrency"] == "1"
    assert made["trigger"] == {"cron_schedule": {"cron": NIGHTLY}}
    assert [schedule["mode"] for schedule in server.schedules.values()] == ["ENABLE"]


def test_schedule_replaces_its_namesakes_in_an_order_that_never_runs_two() -> None:
    server = Server()
    with serve(server) as host:
        cluster = Cluster.connect(host)
        version = cluster.upload(TEXT)
        cluster.schedule(version, {}, experiment="mtlops", name="other", cron=NIGHTLY)
        cluster.schedule(version, {}, experiment="mtlops", name="nightly", cron=NIGHTLY)
        server.requests.clear()
        new = cluster.schedule(version, {"reason": "b"}, experiment="mtlops", name="nightly", cron="0 30 3 * * *")
    schedules = "/apis/v2beta1/recurringruns"
    assert [(method, path) for method, path in server.requests if path.startswith(schedules) and method != "GET"] == [
        ("POST", schedules),
        ("POST", f"{schedules}/s2:disable"),
        ("POST", f"{schedules}/{new}:enable"),
        ("DELETE", f"{schedules}/s2"),
    ]
    assert {s["display_name"]: s["mode"] for s in server.schedules.values()} == {"other": "ENABLE", "nightly": "ENABLE"}


@pytest.mark.parametrize(
    "fault", [("POST", ":disable"), ("POST", ":enable"), ("DELETE", "s1"), ("POST", "/recurringruns")]
)
def test_stopped_schedule_is_finished_by_calling_again(fault: tuple[str, str]) -> None:
    server = Server()
    with serve(server) as host:
        cluster = Cluster.connect(host)
        version = cluster.upload(TEXT)
        cluster.schedule(version, {}, experiment="mtlops", name="nightly", cron=NIGHTLY)
        server.fail_on = fault
        with pytest.raises(PlatformError, match="the database is away"):
            cluster.schedule(version, {}, experiment="mtlops", name="nightly", cron=NIGHTLY)
        assert [s["mode"] for s in server.schedules.values()].count("ENABLE") <= 1
        last = cluster.schedule(version, {}, experiment="mtlops", name="nightly", cron=NIGHTLY)
    assert {name: s["mode"] for name, s in server.schedules.items()} == {last: "ENABLE"}


def test_schedule_of_a_branch_always_prepares_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server = Server()
    with serve(server) as host:
        arguments = ["schedule", "--host", host, "--cron", NIGHTLY, "--data-repo", str(tmp_path)]
        assert main(arguments) == 0, capsys.readouterr().err
    uploaded = server.uploads[0]
    assert "prepare:\n        cachingOptions: {}" in uploaded
    assert "train:\n        cachingOptions:\n          enableCache: true" in uploaded


@pytest.mark.parametrize("cron", ["0 2 * * *", "0 0 2 * * * *", "", "daily"])
def test_cron_without_six_fields_is_refused(cron: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UsageError):
        check_cron(cron)
    assert main(["schedule", "--cron", cron, "--host", "http://127.0.0.1:9"]) == 2
    assert "six" in capsys.readouterr().err


def test_five_fields_are_explained() -> None:
    with pytest.raises(UsageError, match=r"Write '0 0 2 \* \* \*'"):
        check_cron("0 2 * * *")


def test_unreachable_server_is_exit_5(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["submit", "--host", "http://127.0.0.1:9"]) == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "http://127.0.0.1:9: cannot be reached" in said


def test_refusing_server_is_exit_5(capsys: pytest.CaptureFixture[str]) -> None:
    with serve(Server(status=403)) as host:
        assert main(["submit", "--host", host]) == 5
    assert "answered 403" in capsys.readouterr().err


def test_no_host_is_exit_2(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KFP_ENDPOINT", raising=False)
    assert main(["submit"]) == 2
    assert "KFP_ENDPOINT" in capsys.readouterr().err


def test_token_and_endpoint_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(Server(token="secret")) as host:
        monkeypatch.setenv("KFP_ENDPOINT", host)
        monkeypatch.setenv("KFP_TOKEN", "secret")
        assert main(["submit"]) == 0


def test_namespace_reaches_every_listing() -> None:
    server = Server()
    with serve(server) as host:
        assert main(["submit", "--host", host, "--namespace", "team"]) == 0
    assert {pipeline["namespace"] for pipeline in server.pipelines.values()} == {"team"}
    assert server.experiments[0]["namespace"] == "team"
