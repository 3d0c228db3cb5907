"""Exchange with AdapterHub's library `adapters` 1.x: taking an adapter there, and bringing one from there.

A matrix there is the transpose of ours. `tests/oracles/adapterhub.py` compares with the library itself.
"""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Generator, Tensor

from mtlops import catalog
from mtlops.bundle import Bundle
from mtlops.catalog import suggest
from mtlops.data.families import TrunkConfig
from mtlops.errors import ArtefactError, DataError, UsageError
from mtlops.files import atomic_folder, read_json, sha256_file, write_json
from mtlops.model import adapterhub_layout as layout
from mtlops.model.adapters.anatomy import Adapter, Sizes, Tensors
from mtlops.model.trained import load_model, save_task
from mtlops.params import Model
from mtlops.tasks import Task

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Moved:
    """An adapter that was written or read.

    Attributes:
        task: the task it belongs to.
        adapter: its kind.
        path: folder that was written.
        head: whether the task's head came along.
        remark: why it did not; empty where it did.
    """

    task: str
    adapter: str
    path: str
    head: bool
    remark: str


def export_adapter(bundle: Bundle, name: str, to: Path, *, safetensors: bool = False) -> Moved:
    """Writes the adapter of task `name`, and its head where the library has such a head, to the folder `to`.

    Args:
        bundle: a bundle.
        name: the task's name, and the adapter's in the library.
        to: a folder to make, or one of this layout to replace.
        safetensors: write safetensors (read with `use_safetensors=True`), not files of torch.save.

    Raises:
        UsageError: no such task, `to` holds something else, or the library has no such adapter or encoder.
        ArtefactError: the bundle's files do not fit each other.
    """
    task = _of(bundle.tasks, name)
    if to.exists() and not (to.is_dir() and ((to / layout.CONFIG).exists() or not any(to.iterdir()))):
        raise UsageError(f"{to}: exists and is no adapter's folder. Name another one, or move it.")
    side = _Side.make(
        Model.model_validate(bundle.manifest["params"]["model"]), TrunkConfig.read(bundle.folder / "trunk/config.json")
    )
    files = bundle.folder / "tasks" / name
    theirs = side.to_library(name, load_file(files / "adapter.safetensors"), where=files / "adapter.safetensors")
    remark = side.without_head(task)
    facts = side.facts(name, encoder=bundle.manifest["trunk"]["name"])
    with atomic_folder(to) as folder:
        write_json(folder / layout.CONFIG, {**facts, "config": side.settings})
        layout.write_tensors(folder / layout.WEIGHTS[safetensors], theirs)
        if not remark:
            head = load_file(files / "head.safetensors")
            write_json(folder / layout.HEAD_CONFIG, {**facts, "config": layout.head_settings(task)})
            layout.write_tensors(folder / layout.HEAD_WEIGHTS[safetensors], {
                f"heads.{name}.1.weight": head["head.weight"].T.contiguous(),
                f"heads.{name}.1.bias": head["head.bias"],
            })  # fmt: skip
    return Moved(name, side.model.adapter, str(to), not remark, remark)


def import_adapter(source: Path, name: str, *, trained: Path, encoder: Path) -> Moved:
    """Puts the adapter in folder `source` in the place of task `name`'s in a trained model.

    Its head takes the place of the task's where it fits; otherwise the task keeps its own, which was trained with
    another adapter. Files of other tasks stay as they are.

    Raises:
        UsageError: no such task or folder, or the trained model has adapters of a kind that is not exchanged.
        DataError: the adapter is not one that the trained model could hold; the message names the setting.
        ArtefactError: the trained model or the encoder is missing or damaged.
    """
    model = load_model(trained)
    task = _of(model.tasks, name)
    if read_json(encoder / "encoder.json", made_by="mtlops prepare") != model.encoder:
        raise ArtefactError(f"{trained}: was trained on another encoder than {encoder}. Run `mtlops train` again.")
    if not (source / layout.CONFIG).is_file():
        raise UsageError(f"{source}: has no {layout.CONFIG}. Name a folder that `save_adapter` of the library wrote.")
    side = _Side.make(model.model, TrunkConfig.read(encoder / "config.json"))
    if side.model.adapter == "masked":
        raise UsageError(f"{trained}: has masked adapters, which cannot be brought from elsewhere. Train `pfeiffer`.")
    facts = layout.read_config(source / layout.CONFIG)
    side.check(facts, where=source / layout.CONFIG)
    _warn_about_encoder(facts, str(model.encoder["name"]))
    weights = layout.weights_file(source, layout.WEIGHTS)
    tensors = side.from_library(str(facts["name"]), layout.read_tensors(weights), where=weights)
    head, remark = _read_head(source, task, side)
    tensors |= head or {n: t for n, t in model.tensors[name].items() if n.startswith("head.")}
    known = read_json(trained / "tasks" / name / "task.json", made_by="mtlops train")
    known = {key: value for key, value in known.items() if key not in ("name", "best_epoch", *task.facts())}
    origin = {
        "name": facts["name"], "model_name": facts.get("model_name"), "version": facts.get("version"),
        "sha256": sha256_file(weights), "head": bool(head),
    }  # fmt: skip
    target = trained / "tasks" / name
    with atomic_folder(target) as folder:
        save_task(folder, task, tensors, facts=known | {
            "parameters": sum(tensor.numel() for tensor in tensors.values()), "imported": origin,
        })  # fmt: skip
        for file in sorted((folder / "tasks" / name).iterdir()):
            file.replace(folder / file.name)
        (folder / "tasks" / name).rmdir()
        (folder / "tasks").rmdir()
    return Moved(name, side.model.adapter, str(target), bool(head), remark)


@dataclass(frozen=True)
class _Side:
    """Our side of the exchange: a model's adapters on an encoder, and how the library would describe them."""

    model: Model
    config: TrunkConfig
    adapter: Adapter
    kind: layout.Kind

    @classmethod
    def make(cls, model: Model, config: TrunkConfig) -> "_Side":
        if model.sharing != "adapters" or model.adapter not in layout.KINDS:
            what = model.adapter if model.sharing == "adapters" else f"sharing {model.sharing}"
            raise UsageError(
                f"model.adapter: {what!r} has no counterpart in AdapterHub's layout. It can hold: "
                f"{', '.join(layout.KINDS)}."
            )
        if config.model_type not in layout.MODEL_CLASSES:
            raise UsageError(f"encoder: the library `adapters` has no models of family {config.model_type!r}.")
        sizes = Sizes(hidden=config.hidden_size, feed_forward=config.intermediate_size)
        layers = range(model.adapter_drop, config.num_hidden_layers)
        adapter = catalog.load(catalog.ADAPTERS[model.adapter].code)(sizes, layers, model)
        return cls(model, config, adapter, layout.KINDS[model.adapter])

    @property
    def settings(self) -> dict[str, Any]:
        """The library's configuration of such an adapter."""
        own: dict[str, Any] = {"leave_out": list(range(self.model.adapter_drop))}
        width = self.adapter.bottleneck
        if "r" in self.kind.settings:
            alpha = self.adapter.scaling * width
            own |= {"r": width, "alpha": int(alpha) if alpha == int(alpha) else alpha}
        else:
            own |= {
                "reduction_factor": layout.reduction_factor(self.config.hidden_size, width),
                "scaling": self._scaling,
            }
        return {**self.kind.settings, **own}

    @property
    def _scaling(self) -> float:
        """What our formula multiplies by; bottlenecks in series know no factor."""
        return self.adapter.scaling if self.model.adapter in ("parallel", "lora") else 1.0

    def facts(self, name: str, *, encoder: str) -> dict[str, Any]:
        """What both configuration files say beside the configuration."""
        return {
            "model_type": self.config.model_type,
            "hidden_size": self.config.hidden_size,
            "model_name": encoder,
            "name": name,
            "model_class": layout.MODEL_CLASSES[self.config.model_type],
            "version": layout.LAYOUT,
        }

    def names(self, name: str) -> dict[str, str]:
        """Our tensor names mapped to the library's, without what stands in front of the layers."""
        family = self.config.family
        modules = {**family.parts, "attention": "attention.output", "output": "output"}
        if self.config.model_type == "distilbert":
            modules |= {"attention": "attention_adapters", "output": "output_adapters"}
        return {
            f"layers.{layer}.{part}": f"{family.layers}.{layer}.{modules[module]}.{leaf.format(name=name)}"
            for layer in self.adapter.layers
            for part, (module, leaf) in self.kind.parts.items()
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of one task's tensors by our names."""
        fresh = self.adapter.bank(self.adapter.init_task(Generator()), training=False)
        return {name: tuple(tensor.shape) for name, tensor in fresh.items()}

    def to_library(self, name: str, tensors: Mapping[str, Tensor], *, where: Path) -> Tensors:
        """Returns the tensors under the library's names and in its orientation."""
        if {n: tuple(t.shape) for n, t in tensors.items()} != self.shapes():
            raise ArtefactError(f"{where}: does not hold {self.model.adapter} adapters as params.yaml described them.")
        return {self.config.family.prefix + n: _turned(tensors[ours]) for ours, n in self.names(name).items()}

    def from_library(self, name: str, tensors: Mapping[str, Tensor], *, where: Path) -> Tensors:
        """Returns the tensors under our names and in our orientation, every one of them used."""
        plain = {n.removeprefix(self.config.family.prefix): tensor for n, tensor in tensors.items()}
        names, shapes = self.names(name), self.shapes()
        if unknown := sorted(plain.keys() - set(names.values())):
            raise DataError(f"{where}: holds {unknown[0]}, which a {self.model.adapter} adapter here does not have.")
        found = {}
        for ours, theirs in names.items():
            if theirs not in plain:
                raise DataError(f"{where}: has no {theirs}.")
            found[ours] = _turned(plain[theirs]).to(torch.float32)
            if tuple(found[ours].shape) != shapes[ours]:
                raise DataError(
                    f"{where}: {theirs} has shape {tuple(plain[theirs].shape)}; with a bottleneck of "
                    f"{self.adapter.bottleneck}, as here, it would be {tuple(reversed(shapes[ours]))}. "
                    f"Train with that model.bottleneck."
                )
        return found

    def check(self, facts: Mapping[str, Any], *, where: Path) -> None:
        """Refuses an adapter that computes something else than ours do, naming the setting."""
        for key, expected in (("model_type", self.config.model_type), ("hidden_size", self.config.hidden_size)):
            if facts.get(key) != expected:
                raise DataError(f"{where}: {key} is {facts.get(key)!r}; the encoder here has {expected!r}.")
        theirs = _normalised(facts["config"])
        method = "lora" if "r" in self.kind.settings else None
        if theirs.get("architecture") != method:
            found = theirs.get("architecture") or "bottleneck"
            raise DataError(f"{where}: architecture is {found!r}; the model here has {self.model.adapter} adapters.")
        for key, expected in self.kind.settings.items():
            if key not in layout.FREE and (value := theirs.get(key, self.kind.default(key))) != expected:
                raise DataError(f"{where}: {key} is {value!r}; a {self.model.adapter} adapter here has {expected!r}.")
        if unknown := sorted(theirs.keys() - self.kind.settings.keys()):
            raise DataError(f"{where}: setting {unknown[0]} is not known for a {self.model.adapter} adapter.")
        dropped, left_out = list(range(self.model.adapter_drop)), theirs.get("leave_out") or []
        if not isinstance(left_out, list) or {*map(str, left_out)} != {*map(str, dropped)}:
            raise DataError(
                f"{where}: leave_out is {left_out!r}; the model here has model.adapter_drop "
                f"{self.model.adapter_drop}, which is {dropped}."
            )
        scaling = _scaling_of(theirs, str(facts.get("version", "")))
        if not isinstance(scaling, int | float) or not math.isclose(scaling, self._scaling, rel_tol=1e-6):
            raise DataError(
                f"{where}: scaling (of LoRA: alpha / r) is {scaling!r}; the model here has {self._scaling}. "
                f"Train with that model.scaling, if the kind has one."
            )

    def without_head(self, task: Task) -> str:
        """Why a head of this task cannot be exchanged; empty where it can."""
        if task.kind not in layout.HEAD_TYPES:
            return f"AdapterHub has no head for kind {task.kind}"
        if self.model.pooling != "cls":
            return f"AdapterHub's heads read the first token, the model here has pooling {self.model.pooling!r}"
        return ""


def _read_head(source: Path, task: Task, side: _Side) -> tuple[Tensors, str]:
    """The head in a folder by our names, its outputs in the order of the task's classes; or {} and why not.

    With one layer the library never applies `activation_function`, whatever it says (heads/base.py, `build`).
    """
    if not (source / layout.HEAD_CONFIG).is_file():
        return {}, "the folder has no head"
    if remark := side.without_head(task):
        return {}, remark
    facts = layout.read_config(source / layout.HEAD_CONFIG)
    theirs, expected = facts["config"], layout.head_settings(task)
    for key in ("head_type", "num_labels", "layers", "use_pooler", "bias"):
        if theirs.get(key, expected[key] if key == "bias" else None) != expected[key]:
            return {}, f"{layout.HEAD_CONFIG}: {key} is {theirs.get(key)!r}; one for this task has {expected[key]!r}"
    positions = theirs.get("label2id") if task.classes else None
    if positions and not _covers(positions, task):
        return {}, f"{layout.HEAD_CONFIG}: label2id is {positions}, the task's classes are {list(task.classes)}"
    path = layout.weights_file(source, layout.HEAD_WEIGHTS)
    tensors = layout.read_tensors(path)
    weight, bias = (tensors.get(f"heads.{facts['name']}.1.{leaf}") for leaf in ("weight", "bias"))
    shape = (task.num_outputs, side.config.hidden_size)
    if weight is None or bias is None or tuple(weight.shape) != shape or tuple(bias.shape) != shape[:1]:
        raise DataError(f"{path}: does not hold heads.{facts['name']}.1 of shape {shape} as its configuration says.")
    order = [positions[label] for label in task.classes] if positions else list(range(task.num_outputs))
    return {"head.weight": _turned(weight[order]).float(), "head.bias": bias[order].float()}, ""


def _covers(positions: Mapping[str, Any], task: Task) -> bool:
    return set(positions) == set(task.classes) and sorted(positions.values()) == list(range(task.num_outputs))


def _of(tasks: tuple[Task, ...], name: str) -> Task:
    by_name = {task.name: task for task in tasks}
    if name not in by_name:
        raise UsageError(f"--task: no task {name!r}. {suggest(name, list(by_name))}")
    return by_name[name]


def _turned(tensor: Tensor) -> Tensor:
    return tensor.T.contiguous() if tensor.dim() == 2 else tensor


def _normalised(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with one word for one thing."""
    theirs = dict(settings)
    if theirs.get("non_linearity") == "silu":
        theirs["non_linearity"] = "swish"
    if theirs.get("architecture", "") is None:
        del theirs["architecture"]
    return theirs


def _scaling_of(settings: Mapping[str, Any], version: str) -> Any:
    """What the library multiplies by. Before 1.1 it ignored alpha, and still does for adapters of that time."""
    if settings.get("architecture") != "lora":
        return settings.get("scaling", 1.0)
    if version.startswith(("adapters.0.", "adapters.1.0.")):
        return 1.0
    alpha, rank = settings.get("alpha", 8), settings.get("r", 8)
    return alpha / rank if isinstance(alpha, int | float) and isinstance(rank, int) and rank else None


def _warn_about_encoder(facts: Mapping[str, Any], ours: str) -> None:
    theirs = str(facts.get("model_name") or "")
    if theirs.rpartition("/")[2].lower() != ours.rpartition("/")[2].lower():
        logger.warning("the adapter was trained on encoder %r; the one here is called %r", theirs, ours)
