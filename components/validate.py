"""KFP component `validate`: fails when the data breaks a promise of params.yaml."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def validate(
    prepared: dsl.Input[dsl.Dataset],
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    params: str,
    tasks: str = "",
    data_md5: str = "",
    code_digest: str = "",
):
    """Runs `mtlops.steps.validate`.

    Args:
        prepared: folder of splits.
        reports: folder with validation.json.
        page: the same for people.
        params: text of params.yaml.
        tasks: comma list of the tasks to act on; empty for all.
        data_md5: content of `prepared`; only part of the cache key.
        code_digest: code in the image; only part of the cache key.
    """
    import logging
    import shutil
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.validate import validate as step

    suite = parse_params(params, where="params", tasks=tasks)
    folder = Path(reports.path)
    logging.getLogger("great_expectations").setLevel(logging.WARNING)
    step(suite, prepared=Path(prepared.path), report=folder / "validation.json")
    shutil.copyfile(folder / "validation.html", page.path)
