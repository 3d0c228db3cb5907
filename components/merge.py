"""KFP component `merge`: the parts of a prediction log as one window; drift of each task out."""

from typing import List  # noqa: UP035

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge(
    counts: dsl.Input[List[dsl.Artifact]],  # noqa: UP006
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    level: dsl.OutputPath(str),
    params: str,
    log: str,
    registry: str,
):
    """Runs `mtlops.steps.log_parts.merge_log`.

    Args:
        counts: folders that `profile` made, each part once.
        reports: folder with drift.json.
        page: drift.json for people.
        level: ok, suspected or drifted.
        params: text of params.yaml.
        log: URL of the prediction log.
        registry: URL of the registry whose champion is watched.
    """
    import shutil
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.log_parts import merge_log as step

    folder = Path(reports.path)
    suite = parse_params(params, where="params")
    parts = [Path(part.path) for part in counts]
    report = step(suite, parts=parts, log=log, registry=registry, report=folder / "drift.json")
    shutil.copyfile(folder / "drift.html", page.path)
    Path(level).write_text(report["level"], encoding="utf-8")
