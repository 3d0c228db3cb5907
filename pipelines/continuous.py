"""The continuous pipeline: some tasks of the champion are trained again, with a labelled window of production rows.

    prepare -> admit -> validate -> train -> evaluate -> export -> promote, if the verdict is PROMOTE
                                               `-> show, once for each task that was trained

The steps are those of the training pipeline; `admit` adds the window, and `train` takes every other task from the
champion. `prepare` runs once for as long as the raw data stay as they are.
"""

from kfp import dsl

from components.admit import admit
from components.evaluate import evaluate
from components.export import export
from components.prepare import prepare
from components.promote import promote
from components.show import show
from components.train import train
from components.validate import validate
from pipelines.training import Outputs, give_accelerator, give_shared_memory, place

CHAMPION = "registry"
"""What `train` calls the bundle that the other tasks are taken from."""


def continuous_pipeline(image: str, *, accelerator: str = "") -> dsl.base_component.BaseComponent:
    """Returns the pipeline `mtlops-continuous`.

    Args:
        image: container image of every task.
        accelerator: resource name of the accelerator that `train` gets one of, such as `nvidia.com/gpu`; empty: none.
    """

    def continuous(
        params: str,
        tasks: str,
        registry: str,
        window: str,
        reason: str = "",
        data_repo: str = "",
        data_rev: str = "",
        data_md5: str = "",
        window_md5: str = "",
        code_digest: str = "",
    ) -> Outputs:
        source = {"data_repo": data_repo, "data_rev": data_rev}
        prepared = place(prepare(params=params, **source, data_md5=data_md5, code_digest=code_digest), "prepare", image)
        admitted = place(
            admit(
                prepared=prepared.outputs["prepared"],
                params=params,
                tasks=tasks,
                window=window,
                **source,
                data_md5=prepared.outputs["data_md5"],
                window_md5=window_md5,
                code_digest=code_digest,
            ),
            "admit",
            image,
        )
        key = {"params": params, "data_md5": admitted.outputs["data_md5"], "code_digest": code_digest}
        data = {"prepared": admitted.outputs["admitted"]}
        validated = place(validate(**data, **key), "validate", image)
        data["encoder"] = prepared.outputs["encoder"]
        trained = place(train(**data, **key, tasks=tasks, parent=CHAMPION, registry=registry), "train", image)
        trained.after(validated).set_caching_options(False)  # its key would not change with the champion
        give_shared_memory(trained)
        if accelerator:
            give_accelerator(trained, accelerator)
        data["trained"] = trained.outputs["trained"]
        judged = place(evaluate(**data, **key, registry=registry), "evaluate", image).set_caching_options(False)
        with dsl.ParallelFor(judged.outputs["Output"], name="each-task", parallelism=1) as task:
            place(show(reports=judged.outputs["reports"], task=task), "show", image).set_caching_options(False)
        exported = place(
            export(**data, **key, judged=judged.outputs["reports"], reason=reason, registry=registry), "export", image
        ).set_caching_options(False)
        made = {"bundle": exported.outputs["bundle"], "exported": exported.outputs["reports"]}
        # kfp.local finds the outputs of tasks for a condition inside another one only; on its own it would be false.
        with dsl.If(registry != "", name="has-registry"), dsl.If(judged.outputs["verdict"] == "PROMOTE", name="passed"):
            promoted = promote(**made, judged=judged.outputs["reports"], registry=registry, reason=reason)
            place(promoted, "promote", image).set_caching_options(False)
        return Outputs(bundle=exported.outputs["bundle"], verdict=judged.outputs["verdict"])

    about = "Trains some tasks of the champion again with a labelled window, judges them and takes the others over."
    return dsl.pipeline(name="mtlops-continuous", description=about)(continuous)
