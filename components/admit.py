"""KFP component `admit`: a labelled window joins the prepared splits."""

from typing import NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def admit(
    prepared: dsl.Input[dsl.Dataset],
    admitted: dsl.Output[dsl.Dataset],
    params: str,
    tasks: str,
    window: str,
    data_repo: str = "",
    data_rev: str = "",
    data_md5: str = "",
    window_md5: str = "",
    code_digest: str = "",
) -> NamedTuple("Outputs", [("data_md5", str)]):
    """Runs `mtlops.steps.admit`.

    Args:
        prepared: folder of splits.
        admitted: the same with the rows of the window.
        params: text of params.yaml.
        tasks: comma list of the tasks whose labels the window has.
        window: file of labelled rows, or folder of a recorded window, in `data_repo`.
        data_repo: a folder; or, with `data_rev` or an address, a git/DVC repository.
        data_rev: branch, tag or commit of `data_repo`.
        data_md5: content of `prepared`; only part of the cache key.
        window_md5: content of the window; only part of the cache key.
        code_digest: code in the image; only part of the cache key.

    Returns:
        data_md5: digest of the splits with the window; part of every later step's cache key.
    """
    import tempfile
    from pathlib import Path

    from mtlops.files import sha256_file
    from mtlops.params import parse_params
    from mtlops.steps.admit import admit as step
    from mtlops.tasks import split_names

    rows, scratch = Path(data_repo or ".") / window, Path(tempfile.mkdtemp())
    if data_rev or not Path(data_repo or ".").is_dir():
        from dvc.api import DVCFileSystem

        repository, rows = DVCFileSystem(data_repo, rev=data_rev or None), scratch / Path(window).name
        repository.get(window, str(rows), recursive=repository.isdir(window))
    step(
        parse_params(params, where="params"),
        rows=rows,
        tasks=split_names(tasks),
        windows=scratch / "windows",
        prepared=Path(prepared.path),
        out=Path(admitted.path),
    )
    return (sha256_file(Path(admitted.path) / "manifest.json"),)
