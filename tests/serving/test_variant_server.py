"""A real server that answers from a variant of the graph: it says so, swaps tasks, and takes no bundle without it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc
import tritonclient.http

from mtlops.bundle import Bundle
from mtlops.registry import Registry
from mtlops.serving.description import describe
from mtlops.serving.runtime import Runtime
from mtlops.steps.export import export
from tests.serving.processes import Server, serving
from tests.serving.test_follower import FAST, wait_for
from tests.serving.variants import make_champion, retrained
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

TEXTS = ["the film was very good", "the court and the law"]


@dataclass(frozen=True)
class Setting:
    """A registry; `first` and `other`, where topic is another, have the variant int8, `plain` has not."""

    registry: Registry
    bundles: dict[str, Bundle]

    def promote(self, name: str) -> None:
        make_champion(self.registry, self.bundles[name].id)


@pytest.fixture(scope="module")
def setting(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Setting:
    root = tmp_path_factory.mktemp("bundles")
    export(
        finished.params("export.variants=[int8]", "export.variant_loss=2"),
        **finished.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
        out=root / "first", report=root / "export.json",
    )  # fmt: skip
    first = Bundle.open(root / "first")
    bundles = {
        "first": first,
        "other": retrained(first, root / "other", task="topic"),
        "plain": Bundle.open(finished.bundle),
    }
    registry = Registry(root / "registry")
    for bundle in bundles.values():
        registry.publish(bundle.folder)
    found = Setting(registry, bundles)
    found.promote("first")
    return found


def expected(bundle: Bundle) -> list[dict[str, Any]]:
    """What the bundle's integers answer to the two texts, one a pass as the server asks them."""
    runtime = Runtime(bundle, variant="int8")
    return [describe(runtime.tasks, runtime.predict([text]), [text])[0]["tasks"] for text in TEXTS]


def answered(server: Server) -> list[dict[str, Any]]:
    """The same, of a server."""
    return [server.predict(text)["predictions"][0]["tasks"] for text in TEXTS]


def test_it_says_which_variant_it_serves_swaps_a_task_and_refuses_a_bundle_without(
    setting: Setting, tmp_path: Path
) -> None:
    options = ("--registry", setting.registry.url, "--cache", str(tmp_path / "cache"), "--variant", "int8", *FAST)
    with serving(tmp_path, *options) as server:
        rest = tritonclient.http.InferenceServerClient(f"127.0.0.1:{server.ports['rest']}")
        assert rest.get_model_metadata("tiny")["parameters"] == {"variant": "int8"}
        grpc = tritonclient.grpc.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")
        assert grpc.get_model_metadata("tiny").versions == [setting.bundles["first"].id]
        assert server.get("/status", "admin")[1]["variant"] == "int8"
        before = answered(server)
        assert before == expected(setting.bundles["first"])

        setting.promote("other")
        wait_for(lambda: server.get("/status", "admin")[1]["bundle"] == setting.bundles["other"].id)
        wait_for(lambda: server.metric('mtlops_swap_total{outcome="swapped"}') == 1)
        after = answered(server)
        assert after == expected(setting.bundles["other"])
        for old, new in zip(before, after, strict=True):
            assert {task for task in old if old[task] != new[task]} == {"topic"}

        setting.promote("plain")
        wait_for(lambda: server.metric('mtlops_swap_total{outcome="failed"}') == 1)
        assert "no variant 'int8'; it has fp32" in server.get("/status", "admin")[1]["last_swap"]["reason"]
        assert answered(server) == after
        setting.promote("first")
        wait_for(lambda: server.get("/status", "admin")[1]["bundle"] == setting.bundles["first"].id)


def test_a_canary_answers_from_the_same_variant(setting: Setting, tmp_path: Path) -> None:
    challenger = setting.bundles["other"]
    options = (
        "--registry", setting.registry.url, "--cache", str(tmp_path / "cache"), "--variant", "int8",
        "--challenger", challenger.id, "--canary", "topic=1", *FAST,
    )  # fmt: skip
    with serving(tmp_path, *options) as server:
        assert [row["topic"] for row in answered(server)] == [row["topic"] for row in expected(challenger)]
        champion = expected(setting.bundles["first"])
        assert [row["mood"] for row in answered(server)] == [row["mood"] for row in champion]
