"""KFP component `monitor`: one pass over what is new in the prediction log; drift of each task out."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def monitor(
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    level: dsl.OutputPath(str),
    params: str,
    log: str,
    registry: str,
    state: str,
):
    """Runs `mtlops.steps.monitor`.

    Args:
        reports: folder with drift.json.
        page: drift.json for people.
        level: ok, suspected or drifted.
        params: text of params.yaml.
        log: URL of the prediction log.
        registry: URL of the registry whose champion is watched.
        state: file of the monitor's memory, on a volume that is mounted into the step and stays between runs.
    """
    import shutil
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.monitor import monitor as step

    folder = Path(reports.path)
    suite = parse_params(params, where="params")
    result = step(suite, log=log, registry=registry, state=Path(state), report=folder / "drift.json")
    shutil.copyfile(folder / "drift.html", page.path)
    Path(level).write_text(result.level, encoding="utf-8")
