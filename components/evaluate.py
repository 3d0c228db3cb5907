"""KFP component `evaluate`: measures every task beside its baselines and the champion, and decides."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    prepared: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    trained: dsl.Input[dsl.Model],
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    verdict: dsl.OutputPath(str),
    params: str,
    tasks: str = "",
    registry: str = "",
    data_md5: str = "",
    code_digest: str = "",
) -> list:
    """Runs `mtlops.steps.evaluate`.

    Args:
        prepared: folder of splits.
        encoder: folder of the pretrained encoder.
        trained: folder of the trained model.
        reports: folder with evaluation.json and decision.json.
        page: evaluation.json for people.
        verdict: PROMOTE, HOLD or REJECT.
        params: text of params.yaml.
        tasks: comma list of the tasks to act on; empty for all.
        registry: URL of the registry whose champion answers the same rows, and of an update's parent.
        data_md5: content of `prepared`; only part of the cache key.
        code_digest: code in the image; only part of the cache key.

    Returns:
        The names of the tasks that were judged. It is the unnamed output because kfp.local loops over no other.
    """
    import json
    import os
    import shutil
    import tempfile
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.evaluate import evaluate as step

    suite = parse_params(params, where="params", tasks=tasks)
    folder = Path(reports.path)
    result = step(
        suite,
        prepared=Path(prepared.path),
        encoder=Path(encoder.path),
        trained=Path(trained.path),
        cache=Path(os.environ.get("MTLOPS_WORK") or tempfile.mkdtemp()) / "cache",
        report=folder / "evaluation.json",
        decision=folder / "decision.json",
        registry=registry,
    )
    shutil.copyfile(folder / "evaluation.html", page.path)
    Path(verdict).write_text(result.verdict, encoding="utf-8")
    return list(json.loads((folder / "evaluation.json").read_text(encoding="utf-8"))["tasks"])
