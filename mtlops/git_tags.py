"""Tags of GTO in the user's git repository: a version of the bundle, and that it is the one in production.

`dvc artifacts get REPOSITORY NAME --stage prod` then finds the bundle: it reads the tag, the commit's dvc.yaml
(`artifacts:` names a path) and its dvc.lock (the content of that path). So a commit may be tagged only when its
dvc.lock names this very bundle.
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtlops.errors import ArtefactError, PlatformError, UsageError

STAGE = "prod"


@dataclass(frozen=True)
class Tagging:
    """What would be tagged: checked before the promotion, written after it.

    Attributes:
        repository: root folder of the git repository.
        name: of the artifact in dvc.yaml.
        commit: that HEAD stands for.
    """

    repository: Path
    name: str
    commit: str

    def write(self, message: str) -> list[str]:
        """Registers the commit as the next version and assigns stage `prod` to it; returns the tags that say so.

        Calling it again for the same commit adds what is missing.

        Raises:
            PlatformError: git refuses, for example because it does not know who you are.
        """
        import gto.api
        from gto.exceptions import GTOException
        from scmrepo.exceptions import SCMError

        try:
            return _tag(gto.api, self, message)
        except (GTOException, SCMError, OSError) as error:
            raise PlatformError(
                f"{self.repository}: git tags cannot be written ({error}). The bundle is champion; run the same "
                f"command again for its tags."
            ) from error


def revision(folder: Path) -> str | None:
    """Returns the commit that a folder's git repository stands at, with `-dirty` after it when files differ from it.

    None outside of a repository, and where scmrepo, which comes with DVC, is not installed.
    """
    try:
        from scmrepo.exceptions import SCMError
        from scmrepo.git import Git
    except ImportError:
        return None
    try:
        with Git(str(folder.resolve()), search_parent_directories=True) as git:
            return f"{git.get_rev()}{'-dirty' if git.is_dirty(untracked_files=False) else ''}"
    except SCMError:
        return None


def plan_tags(bundle: Path) -> Tagging:
    """Returns what to tag so that DVC's users find the bundle in the folder `bundle`.

    Raises:
        UsageError: gto is not installed, `bundle` is in no git repository, or dvc.yaml names no artifact for it.
        ArtefactError: the dvc.lock of HEAD does not name this bundle.
    """
    try:
        from scmrepo.exceptions import SCMError
        from scmrepo.git import Git
    except ImportError:
        raise UsageError(
            "--git-tag needs the package gto. Install `mtlops[pipelines]`, which brings DVC and it."
        ) from None
    try:
        git = Git(str(bundle.resolve().parent), search_parent_directories=True)
    except SCMError:
        raise UsageError(f"{bundle}: --git-tag, but it lies in no git repository.") from None
    with git:
        root = Path(git.root_dir)
        path = bundle.resolve().relative_to(root.resolve()).as_posix()
        commit = git.get_rev()
        files = git.get_fs("HEAD")
        name = _artifact_name(_committed(files, "dvc.yaml", root), path)
        locked = _locked_digest(_committed(files, "dvc.lock", root), path)
    if locked != dvc_digest(bundle):
        raise ArtefactError(
            f"{root}/dvc.lock at HEAD: names another content of {path} than this bundle. Run `dvc repro`, commit "
            f"dvc.lock, and promote again."
        )
    return Tagging(repository=root, name=name, commit=commit)


def dvc_digest(folder: Path) -> str:
    """Returns the name that DVC gives to a folder's content: md5 over the sorted names and md5 of its files."""
    files = [
        {"md5": _md5(path), "relpath": path.relative_to(folder).as_posix()}
        for path in folder.rglob("*")
        if path.is_file()
    ]
    files.sort(key=lambda file: file["relpath"])
    return hashlib.md5(json.dumps(files, sort_keys=True).encode(), usedforsecurity=False).hexdigest() + ".dir"


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _committed(files: Any, name: str, root: Path) -> Mapping[str, Any]:
    """A YAML file as HEAD holds it."""
    try:
        with files.open(name) as file:
            content: Mapping[str, Any] = yaml.safe_load(file)
            return content
    except FileNotFoundError:
        raise ArtefactError(f"{root}/{name}: is not in git. Run `dvc repro` and commit {name}.") from None


def _artifact_name(stages: Mapping[str, Any], path: str) -> str:
    for name, artifact in stages.get("artifacts", {}).items():
        if artifact.get("path") == path:
            return str(name)
    raise UsageError(f"dvc.yaml at HEAD: names no artifact with path {path}. Add it below `artifacts:` and commit.")


def _locked_digest(lock: Mapping[str, Any], path: str) -> str | None:
    outs = (out for stage in lock.get("stages", {}).values() for out in stage.get("outs", ()))
    return next((out["md5"] for out in outs if out["path"] == path), None)


def _tag(gto: Any, plan: Tagging, message: str) -> list[str]:
    from gto.exceptions import VersionExistsForCommit

    repository, tags = str(plan.repository), []
    with suppress(VersionExistsForCommit):  # an earlier call registered it
        tags.append(gto.register(repository, plan.name, plan.commit, message=message).ref)
    in_production = gto.find_versions_in_stage(repository, plan.name, STAGE) or []
    if plan.commit not in {version.commit_hexsha for version in in_production}:
        tags.append(gto.assign(repository, plan.name, STAGE, ref=plan.commit, message=message, force=True).ref)
    return tags
