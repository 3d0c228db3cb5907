"""What a run is asked to do: params as text, digests of data and code."""

import subprocess
from pathlib import Path

import pytest

from mtlops.errors import PlatformError, UsageError
from mtlops.params import parse_params, read_params
from pipelines.requests import LONGEST_PARAMETER, read_request
from tests.clones import ROOT

PARAMS = ROOT / "params.yaml"
OWN = """\
suite:
  name: own
  tasks:
    tone: {kind: binary, source: rows.csv, label: tone, classes: [bad, good]}
    topic: {kind: multiclass, source: newsgroups, label: topic, classes: [a, b]}
"""


@pytest.fixture
def own(tmp_path: Path) -> Path:
    (tmp_path / "params.yaml").write_text(OWN)
    (tmp_path / "rows.csv").write_text("text,tone\na,bad\n")
    return tmp_path


def git(folder: Path, *arguments: str) -> None:
    author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    subprocess.run(["git", *author, *arguments], cwd=folder, check=True, capture_output=True)


def md5(own: Path, *, revision: str = "") -> str:
    return read_request(own / "params.yaml", data_repo=str(own), data_rev=revision).data_md5


def test_params_travel_as_text_with_overrides_applied() -> None:
    request = read_request(PARAMS, overrides=["train.epochs=2"], tasks="topic, sentiment", reason="a 'reason'")
    assert parse_params(request.params) == read_params(PARAMS, overrides=["train.epochs=2"])
    assert request.params.isascii()
    assert (request.tasks, request.reason) == ("topic,sentiment", "a 'reason'")
    assert len(request.code_digest) == 64


@pytest.mark.parametrize(
    ("registry", "expected"),
    [("", ""), ("s3://bucket/a b", "s3://bucket/a b"), ("registry", str(Path("registry").resolve())), ("/a/b", "/a/b")],
)
def test_registry_travels_as_a_url_or_a_whole_path(registry: str, expected: str) -> None:
    assert read_request(PARAMS, registry=registry).registry == expected


@pytest.mark.parametrize("registry", ["it's", 'a"b', "a\\b", "a\nb"])
def test_registry_that_a_condition_cannot_be_evaluated_on_is_refused(registry: str) -> None:
    with pytest.raises(UsageError, match="must be without quotes"):
        read_request(PARAMS, registry=registry)


def test_built_in_data_needs_no_digest() -> None:
    assert read_request(PARAMS).data_md5 == ""


def test_digest_follows_the_content_of_own_files(own: Path) -> None:
    before = md5(own)
    assert md5(own) == before
    (own / "rows.csv").write_text("text,tone\na,good\n")
    assert md5(own) != before


def test_digest_leaves_out_tasks_that_are_not_asked_for(own: Path) -> None:
    assert read_request(own / "params.yaml", data_repo=str(own), tasks="topic").data_md5 == ""


def test_digest_of_a_revision_is_that_of_its_content(own: Path) -> None:
    git(own, "init", "--quiet")
    git(own, "add", ".")
    git(own, "commit", "--quiet", "--message", "one")
    git(own, "tag", "one")
    (own / "rows.csv").write_text("text,tone\na,good\n")
    git(own, "commit", "--quiet", "--all", "--message", "two")
    assert md5(own, revision="one") != md5(own, revision="HEAD")


def test_digest_of_a_revision_covers_a_folder(own: Path) -> None:
    with (own / "params.yaml").open("a") as params:
        params.write("encoder: {source: encoder}\n")
    (own / "encoder").mkdir()
    digests = []
    git(own, "init", "--quiet")
    for text in ("one", "two"):
        (own / "encoder/config.json").write_text(text)
        git(own, "add", ".")
        git(own, "commit", "--quiet", "--message", text)
        digests.append(md5(own, revision="HEAD"))
    assert digests[0] != digests[1]


@pytest.mark.parametrize("revision", ["nowhere", "HEAD"])
def test_unreadable_repository_is_said(own: Path, revision: str) -> None:
    with pytest.raises(PlatformError, match="Check --data-repo and --data-rev"):
        md5(own, revision=revision)


def test_address_that_is_no_folder_is_a_repository(own: Path) -> None:
    with pytest.raises(PlatformError, match="Check --data-repo and --data-rev"):
        read_request(own / "params.yaml", data_repo=str(own / "nowhere"))


def test_missing_file_in_a_repository_is_said(own: Path) -> None:
    git(own, "init", "--quiet")
    git(own, "add", "params.yaml")
    git(own, "commit", "--quiet", "--message", "one")
    with pytest.raises(PlatformError, match=r"rows\.csv"):
        md5(own, revision="HEAD")


def test_unknown_task_is_refused_before_anything_runs() -> None:
    with pytest.raises(UsageError, match="no task 'topics'"):
        read_request(PARAMS, tasks="topics")


def test_params_too_long_for_kubeflow_are_refused(own: Path) -> None:
    classes = ", ".join(f"class-{number}" for number in range(LONGEST_PARAMETER // 8))
    (own / "params.yaml").write_text(OWN.replace("[a, b]", f"[{classes}]"))
    with pytest.raises(UsageError, match="more than the 10000 that Kubeflow takes"):
        read_request(own / "params.yaml")
