"""KFP component `train`: splits and the encoder in, one adapter and head per task out."""

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train(
    prepared: dsl.Input[dsl.Dataset],
    encoder: dsl.Input[dsl.Model],
    trained: dsl.Output[dsl.Model],
    reports: dsl.Output[dsl.Artifact],
    page: dsl.Output[dsl.HTML],
    params: str,
    tasks: str = "",
    parent: str = "",
    registry: str = "",
    data_md5: str = "",
    code_digest: str = "",
):
    """Runs `mtlops.steps.train`.

    Args:
        prepared: folder of splits.
        encoder: folder of the pretrained encoder.
        trained: folder of the trained model.
        reports: folder with training.json.
        page: the same for people.
        params: text of params.yaml.
        tasks: comma list of the tasks to act on; empty for all.
        parent: bundle that all other tasks are taken from (`registry`: its champion); empty: there are no others.
        registry: URL of the registry that holds it.
        data_md5: content of `prepared`; only part of the cache key.
        code_digest: code in the image; only part of the cache key.
    """
    import os
    import shutil
    import tempfile
    from pathlib import Path

    from mtlops.params import parse_params
    from mtlops.steps.train import train as step
    from mtlops.tasks import split_names

    suite = parse_params(params, where="params", tasks="" if parent else tasks)
    if parent:
        suite = suite.retraining(split_names(tasks), parent)
    folder = Path(reports.path)
    step(
        suite,
        prepared=Path(prepared.path),
        encoder=Path(encoder.path),
        out=Path(trained.path),
        cache=Path(os.environ.get("MTLOPS_WORK") or tempfile.mkdtemp()) / "cache",
        report=folder / "training.json",
        registry=registry,
    )
    shutil.copyfile(folder / "training.html", page.path)
