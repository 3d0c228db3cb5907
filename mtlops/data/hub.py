"""Encoders from the Hugging Face hub, or a mirror of it (`HF_ENDPOINT`), pinned to a commit."""

import logging
import re
from pathlib import Path

from mtlops.errors import PlatformError, UsageError

logger = logging.getLogger(__name__)

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def is_hub_name(source: str) -> bool:
    """Whether `source` looks like `organisation/name`."""
    return _NAME.fullmatch(source) is not None


def fetch_snapshot(name: str, *, revision: str | None, patterns: list[str], cache: Path) -> Path:
    """Returns the folder of a hub repository's files that match `patterns`, fetched only when missing.

    Raises:
        UsageError: `revision` is not a commit, or the hub has no such repository or commit.
        PlatformError: the hub cannot be reached and the files are not in `cache`, or a download failed.
    """
    if revision is None or not _COMMIT.fullmatch(revision):
        raise UsageError(
            f"params.yaml: encoder.source: {name!r} is no folder, and to fetch it from the Hugging Face hub "
            f"encoder.revision must be a commit (40 hex digits; {revision!r} given), since a name's files may change. "
            f"See https://huggingface.co/{name}/commits/main."
        )
    from huggingface_hub import errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()
    logger.info("fetching encoder=%s revision=%s", name, revision)
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns, cache_dir=cache))
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise UsageError(
            f"params.yaml: encoder.source: the hub has no {name!r} at {revision} that may be read "
            f"({type(error).__name__}). Check name and revision; a gated or private one needs HF_TOKEN."
        ) from None
    except OSError as error:
        reason = type(error.__cause__ or error).__name__
        raise PlatformError(
            f"encoder.source: {name!r} cannot be fetched from the hub ({reason}). Check the network, HF_ENDPOINT and "
            f"HF_HUB_OFFLINE, or fetch it elsewhere (`hf download {name} --revision {revision} --local-dir FOLDER`) "
            f"and name the folder."
        ) from None
