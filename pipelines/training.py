"""The training pipeline: the steps of dvc.yaml as Kubeflow tasks.

    prepare -> validate -> train -> evaluate -> export -> promote, if there is a registry and the verdict is PROMOTE
                                       `-> show, once for each task of the suite

Later tasks receive the digest of what `prepare` made: Kubeflow's own cache key sees an artifact's name, not
its content.
"""

from typing import NamedTuple

from kfp import dsl, kubernetes

from components.evaluate import evaluate
from components.export import export
from components.prepare import prepare
from components.promote import promote
from components.show import show
from components.train import train
from components.validate import validate

RESOURCES = {
    "prepare": ("1", "2Gi"),
    "admit": ("500m", "1Gi"),
    "validate": ("1", "2Gi"),
    "train": ("2", "4Gi"),
    "evaluate": ("2", "4Gi"),
    "show": ("100m", "256Mi"),
    "export": ("1", "4Gi"),
    "promote": ("500m", "1Gi"),
    "profile": ("1", "1Gi"),
    "merge": ("500m", "1Gi"),
}
"""CPU and memory that each task asks for."""


class Outputs(NamedTuple):
    """What the pipeline hands on."""

    bundle: dsl.Model
    verdict: str


def training_pipeline(image: str, *, accelerator: str = "") -> dsl.base_component.BaseComponent:
    """Returns the pipeline `mtlops-training`.

    Args:
        image: container image of every task.
        accelerator: resource name of the accelerator that `train` gets one of, such as `nvidia.com/gpu`; empty: none.
    """

    def training(
        params: str,
        tasks: str = "",
        reason: str = "",
        registry: str = "",
        data_repo: str = "",
        data_rev: str = "",
        data_md5: str = "",
        code_digest: str = "",
    ) -> Outputs:
        prepared = place(
            prepare(
                params=params,
                tasks=tasks,
                data_repo=data_repo,
                data_rev=data_rev,
                data_md5=data_md5,
                code_digest=code_digest,
            ),
            "prepare",
            image,
        )
        key = {
            "params": params,
            "tasks": tasks,
            "data_md5": prepared.outputs["data_md5"],
            "code_digest": code_digest,
        }
        data = {"prepared": prepared.outputs["prepared"]}
        validated = place(validate(**data, **key), "validate", image)
        data["encoder"] = prepared.outputs["encoder"]
        trained = place(train(**data, **key), "train", image).after(validated)
        give_shared_memory(trained)
        if accelerator:
            give_accelerator(trained, accelerator)
        data["trained"] = trained.outputs["trained"]
        judged = place(evaluate(**data, **key, registry=registry), "evaluate", image).set_caching_options(False)
        with dsl.ParallelFor(judged.outputs["Output"], name="each-task", parallelism=1) as task:
            place(show(reports=judged.outputs["reports"], task=task), "show", image).set_caching_options(False)
        exported = place(export(**data, **key, judged=judged.outputs["reports"], reason=reason), "export", image)
        exported.set_caching_options(False)  # its key would not change with the verdict
        made = {"bundle": exported.outputs["bundle"], "exported": exported.outputs["reports"]}
        with dsl.If(registry != "", name="has-registry"), dsl.If(judged.outputs["verdict"] == "PROMOTE", name="passed"):
            promoted = promote(**made, judged=judged.outputs["reports"], registry=registry, reason=reason)
            place(promoted, "promote", image).set_caching_options(False)
        return Outputs(bundle=exported.outputs["bundle"], verdict=judged.outputs["verdict"])

    return dsl.pipeline(name="mtlops-training", description="Trains, judges and exports a suite of tasks.")(training)


def place(task: dsl.PipelineTask, step: str, image: str) -> dsl.PipelineTask:
    """Returns a task with its image and the resources of its step."""
    cpu, memory = RESOURCES[step]
    return task.set_container_image(image).set_cpu_request(cpu).set_memory_request(memory)


def give_shared_memory(task: dsl.PipelineTask) -> None:
    """PyTorch's data loading workers hand tensors over in /dev/shm, which a pod has 64 MB of by default."""
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory")  # noqa: S108


def give_accelerator(task: dsl.PipelineTask, accelerator: str) -> None:
    """Asks for one accelerator of that resource name."""
    task.set_accelerator_type(accelerator).set_accelerator_limit(1)
    kubernetes.add_toleration(task, key=accelerator, operator="Exists", effect="NoSchedule")
