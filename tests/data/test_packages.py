import logging
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mtlops import catalog
from mtlops.data import packages
from mtlops.data.datasets import vader_snippets
from mtlops.data.packages import fetch
from mtlops.errors import PlatformError
from tests.data.miniatures import installable_wheel, package_of


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that is all that pip knows of."""
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "index"
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def nowhere(monkeypatch):
    """Lets pip find no package at all: an index on a port where nobody answers."""
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")


def test_an_archive_is_fetched_and_then_kept(index, tmp_path, monkeypatch, request):
    package = package_of(installable_wheel(index))
    path = fetch(package, raw=tmp_path / "raw")
    assert path.read_bytes() == (index / package.filename).read_bytes()
    assert [p.name for p in path.parent.iterdir()] == [package.filename]
    written = path.stat().st_mtime_ns
    request.getfixturevalue("nowhere")
    assert fetch(package, raw=tmp_path / "raw").stat().st_mtime_ns == written


def test_a_damaged_file_on_disk_is_said_and_fetched_again(index, tmp_path, caplog):
    package = package_of(installable_wheel(index))
    path = tmp_path / "raw" / package.filename
    path.parent.mkdir()
    path.write_bytes((index / package.filename).read_bytes()[:-1])
    assert fetch(package, raw=path.parent).read_bytes() == (index / package.filename).read_bytes()
    assert f"{path}: is damaged" in caplog.text


def test_a_file_with_another_hash_is_refused(index, tmp_path):
    package = replace(package_of(installable_wheel(index)), sha256="0" * 64)
    with pytest.raises(PlatformError, match=r"mini_corpus==1\.0: the index has a file with another sha256") as caught:
        fetch(package, raw=tmp_path / "raw", attempts=1)
    assert caught.value.exit_code == 5
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "raw").iterdir()) == []


def test_an_index_that_cannot_be_reached_is_tried_again_and_then_said(nowhere, tmp_path, caplog):
    package = catalog.Package("mini_corpus==1.0", "mini_corpus-1.0-py3-none-any.whl", "0" * 64, "CC0-1.0")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / package.filename).write_bytes(b"damaged, and never used")
    with pytest.raises(PlatformError, match=r"can be reached.*after 2 attempts.*by hand") as caught:
        fetch(package, raw=tmp_path / "raw", attempts=2, pause_seconds=0.01)
    assert "\n" not in str(caught.value)
    assert "attempt=1/2 failed" in caplog.text


def test_a_second_attempt_brings_what_the_first_could_not(index, tmp_path, caplog, monkeypatch):
    package = package_of(installable_wheel(index))
    hidden = (index / package.filename).rename(tmp_path / package.filename)
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda _: hidden.rename(index / package.filename)
    monkeypatch.setattr(packages.logger, "handlers", [handler])
    assert fetch(package, raw=tmp_path / "raw", pause_seconds=0.01).exists()
    assert "attempt=1/3 failed" in caplog.text


def test_what_a_killed_download_left_is_removed_but_not_a_running_one(index, tmp_path):
    package = package_of(installable_wheel(index))
    stale, running = tmp_path / "raw/.download-stale", tmp_path / "raw/.download-running"
    stale.mkdir(parents=True)
    running.mkdir()
    hours_ago = time.time() - 2 * packages.STALE_SECONDS
    os.utime(stale, (hours_ago, hours_ago))
    fetch(package, raw=tmp_path / "raw")
    assert running.exists()
    assert not stale.exists()


def test_a_full_disk_is_a_platform_error(index, tmp_path):
    package = package_of(installable_wheel(index))
    code = f"""
import resource, sys
from pathlib import Path
from mtlops.catalog import Package
from mtlops.data.packages import fetch
from mtlops.errors import PlatformError
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    fetch({package!r}, raw=Path({str(tmp_path / "raw")!r}), attempts=1)
except PlatformError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    done = subprocess.run([sys.executable, "-B", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 5, done.stderr
    assert done.stdout.count("\n") == 1
    assert list((tmp_path / "raw").iterdir()) == []


@pytest.mark.parametrize(
    "log, reason",
    [
        ("", "pip failed without a message"),
        ("no such option\n", "pip failed without a message"),
        ("ERROR: first\nERROR: the last one\n", "pip failed: the last one"),
        ("OSError: [Errno 28] No space left on device", "the disk is full"),
    ],
)
def test_a_failure_of_pip_always_has_a_reason(log, reason):
    assert packages._reason(log) == reason


@pytest.mark.network
def test_the_source_archive_is_chosen_over_the_wheel_by_its_hash(tmp_path):
    package = catalog.DATASETS["vader-snippets"].package
    assert package is not None
    table = vader_snippets(fetch(package, raw=tmp_path))
    assert table.num_rows == 10_605 + 3_708 + 5_190 + 4_200
    assert Path(package.filename).suffixes[-2:] == [".tar", ".gz"]
