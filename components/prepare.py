"""KFP component `prepare`: the user's data in, splits and the encoder out."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def prepare(
    prepared: dsl.Output[dsl.Dataset],
    encoder: dsl.Output[dsl.Model],
    params: str,
    tasks: str = "",
    data_repo: str = "",
    data_rev: str = "",
    data_md5: str = "",
    code_digest: str = "",
) -> NamedTuple("Outputs", [("data_md5", str)]):
    """Runs `mtlops.steps.prepare`.

    Args:
        prepared: folder of splits and their manifest.
        encoder: folder of the pretrained encoder.
        params: text of params.yaml.
        tasks: comma list of the tasks to act on; empty for all.
        data_repo: where files named in params lie: a folder; or, with `data_rev` or an address, a git/DVC repository.
        data_rev: branch, tag or commit of `data_repo`.
        data_md5: content of the user's files; only part of the cache key.
        code_digest: code in the image; only part of the cache key.

    Returns:
        data_md5: digest of what was prepared; part of every later step's cache key.
    """
    import os
    import tempfile
    from pathlib import Path

    from mtlops.catalog import BEHAVIOUR, DATASETS, ENCODERS
    from mtlops.files import sha256_file
    from mtlops.params import parse_params
    from mtlops.steps.prepare import prepare as step

    suite = parse_params(params, where="params", tasks=tasks)
    base = Path(data_repo or ".")
    if data_rev or not base.is_dir():
        from dvc.api import DVCFileSystem

        base = Path(tempfile.mkdtemp())
        repository = DVCFileSystem(data_repo, rev=data_rev or None)
        sources = {spec.source for spec in suite.suite.tasks.values()} - set(DATASETS)
        sources |= ({suite.encoder.source} - set(ENCODERS)) | (set(suite.data.behaviour) - set(BEHAVIOUR))
        for source in sorted(sources):
            (base / source).parent.mkdir(parents=True, exist_ok=True)
            repository.get(source, str(base / source), recursive=repository.isdir(source))
    raw = Path(os.environ.get("MTLOPS_WORK") or tempfile.mkdtemp()) / "raw"
    step(suite, base=base, raw=raw, out=Path(prepared.path), encoder=Path(encoder.path))
    return (sha256_file(Path(prepared.path) / "manifest.json"),)
