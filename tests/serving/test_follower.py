"""Hot swaps: a real server follows a real registry while clients ask."""

import json
import shutil
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
import pytest

from mtlops.bundle import Bundle
from mtlops.registry import Registry
from tests.serving.processes import Server, serving
from tests.serving.test_server import read_log
from tests.serving.variants import make_champion, retrained, with_wrong_golden
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

TEXTS = ["the film was very good", "the court and the law"]
FAST = ("--poll-seconds", "0.02", "--drain-seconds", "0")


@dataclass
class Setting:
    """A registry with a champion, and bundles that could follow it."""

    registry: Registry
    ids: dict[str, str]

    def promote(self, name: str) -> None:
        make_champion(self.registry, self.ids[name])


@pytest.fixture(scope="module")
def published(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("bundles")
    first = Bundle.open(finished.bundle)
    bundles = {
        "first": first,
        "topic": retrained(first, root / "topic", task="topic", seed=1),
        "mood": retrained(first, root / "mood", task="mood", seed=2),
        "wrong-early": with_wrong_golden(first, root / "wrong-early", row=0),
        "wrong-late": with_wrong_golden(first, root / "wrong-late", row=-1),
    }
    registry = Registry(root / "registry")
    return Setting(registry, {name: registry.publish(bundle.folder) for name, bundle in bundles.items()})


@pytest.fixture
def setting(published: Setting, tmp_path: Path) -> Setting:
    shutil.copytree(published.registry.url, tmp_path / "registry")
    found = Setting(Registry(tmp_path / "registry"), published.ids)
    found.promote("first")
    return found


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def bundle_served(server: Server) -> str:
    return str(server.get("/status", "admin")[1]["bundle"])


def shares(server: Server) -> dict[str, Any]:
    """What each task says to the texts."""
    rows = server.predict(*TEXTS)["predictions"]
    return {task: [row["tasks"][task] for row in rows] for task in rows[0]["tasks"]}


def test_a_promotion_and_a_rollback_change_one_task_and_no_bit_of_the_others(setting: Setting, tmp_path: Path) -> None:
    with serving(tmp_path, "--registry", setting.registry.url, *FAST) as server:
        before = shares(server)
        setting.promote("topic")
        wait_for(lambda: bundle_served(server) == setting.ids["topic"])
        after = shares(server)
        assert {task for task in before if before[task] != after[task]} == {"topic"}
        tasks = server.get("/status", "admin")[1]["tasks"]
        assert server.predict("a")["bundle"] == setting.ids["topic"] == tasks["mood"]["bundle"]
        setting.registry.rollback(by="test", reason="test")
        wait_for(lambda: bundle_served(server) == setting.ids["first"])
        assert shares(server) == before
        wait_for(
            lambda: server.metric('mtlops_swap_total{outcome="swapped"}') == 2
        )  # counted once all golden rows held
        assert server.metric('mtlops_swap_total{outcome="reloaded"}') == 0


@pytest.mark.parametrize("wrong", ["wrong-early", "wrong-late"])
def test_a_bundle_that_does_not_reproduce_its_golden_outputs_is_sent_back(
    setting: Setting, tmp_path: Path, wrong: str
) -> None:
    with serving(tmp_path, "--registry", setting.registry.url, *FAST) as server:
        before = shares(server)
        setting.promote(wrong)
        wait_for(lambda: server.metric('mtlops_swap_total{outcome="returned"}') == 1)
        assert shares(server) == before and bundle_served(server) == setting.ids["first"]
        assert "a logit differs" in server.get("/status", "admin")[1]["last_swap"]["reason"]
        time.sleep(0.2)
        assert server.metric('mtlops_swap_total{outcome="returned"}') == 1  # it is not tried again
        setting.promote("mood")
        wait_for(lambda: bundle_served(server) == setting.ids["mood"])


def test_swaps_under_load_fail_no_request_and_mix_no_bundles(setting: Setting, tmp_path: Path) -> None:
    log, failed, stop = tmp_path / "log", list[object](), threading.Event()
    answers: dict[str, set[str]] = {}
    with serving(tmp_path, "--registry", setting.registry.url, "--log", str(log), *FAST) as server:

        def ask() -> None:
            while not stop.is_set():
                try:
                    found = server.predict(*TEXTS)
                except (AssertionError, OSError, urllib.error.URLError) as error:
                    failed.append(error)
                    return
                answers.setdefault(found["bundle"], set()).add(json.dumps(found["predictions"]))

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        for name in ["topic", "mood", "first"] * 3:
            setting.promote(name)
            wait_for(lambda name=name: bundle_served(server) == setting.ids[name])  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        wait_for(lambda: server.metric('mtlops_swap_total{outcome="swapped"}') == 9)
        assert server.stop() == 0
    assert not failed
    assert answers.keys() == {setting.ids[name] for name in ("first", "topic", "mood")}
    alone = {bundle: _without_rounding(found) for bundle, found in answers.items()}
    assert all(len(found) == 1 for found in alone.values())
    table = read_log(log, "predictions")
    assert pc.count_distinct(table["request_id"]).as_py() * len(TEXTS) * 5 == table.num_rows


def _without_rounding(found: set[str]) -> set[str]:
    """Requests that were computed together may differ in the last bits; bundles differ in the first ones."""
    return {json.dumps(json.loads(text, parse_float=lambda number: round(float(number), 4))) for text in found}


def test_a_canary_answers_its_share_and_a_shadow_only_the_log(setting: Setting, tmp_path: Path) -> None:
    log = tmp_path / "log"
    trial = ("--challenger", setting.ids["topic"], "--canary", "topic=0.5", "--shadow", "--log", str(log))
    with serving(tmp_path, "--registry", setting.registry.url, *trial, *FAST) as server:
        topics = [
            json.dumps(server.predict(*TEXTS, id=str(number))["predictions"][0]["tasks"]["topic"])
            for number in range(40)
        ]
        assert len(set(topics)) == 2
        again = [json.dumps(server.predict(*TEXTS, id=str(n))["predictions"][0]["tasks"]["topic"]) for n in range(5)]
        assert again == topics[:5]
        assert server.stop() == 0
    table = read_log(log, "predictions")
    roles = {role: table.filter(pc.equal(table["role"], role)) for role in ("champion", "canary", "shadow")}
    assert set(roles["canary"]["task"].to_pylist()) == {"topic"}
    assert set(roles["canary"]["bundle_id"].to_pylist()) == {setting.ids["topic"]}
    assert set(roles["champion"]["bundle_id"].to_pylist()) == {setting.ids["first"]}
    assert roles["champion"].num_rows + roles["canary"].num_rows == roles["shadow"].num_rows == 45 * 2 * 5
    assert roles["shadow"]["statistics"].null_count == roles["shadow"].num_rows
    assert 10 <= roles["canary"].num_rows // 2 <= 35
