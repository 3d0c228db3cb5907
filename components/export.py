"""KFP component `export`: a trained and judged model in, a bundle out."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def export(
    prepared: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    trained: dsl.Input[dsl.Model],
    judged: dsl.Input[dsl.Artifact],
    bundle: dsl.Output[dsl.Model],
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    params: str,
    tasks: str = "",
    reason: str = "",
    registry: str = "",
    data_md5: str = "",
    code_digest: str = "",
):
    """Runs `mtlops.steps.export`, whatever the verdict is.

    Args:
        prepared: folder of splits.
        encoder: folder of the pretrained encoder.
        trained: folder of the trained model.
        judged: folder with evaluation.json and decision.json.
        bundle: the model directory.
        reports: folder with export.json.
        page: the same for people.
        params: text of params.yaml.
        tasks: comma list of the tasks to act on; empty for all.
        reason: why this run was started; recorded with the bundle, not in it.
        registry: URL of the registry that holds an update's parent.
        data_md5: content of `prepared`; only part of the cache key.
        code_digest: code in the image; only part of the cache key.
    """
    import json
    import logging
    import os
    import shutil
    import tempfile
    from dataclasses import asdict
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.export import export as step

    suite = parse_params(params, where="params", tasks=tasks)
    folder = Path(reports.path)
    for chatty in ("onnx_ir", "onnxscript"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    result = step(
        suite,
        prepared=Path(prepared.path),
        encoder=Path(encoder.path),
        trained=Path(trained.path),
        cache=Path(os.environ.get("MTLOPS_WORK") or tempfile.mkdtemp()) / "cache",
        evaluation=Path(judged.path) / "evaluation.json",
        decision=Path(judged.path) / "decision.json",
        out=Path(bundle.path),
        report=folder / "export.json",
        registry=registry,
    )
    decision = json.loads((Path(judged.path) / "decision.json").read_text(encoding="utf-8"))
    bundle.metadata.update(asdict(result), suite=suite.suite.name, verdict=decision["verdict"], reason=reason)
    shutil.copyfile(folder / "export.html", page.path)
