"""The image, and the compiled pipeline in real containers. `.ci/containers` builds the image and runs these."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from docker.models.images import Image

from components.image import IMAGE
from mtlops.bundle import Bundle, code_digest
from pipelines.containers import LABEL, USER, Containers, open_containers
from tests.clones import ROOT, Clone, make_clone, same_files

pytestmark = [
    pytest.mark.containers,
    pytest.mark.xdist_group("containers"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # docker leaves sockets open
]

LARGEST_IMAGE_BYTES = 2_500_000_000
DOCKER_HOST = os.environ.get("DOCKER_HOST")
RUN = ("python", "-m", "pipelines", "run", "--runner", "docker")
STEPS = {"prepare", "validate", "train", "evaluate", "show", "export"}

PACKAGES = """
import json
from importlib.metadata import distributions
print(json.dumps({d.metadata["Name"]: [d.version, d.requires or []] for d in distributions()}))
"""
FORBIDDEN = """
import os, shutil
names = {".git", ".netrc", ".pypirc", "pip.conf", "id_rsa", "id_ed25519", "test_bundle.py", "constraints.txt"}
roots = ["/venv", "/etc", "/usr", "/root", "/home", "/var", "/work", "/opt", "/srv"]
for root in roots:
    for folder, folders, files in os.walk(root):
        print(*(os.path.join(folder, name) for name in [*folders, *files] if name in names), sep="\\n", end="\\n")
        if folder.endswith("/.cache") or "/pip/cache" in folder:
            print(folder)
print(*filter(None, map(shutil.which, ("gcc", "cc", "c++", "g++", "clang", "ld", "make", "git"))))
print(*{"/source", "/code", "/tools"} & {"/" + name for name in os.listdir("/")}, sep="\\n")
"""
CPU_SECONDS = """
import resource, subprocess
subprocess.run(["mtlops", "--help"], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime)
"""


@pytest.fixture(scope="module")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with open_containers(IMAGE, data=None, work=tmp_path_factory.mktemp("work")) as found:
        yield found


@pytest.fixture
def image(containers: Containers) -> Image:
    return containers.client.images.get(IMAGE)


def inside(containers: Containers, *command: str, **settings: Any) -> str:
    """Runs a command in a container without root, capabilities or a writable root, and returns what it printed."""
    confined = {
        "read_only": True, "cap_drop": ["ALL"], "security_opt": ["no-new-privileges"],
        "tmpfs": {"/tmp": ""}, "network_mode": "none",
    }  # fmt: skip
    container = containers.client.containers.create(IMAGE, list(command), **(confined | settings))
    try:
        container.start()
        code = container.wait()["StatusCode"]
        printed: str = container.logs().decode()
    finally:
        container.remove(force=True)
    assert code == 0, printed
    return printed


def run(clone: Clone, *arguments: str, code: int = 0) -> str:
    """Runs the pipeline in containers; the command finds the engine by itself, as it does for a user."""
    found_by_itself = () if DOCKER_HOST else ("--unset=DOCKER_HOST",)
    return clone.run("env", *found_by_itself, *RUN, *arguments, code=code)


def fresh(folder: Path) -> Clone:
    clone = make_clone(folder)
    for path in (clone.folder / "data").rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)  # a root's private file is not for the steps' user
    return clone


@pytest.fixture(scope="module")
def contained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone in which the compiled pipeline ran in containers, and what that printed."""
    clone = fresh(tmp_path_factory.mktemp("contained") / "mtlops")
    return clone, run(clone)


def test_pipeline_prints_the_table_of_its_steps(contained: tuple[Clone, str]) -> None:
    printed = contained[1]
    table = printed[printed.index("task      state") :].splitlines()
    ran = [line.split()[:4] for line in table[1:-1]]
    assert {row[0] for row in ran} == STEPS
    assert [row[0] for row in ran].count("show") == 5
    assert {(row[1], row[3]) for row in ran} == {("SUCCESS", "no")}
    assert table[-1].startswith("verdict PROMOTE, bundle models/candidate, log ")
    assert "not this checkout's" not in printed


def test_dvc_subprocesses_and_containers_make_the_same_bundle(
    clone: Clone, contained: tuple[Clone, str], tmp_path: Path
) -> None:
    subprocesses = make_clone(tmp_path / "mtlops")
    subprocesses.run("python", "-m", "pipelines", "run", "--quiet")
    runs = [clone, contained[0], subprocesses]
    assert "model.onnx" in same_files([run.folder / "models/candidate" for run in runs])


def test_every_step_keeps_its_own_log(contained: tuple[Clone, str]) -> None:
    [folder] = contained[0].folder.glob("runs/*/logs")
    logs = {path.name: path.read_text() for path in folder.iterdir()}
    assert len(logs) == 10
    for text in logs.values():
        assert "Wrote executor output file" in text
        assert "The container's exit code: 0" in text
    assert "epoch=2 task=mood" in logs["03-train.txt"]


def test_next_run_takes_unchanged_steps_from_the_cache(contained: tuple[Clone, str]) -> None:
    clone, _ = contained
    result = json.loads(run(clone, "--quiet", "--json", "--out", "models/again").splitlines()[-1])
    cached = {task["name"] for task in result["tasks"] if task["cached"]}
    assert cached == {"prepare", "validate", "train"}
    same_files([clone.folder / "models/candidate", clone.folder / "models/again"])


def test_broken_data_stops_the_run_with_its_own_exit_code(tmp_path: Path) -> None:
    broken = fresh(tmp_path / "mtlops")
    reviews = broken.folder / "data/sources/reviews.csv"
    reviews.write_text(reviews.read_text() + "we loved the moon and the planet,splendid,high,4.5,story\n")
    printed = run(broken, "--quiet", code=3)
    assert "pipeline task validate failed" in printed
    assert "splendid" in printed
    log = Path(printed.strip().rpartition("Its log: ")[2])
    assert log.name == "02-validate.txt"
    assert "The container's exit code: 1" in log.read_text()
    assert not (broken.folder / "models/candidate").exists()


@pytest.mark.parametrize("ended", ["killed", "removed"])
def test_container_that_is_ended_is_a_failure(contained: tuple[Clone, str], containers: Containers, ended: str) -> None:
    clone, _ = contained
    out = f"models/{ended}"
    environment = os.environ | {"PYTHONPATH": str(clone.folder)}
    command = [str(clone.folder / ".venv/bin/python"), *RUN[1:], "--out", out]
    process = subprocess.Popen(
        command, cwd=clone.folder, env=environment, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL
    )
    assert process.stderr is not None
    while "evaluate: started" not in (line := process.stderr.readline()):
        assert line, "the run ended before `evaluate`"
    while not (found := containers.client.containers.list(filters={"label": LABEL})):
        assert process.poll() is None
    if ended == "killed":
        found[0].kill()
    else:
        found[0].remove(force=True)
    printed = process.stderr.read()
    assert process.wait() == 5, printed
    assert "pipeline task evaluate failed" in printed
    assert Path(printed.strip().rpartition("Its log: ")[2]).name.endswith("-evaluate.txt")
    assert not (clone.folder / out).exists()


def test_nothing_of_a_run_is_left(contained: tuple[Clone, str], containers: Containers) -> None:
    assert containers.client.containers.list(all=True, filters={"label": LABEL}) == []
    folder = contained[0].folder / "data"
    assert {path.name for path in folder.iterdir()} == {"README.md", "sources", "windows", "raw", "cache"}


def test_promotion_reaches_the_registry(contained: tuple[Clone, str]) -> None:
    clone, _ = contained
    printed = run(clone, "--quiet", "--registry", "registry", "--out", "models/promoted")
    assert "promote   SUCCESS" in printed
    champion = json.loads((clone.folder / "registry/champion.json").read_text())
    assert champion["bundle_id"] == Bundle.open(clone.folder / "models/promoted").id


def test_missing_image_is_said(contained: tuple[Clone, str]) -> None:
    printed = run(contained[0], "--image", "mtlops:none", code=5)
    assert "mtlops:none: the container engine has no such image. Run `make image` first." in printed


def test_image_holds_this_code(containers: Containers) -> None:
    assert containers.code_digest == code_digest()


@pytest.mark.parametrize("user", [None, "12345:54321"])
def test_bundle_answers_without_root_or_a_writable_root(
    contained: tuple[Clone, str], containers: Containers, tmp_path: Path, user: str | None
) -> None:
    project = tmp_path / "project"
    shutil.copytree(contained[0].folder / "models/candidate", project / "models/candidate")
    subprocess.run(["chmod", "--recursive", "a+rX", str(project)], check=True)
    settings = {"volumes": {str(project): {"bind": "/work", "mode": "ro"}}} | ({"user": user} if user else {})
    printed = inside(containers, "mtlops", "predict", "the film was great", "--json", **settings)
    [row] = json.loads(printed.splitlines()[-1])["predictions"]
    assert set(row["tasks"]) == {"mood", "grade", "stars", "about", "topic"}
    assert inside(containers, "id", "-u", **settings).strip() == (user or str(USER)).partition(":")[0]
    with pytest.raises(AssertionError, match="Read-only file system"):
        inside(containers, "sh", "-c", "echo text > /venv/file", **settings)


def test_packages_are_those_of_the_lock_and_no_others(containers: Containers) -> None:
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lock = dict(
        line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")
    )
    lock = {str(canonicalize_name(name)): version for name, version in lock.items()}
    found = json.loads(inside(containers, "python", "-c", PACKAGES))
    installed = {str(canonicalize_name(name)): facts for name, facts in found.items()}
    assert {name: facts[0].partition("+")[0] for name, facts in installed.items() if name != "mtlops"}.items() <= (
        lock.items()
    )
    needed: set[str] = set()
    open_ends = [Requirement("mtlops[cpu,train,serve,monitor]"), Requirement("dvc")]
    while open_ends:
        wanted = open_ends.pop()
        name = str(canonicalize_name(wanted.name))
        extras = {""} | {f"{extra}" for extra in wanted.extras}
        if (name, *sorted(extras)) in needed:
            continue
        needed.add((name, *sorted(extras)))
        for text in installed[name][1]:
            requirement = Requirement(text)
            if not requirement.marker or any(requirement.marker.evaluate({"extra": extra}) for extra in extras):
                open_ends.append(requirement)
    # kfp is there without its dependencies; pip fetches data packages and setuptools built mtlops.
    assert {name for name, *_ in needed} | {"kfp", "pip", "setuptools"} == set(installed)


def test_nothing_else_is_in_the_image(containers: Containers, image: Image) -> None:
    assert inside(containers, "python", "-c", FORBIDDEN, user="0:0", cap_add=["DAC_OVERRIDE"]).split() == []
    names = {line.partition("=")[0] for line in image.attrs["Config"]["Env"]}
    assert names <= {"PATH", "HOME", "TMPDIR", "USER", "LANG", "PYTHONDONTWRITEBYTECODE", "PYTHONPATH", "container",
                     "GPG_KEY", "PYTHON_VERSION", "PYTHON_SHA256"}  # fmt: skip


def test_image_can_serve_and_monitor(containers: Containers) -> None:
    assert "--registry" in inside(containers, "mtlops", "serve", "--help")
    assert "replay" in inside(containers, "python", "-m", "monitoring", "--help")


def test_image_is_described(containers: Containers, image: Image) -> None:
    labels = {name.rpartition(".")[2]: value for name, value in image.labels.items() if "opencontainers" in name}
    assert labels["licenses"] == "Apache-2.0"
    assert labels["version"] == IMAGE.rpartition(":")[2]
    revision = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout  # fmt: skip
    assert labels["revision"].removesuffix("-dirty") == revision.strip()
    assert "source" in labels
    container = containers.client.containers.create(IMAGE)
    config = container.attrs["Config"]
    container.remove()
    assert config["User"] == f"{USER}:{USER}"
    assert "/v2/health/ready" in " ".join(config["Healthcheck"]["Test"])


def test_image_is_within_its_budget(image: Image) -> None:
    assert image.attrs["Size"] < LARGEST_IMAGE_BYTES


def test_help_starts_within_a_second_of_cpu(containers: Containers) -> None:
    assert float(inside(containers, "python", "-c", CPU_SECONDS).splitlines()[-1]) < 1


def test_list_of_contents_is_valid_and_complete(containers: Containers) -> None:
    text = inside(containers, "cat", "/venv/share/sbom.cdx.json")
    assert (ROOT / "build/sbom-cpu.cdx.json").read_text() == text
    listed = json.loads(text)
    assert JsonStrictValidator(SchemaVersion.from_version(listed["specVersion"])).validate_str(text) is None
    found = json.loads(inside(containers, "python", "-c", PACKAGES))
    components = {(component["name"], component["version"]) for component in listed["components"]}
    assert components == {(name, facts[0]) for name, facts in found.items()}
    assert "timestamp" not in listed["metadata"]
    assert "serialNumber" not in listed
