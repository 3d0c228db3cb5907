"""A bundle as other servers want it: a model repository for Triton, manifests for KServe. Needs no PyTorch.

triton   <suite>/config.pbtxt, <suite>/1/model.onnx: token ids in, logits out; plus what a client needs to make ids
         from texts and answers from logits
kserve   model/, serving-runtime.yaml, inference-service.yaml: the bundle itself, served by `mtlops serve`
"""

import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtlops.bundle import MANIFEST, Bundle
from mtlops.catalog import REFERENCE_VARIANT
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import link_or_copy, new_folder, write_text

STORAGE_PLACEHOLDER = "REPLACE-WITH-THE-URI-OF-THE-FOLDER-model"
"""What inference-service.yaml says until somebody says where the model lies."""

_ERRORS_ONLY = 3
_TRITON_TYPES = {"tensor(int64)": "TYPE_INT64", "tensor(float)": "TYPE_FP32", "tensor(float16)": "TYPE_FP16"}
_MOUNT = "/mnt/models"
_PORT = 8080
_EVERYWHERE = "0.0.0.0"  # noqa: S104 - of a pod
_FORMAT = "mtlops"


@dataclass(frozen=True)
class Layout:
    """What was written.

    Attributes:
        path: folder.
        layout: its kind.
        bundle: id of the bundle in it.
        variant: of the graph.
        files: below the folder.
    """

    path: str
    layout: str
    bundle: str
    variant: str
    files: list[str]


def write_triton(bundle: Bundle, to: Path, *, variant: str = REFERENCE_VARIANT) -> Layout:
    """Writes a model repository for Triton's ONNX Runtime backend; its one model is named after the suite.

    The graph's outputs other than logits need inputs that have a default, which Triton does not know: they are left
    out.

    Args:
        bundle: a checked bundle.
        to: folder to make.
        variant: of the graph.

    Raises:
        ArtefactError: the bundle has no such variant.
        UsageError: `to` is there already.
    """
    if tagging := [task.name for task in bundle.tasks if task.per_word]:
        raise UsageError(
            f"{bundle.folder}: task {tagging[0]!r} tags words, whose logits need an input with a default: Triton does "
            f"not know such. Serve the bundle with `mtlops serve`, or export a suite without this task."
        )
    file = str(bundle.variant(variant)["file"])
    inputs, outputs = _signature(bundle.folder / file)
    suite = str(bundle.manifest["suite"])
    with _fresh(to) as folder:
        model = folder / suite
        for name in (file, f"{file}.data"):
            if (bundle.folder / name).exists():
                _put(bundle.folder / name, model / "1" / name)
        _put(bundle.folder / "trunk/tokenizer.json", model / "tokenizer.json")
        config = _config(suite, file, inputs=inputs, outputs={"logits": outputs["logits"]}, bundle=bundle)
        write_text(model / "config.pbtxt", config)
    return _described(to, "triton", bundle, variant)


def write_kserve(
    bundle: Bundle,
    to: Path,
    *,
    image: str,
    variant: str = REFERENCE_VARIANT,
    storage_uri: str = STORAGE_PLACEHOLDER,
) -> Layout:
    """Writes the bundle, a ServingRuntime that runs `mtlops serve` on it, and an InferenceService.

    Args:
        bundle: a checked bundle.
        to: folder to make.
        image: container image with mtlops in it.
        variant: of the graph.
        storage_uri: from where KServe fetches the folder `model` (or the bundle of a registry).

    Raises:
        ArtefactError: the bundle has no such variant.
        UsageError: `to` is there already.
    """
    bundle.variant(variant)
    name = str(bundle.manifest["suite"]).replace("_", "-")
    with _fresh(to) as folder:
        for file in (*bundle.manifest["files"], MANIFEST):
            _put(bundle.folder / file, folder / "model" / file)
        runtime = _serving_runtime(f"{name}-mtlops", image=image, variant=variant)
        service = _inference_service(name, runtime=f"{name}-mtlops", storage_uri=storage_uri, bundle=bundle)
        for file, manifest in (("serving-runtime.yaml", runtime), ("inference-service.yaml", service)):
            write_text(folder / file, yaml.safe_dump(manifest, sort_keys=False))
    return _described(to, "kserve", bundle, variant)


def _fresh(to: Path) -> AbstractContextManager[Path]:
    if to.exists():
        raise UsageError(f"--to {to}: is there already. Name a folder that is not, or remove it.")
    return new_folder(to)


def _put(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    link_or_copy(source, target)


def _described(to: Path, layout: str, bundle: Bundle, variant: str) -> Layout:
    files = sorted(path.relative_to(to).as_posix() for path in to.rglob("*") if path.is_file())
    return Layout(to.as_posix(), layout, bundle.id, variant, files)


def _signature(graph: Path) -> tuple[dict[str, tuple[str, list[int]]], dict[str, tuple[str, list[int]]]]:
    """Inputs that must be given, and outputs: by name, Triton's type and sizes, -1 where any will do."""
    try:
        import onnxruntime
    except ImportError:
        raise UsageError("onnxruntime is not installed. Install `mtlops[cpu]` or `mtlops[gpu]`.") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        session = onnxruntime.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - onnxruntime's own errors share no base class
        raise ArtefactError(f"{graph}: ONNX Runtime cannot load it ({error}). Export the bundle again.") from None
    found = [
        {v.name: (_TRITON_TYPES[v.type], [size if isinstance(size, int) else -1 for size in v.shape]) for v in values}
        for values in (session.get_inputs(), session.get_outputs())
    ]
    return found[0], found[1]


def _config(
    suite: str,
    file: str,
    *,
    inputs: Mapping[str, tuple[str, list[int]]],
    outputs: Mapping[str, tuple[str, list[int]]],
    bundle: Bundle,
) -> str:
    """Returns config.pbtxt. Rows and pairs are no batch in Triton's sense: their numbers differ, so it makes none."""
    lines = [
        f'name: "{suite}"',
        'backend: "onnxruntime"',
        f'default_model_filename: "{file}"',
        "max_batch_size: 0",
    ]
    for kind, values in (("input", inputs), ("output", outputs)):
        for name, (datatype, sizes) in values.items():
            dims = ", ".join(map(str, sizes))
            lines.append(f'{kind} {{ name: "{name}" data_type: {datatype} dims: [ {dims} ] }}')
    for key, value in (("bundle", bundle.id), ("tasks", json.dumps(_task_facts(bundle)))):
        lines.append(f'parameters {{ key: "{key}" value {{ string_value: {json.dumps(value)} }} }}')
    return "\n".join(lines) + "\n"


def _task_facts(bundle: Bundle) -> dict[str, Any]:
    """What turns the logits of a pair into an answer."""
    wanted = ("position", "kind", "classes", "columns", "temperature", "threshold")
    return {
        name: {key: facts[key] for key in wanted if key in facts} for name, facts in bundle.manifest["tasks"].items()
    }


def _serving_runtime(name: str, *, image: str, variant: str) -> dict[str, Any]:
    probe = {"periodSeconds": 5, "timeoutSeconds": 2}
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": name},
        "spec": {
            "annotations": {"prometheus.kserve.io/port": "9090", "prometheus.kserve.io/path": "/metrics"},
            "supportedModelFormats": [{"name": _FORMAT, "version": "1", "autoSelect": True}],
            "protocolVersions": ["v2", "grpc-v2"],
            "containers": [
                {
                    "name": "kserve-container",
                    "image": image,
                    "command": ["mtlops"],
                    "args": [
                        "serve", "--bundle", _MOUNT, "--variant", variant, "--host", _EVERYWHERE, "--port", str(_PORT),
                        "--grpc-port", "9000", "--metrics-host", _EVERYWHERE, "--metrics-port", "9090",
                        "--threads", "1", "--drain-seconds", "5",
                    ],
                    "ports": [{"name": "http1", "containerPort": _PORT, "protocol": "TCP"}],
                    "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": _PORT}, **probe},
                    "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": _PORT}, **probe},
                    "resources": {
                        "requests": {"cpu": "1", "memory": "512Mi"},
                        "limits": {"cpu": "2", "memory": "1Gi"},
                    },
                    "securityContext": {
                        "runAsNonRoot": True, "allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]},
                    },
                }
            ],
        },
    }  # fmt: skip


def _inference_service(name: str, *, runtime: str, storage_uri: str, bundle: Bundle) -> dict[str, Any]:
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": name, "annotations": {"mtlops/bundle": bundle.id}},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "model": {
                    "modelFormat": {"name": _FORMAT, "version": "1"},
                    "runtime": runtime,
                    "protocolVersion": "v2",
                    "storageUri": storage_uri,
                },
            }
        },
    }
