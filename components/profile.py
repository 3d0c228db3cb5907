"""KFP component `profile`: counts of a part of the prediction log, beside the other parts."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def profile(
    counts: dsl.Output[dsl.Artifact],
    log: str,
    registry: str,
    since: str,
    until: str,
    part: str,
):
    """Runs `mtlops.steps.log_parts.profile_log`.

    Args:
        counts: folder with the part's counts.
        log: URL of the prediction log.
        registry: URL of the registry whose champion is watched.
        since: first day, YYYY-MM-DD, UTC.
        until: last day, one that has ended.
        part: K/N.
    """
    from pathlib import Path

    from mtlops.steps.log_parts import profile_log as step

    step(log=log, part=part, since=since, until=until, out=Path(counts.path), registry=registry)
