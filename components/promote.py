"""KFP component `promote`: a judged and exported bundle in, the champion of a registry out."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def promote(
    bundle: dsl.Input[dsl.Model],
    judged: dsl.Input[dsl.Artifact],
    exported: dsl.Input[dsl.Artifact],
    champion: dsl.OutputPath(str),
    registry: str,
    reason: str = "",
):
    """Runs `mtlops.steps.promote`.

    Args:
        bundle: the model directory.
        judged: folder with decision.json.
        exported: folder with export.json.
        champion: id of the bundle that is champion now.
        registry: URL of the registry.
        reason: why this run was started; goes into the history, or else the decision's own reason.
    """
    from pathlib import Path

    from mtlops.steps.promote import promote as step

    promoted = step(
        registry=registry,
        bundle=Path(bundle.path),
        decision=Path(judged.path) / "decision.json",
        export=Path(exported.path) / "export.json",
        reason=reason,
    )
    Path(champion).write_text(promoted.bundle_id, encoding="utf-8")
