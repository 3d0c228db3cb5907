"""What AdapterHub's library `adapters` 1.x writes into an adapter's folder: names, settings, files.

Source: adapter-hub/adapters 1.3.0, configuration/adapter_config.py, methods/{modeling,lora}.py, heads/base.py and
loading.py, https://github.com/adapter-hub/adapters
"""

import json
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlops.errors import DataError
from mtlops.model.adapters.anatomy import Tensors
from mtlops.tasks import Task

LAYOUT = "adapters.1.3.0"
"""What `version` in the files says: the library whose layout they have."""

CONFIG, HEAD_CONFIG = "adapter_config.json", "head_config.json"
WEIGHTS = ("pytorch_adapter.bin", "adapter.safetensors")
HEAD_WEIGHTS = ("pytorch_model_head.bin", "model_head.safetensors")
MODEL_CLASSES = MappingProxyType({
    "bert": "BertAdapterModel",
    "roberta": "RobertaAdapterModel",
    "xlm-roberta": "XLMRobertaAdapterModel",
    "distilbert": "DistilBertAdapterModel",
    "electra": "ElectraAdapterModel",
})  # fmt: skip
HEAD_TYPES = MappingProxyType({
    "binary": "classification",
    "multiclass": "classification",
    "ordinal": "classification",
    "regression": "classification",
    "multilabel": "multilabel_classification",
})  # fmt: skip

_BOTTLENECK: Mapping[str, Any] = MappingProxyType({
    "mh_adapter": False, "output_adapter": True, "reduction_factor": 16, "non_linearity": "relu",
    "original_ln_before": False, "original_ln_after": True, "ln_before": False, "ln_after": False,
    "init_weights": "bert", "init_weights_seed": None, "is_parallel": False, "scaling": 1.0, "use_gating": False,
    "residual_before_ln": True, "adapter_residual_before_ln": False, "inv_adapter": None,
    "inv_adapter_reduction_factor": None, "cross_adapter": False, "leave_out": [], "dropout": 0.0,
    "phm_layer": False, "phm_dim": 4, "factorized_phm_W": True, "shared_W_phm": False, "shared_phm_rule": True,
    "factorized_phm_rule": False, "phm_c_init": "normal", "phm_init_range": 0.0001, "learn_phm": True,
    "hypercomplex_nonlinearity": "glorot-uniform", "phm_rank": 1, "phm_bias": True, "stochastic_depth": 0.0,
})  # fmt: skip
_LORA: Mapping[str, Any] = MappingProxyType({
    "architecture": "lora", "selfattn_lora": True, "intermediate_lora": False, "output_lora": False, "leave_out": [],
    "r": 8, "alpha": 8, "dropout": 0.0, "attn_matrices": ["q", "v"], "composition_mode": "add",
    "init_weights": "lora", "init_weights_seed": None, "use_gating": False, "use_dora": False, "vera_d": None,
    "vera_b": None, "dtype": None,
})  # fmt: skip
FREE = frozenset({
    "reduction_factor", "leave_out", "scaling", "r", "alpha", "init_weights", "init_weights_seed", "dropout",
    "stochastic_depth", "dtype", "inv_adapter_reduction_factor", "phm_dim", "factorized_phm_W", "shared_W_phm",
    "shared_phm_rule", "factorized_phm_rule", "phm_c_init", "phm_init_range", "learn_phm",
    "hypercomplex_nonlinearity", "phm_rank", "phm_bias",
})  # fmt: skip
"""Settings that are compared on their own, matter in training only, or belong to one that must be off."""

_BOTTLENECK_LEAVES = (("down", "adapter_down.0.weight"), ("down_bias", "adapter_down.0.bias"),
                      ("up", "adapter_up.weight"), ("up_bias", "adapter_up.bias"))  # fmt: skip
_OUTPUT = {part: ("output", f"adapters.{{name}}.{leaf}") for part, leaf in _BOTTLENECK_LEAVES}
_ATTENTION = {f"attention_{part}": ("attention", leaf) for part, (_, leaf) in _OUTPUT.items()}


@dataclass(frozen=True)
class Kind:
    """A kind of adapter as the library has it.

    Attributes:
        settings: its configuration, where nothing depends on the model.
        parts: our part of a layer -> the module it is in (`attention`, `output`, `query` or `value`), its name there.
    """

    settings: Mapping[str, Any]
    parts: Mapping[str, tuple[str, str]]

    def default(self, key: str) -> Any:
        """Returns what the library takes where a file does not say a setting; None where it insists on one."""
        if key in ("architecture", "mh_adapter", "output_adapter", "non_linearity"):
            return None
        return (_LORA if "r" in self.settings else _BOTTLENECK)[key]


_PFEIFFER = Kind({**_BOTTLENECK, "original_ln_before": True}, _OUTPUT)
KINDS: Mapping[str, Kind] = MappingProxyType({
    "pfeiffer": _PFEIFFER,
    "masked": _PFEIFFER,
    "houlsby": Kind({**_BOTTLENECK, "mh_adapter": True, "non_linearity": "swish"}, {**_ATTENTION, **_OUTPUT}),
    "parallel": Kind({**_BOTTLENECK, "is_parallel": True, "init_weights": "mam_adapter"}, _OUTPUT),
    "lora": Kind(_LORA, {
        f"{name}_{matrix}": (name, f"loras.{{name}}.lora_{matrix.upper()}")
        for name in ("query", "value") for matrix in ("a", "b")
    }),
})  # fmt: skip
"""A `masked` adapter is served as `pfeiffer`, and can be taken along as one."""


def head_settings(task: Task) -> dict[str, Any]:
    """Returns the library's configuration of a head that is one linear map of the first token."""
    return {
        "head_type": HEAD_TYPES[task.kind],
        "num_labels": task.num_outputs,
        "layers": 1,
        "activation_function": None,
        "label2id": {label: position for position, label in enumerate(task.classes)} or None,
        "use_pooler": False,
        "bias": True,
        "dropout_prob": None,
    }


def reduction_factor(hidden: int, width: int) -> float:
    """Returns a reduction factor from which the library, by `hidden // factor`, comes to this width."""
    if hidden % width == 0:
        return hidden // width
    return next(f for f in (hidden / width, hidden / (width + 0.5)) if int(hidden // f) == width)


def read_config(path: Path) -> dict[str, Any]:
    """Returns what a configuration file says: `name`, `config` and facts about the model.

    Raises:
        DataError: it is none.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: is not readable JSON ({error}). Copy it again.") from None
    if not isinstance(value, dict) or not isinstance(value.get("config"), dict) or not value.get("name"):
        raise DataError(f"{path}: has no name and config, as a file of the library has.")
    return value


def weights_file(folder: Path, names: tuple[str, str]) -> Path:
    """Returns the file of weights in a folder, safetensors first.

    Raises:
        DataError: there is none.
    """
    for name in reversed(names):
        if (folder / name).is_file():
            return folder / name
    raise DataError(f"{folder}: has neither {names[1]} nor {names[0]}.")


def read_tensors(path: Path) -> Tensors:
    """Returns the tensors in a file; a pickle is read with `weights_only`, which runs nothing.

    Raises:
        DataError: it is damaged, or holds something else.
    """
    try:
        is_safetensors = path.suffix == ".safetensors"
        tensors: Any = load_file(path) if is_safetensors else torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, OSError, EOFError, RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise DataError(f"{path}: cannot be read ({reason}). Copy it again.") from None
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise DataError(f"{path}: does not hold tensors by name.")
    return dict(tensors)


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes tensors as the ending of `path` says."""
    if path.suffix == ".safetensors":
        save_file(dict(tensors), path)
    else:
        torch.save(dict(tensors), path)
