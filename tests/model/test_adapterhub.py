"""Adapters go to AdapterHub's layout and come from it. `tests/oracles/adapterhub.py` asks the library itself."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from mtlops.cli import main
from mtlops.errors import ArtefactError, DataError, UsageError
from mtlops.files import sha256_tree
from mtlops.model.adapterhub import export_adapter, import_adapter
from mtlops.model.adapterhub_layout import reduction_factor
from mtlops.model.trained import load_model
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_model import MOOD, STARS, write_bundle, write_trained

LAYERS, HIDDEN, WIDTH, RANK = (1, 2), 16, 2, 2

# As the library 1.3.0 writes them for a BERT of 3 layers, `leave_out=[0]`.
_BOTTLENECK = {
    "adapter_residual_before_ln": False, "cross_adapter": False, "dropout": 0.0, "factorized_phm_W": True,
    "factorized_phm_rule": False, "hypercomplex_nonlinearity": "glorot-uniform", "init_weights": "bert",
    "init_weights_seed": None, "inv_adapter": None, "inv_adapter_reduction_factor": None, "is_parallel": False,
    "learn_phm": True, "leave_out": [0], "ln_after": False, "ln_before": False, "mh_adapter": False,
    "non_linearity": "relu", "original_ln_after": True, "original_ln_before": True, "output_adapter": True,
    "phm_bias": True, "phm_c_init": "normal", "phm_dim": 4, "phm_init_range": 0.0001, "phm_layer": False,
    "phm_rank": 1, "reduction_factor": 8, "residual_before_ln": True, "scaling": 1.0, "shared_W_phm": False,
    "shared_phm_rule": True, "stochastic_depth": 0.0, "use_gating": False,
}  # fmt: skip
SETTINGS: dict[str, dict[str, Any]] = {
    "pfeiffer": _BOTTLENECK,
    "houlsby": _BOTTLENECK | {"mh_adapter": True, "non_linearity": "swish", "original_ln_before": False},
    "parallel": _BOTTLENECK
    | {"init_weights": "mam_adapter", "is_parallel": True, "original_ln_before": False, "scaling": 4.0},
    "lora": {
        "alpha": 2, "architecture": "lora", "attn_matrices": ["q", "v"], "composition_mode": "add", "dropout": 0.0,
        "dtype": None, "init_weights": "lora", "init_weights_seed": None, "intermediate_lora": False, "leave_out": [0],
        "output_lora": False, "r": RANK, "selfattn_lora": True, "use_dora": False, "use_gating": False, "vera_b": None,
        "vera_d": None,
    },
}  # fmt: skip
_AFTER_ATTENTION = "bert.encoder.layer.{}.attention.output.adapters.{}."
_AFTER_FEED_FORWARD = "bert.encoder.layer.{}.output.adapters.{}."
_PLACES = {
    "pfeiffer": {"": _AFTER_FEED_FORWARD},
    "houlsby": {"attention_": _AFTER_ATTENTION, "": _AFTER_FEED_FORWARD},
    "parallel": {"": _AFTER_FEED_FORWARD},
    "lora": {f"{n}_": "bert.encoder.layer.{}.attention.self." + n + ".loras.{}." for n in ("query", "value")},
}


def _their_tensors(kind: str, name: str, generator: torch.Generator) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Random tensors twice: under the library's names, and under ours."""
    theirs, ours = {}, {}
    for layer in LAYERS:
        for ours_prefix, pattern in _PLACES[kind].items():
            prefix, at = pattern.format(layer, name), f"layers.{layer}.{ours_prefix}"
            if kind == "lora":
                a, b = torch.randn(RANK, HIDDEN, generator=generator), torch.randn(HIDDEN, RANK, generator=generator)
                theirs |= {f"{prefix}lora_A": a, f"{prefix}lora_B": b}
                ours |= {f"{at}a": a.T, f"{at}b": b.T}
                continue
            down, up = torch.randn(WIDTH, HIDDEN, generator=generator), torch.randn(HIDDEN, WIDTH, generator=generator)
            down_bias, up_bias = torch.randn(WIDTH, generator=generator), torch.randn(HIDDEN, generator=generator)
            theirs |= {f"{prefix}adapter_down.0.weight": down, f"{prefix}adapter_down.0.bias": down_bias}
            theirs |= {f"{prefix}adapter_up.weight": up, f"{prefix}adapter_up.bias": up_bias}
            ours |= {f"{at}down": down.T, f"{at}down_bias": down_bias, f"{at}up": up.T, f"{at}up_bias": up_bias}
    return theirs, ours


def _facts(name: str, config: dict[str, Any], /, **changes: object) -> str:
    facts = {
        "config": config, "hidden_size": HIDDEN, "model_class": "BertAdapterModel", "model_name": "tiny",
        "model_type": "bert", "name": name, "version": "adapters.1.3.0",
    }  # fmt: skip
    return json.dumps(facts | changes)


def _write(folder: Path, kind: str, *, name: str = "sst", settings: dict[str, Any] | None = None) -> dict[str, Tensor]:
    """Writes an adapter as the library does; returns its tensors under our names."""
    folder.mkdir()
    theirs, ours = _their_tensors(kind, name, torch.Generator().manual_seed(7))
    torch.save(theirs, folder / "pytorch_adapter.bin")
    (folder / "adapter_config.json").write_text(_facts(name, SETTINGS[kind] | (settings or {})))
    return ours


def _write_head(
    folder: Path, *, name: str = "sst", classes: tuple[str, ...] = MOOD.classes, **changes: object
) -> Tensor:
    config = {
        "activation_function": "tanh", "bias": True, "dropout_prob": None, "head_type": "classification",
        "label2id": {label: i for i, label in enumerate(classes)} or None, "layers": 1, "num_labels": 3,
        "use_pooler": False,
    }  # fmt: skip
    weight = torch.randn(3, HIDDEN, generator=torch.Generator().manual_seed(8))
    tensors = {"heads.sst.1.weight": weight, "heads.sst.1.bias": torch.arange(3.0)}
    torch.save(tensors, folder / "pytorch_model_head.bin")
    (folder / "head_config.json").write_text(_facts("sst", config | changes))
    return weight


def _model(kind: str, **changes: object) -> Model:
    return Model.model_validate({"adapter": kind, "adapter_drop": 1, "bottleneck": WIDTH, "pooling": "cls"} | changes)


def _import(root: Path, folder: Path, name: str = "mood") -> Any:
    return import_adapter(folder, name, trained=root / "trained", encoder=root / "encoder")


@pytest.mark.parametrize("kind", SETTINGS)
def test_an_exported_adapter_lies_as_the_library_saves_it(tmp_path: Path, kind: str) -> None:
    model = _model(kind)
    write_trained(tmp_path, model)
    moved = export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out")
    assert moved.head and moved.adapter == kind
    assert json.loads((tmp_path / "out/adapter_config.json").read_text()) == json.loads(_facts("mood", SETTINGS[kind]))
    theirs, names = _their_tensors(kind, "mood", torch.Generator())
    written = torch.load(tmp_path / "out/pytorch_adapter.bin", weights_only=True)
    assert {n: t.shape for n, t in written.items()} == {n: t.shape for n, t in theirs.items()}
    ours = load_model(tmp_path / "trained").tensors["mood"]
    for name, (their_name, tensor) in zip(names, written.items(), strict=True):
        assert torch.equal(tensor, ours[name].T if tensor.dim() == 2 else ours[name]), their_name
    head = torch.load(tmp_path / "out/pytorch_model_head.bin", weights_only=True)
    assert torch.equal(head["heads.mood.1.weight"], ours["head.weight"].T)
    assert torch.equal(head["heads.mood.1.bias"], ours["head.bias"])
    config = json.loads((tmp_path / "out/head_config.json").read_text())["config"]
    assert config["label2id"] == {"bad": 0, "fair": 1, "good": 2} and config["num_labels"] == 3


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("is_safetensors", [False, True])
def test_an_imported_adapter_takes_the_place_of_the_task_s(tmp_path: Path, kind: str, is_safetensors: bool) -> None:
    trained = write_trained(tmp_path, _model(kind))
    ours = _write(tmp_path / "in", kind)
    weight = _write_head(tmp_path / "in", classes=("good", "bad", "fair"))
    if is_safetensors:
        for old, new in (("pytorch_adapter.bin", "adapter"), ("pytorch_model_head.bin", "model_head")):
            save_file(torch.load(tmp_path / "in" / old, weights_only=True), tmp_path / f"in/{new}.safetensors")
            (tmp_path / "in" / old).unlink()
    others = sha256_tree(trained / "tasks/stars"), (trained / "model.json").read_bytes()
    moved = _import(tmp_path, tmp_path / "in")
    assert moved.head and not moved.remark
    assert others == (sha256_tree(trained / "tasks/stars"), (trained / "model.json").read_bytes())
    found = load_model(trained).tensors["mood"]
    assert found.keys() == {*ours, "head.weight", "head.bias"}
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.items())
    assert torch.equal(found["head.weight"], weight[[1, 2, 0]].T) and found["head.bias"].tolist() == [1.0, 2.0, 0.0]
    facts = json.loads((trained / "tasks/mood/task.json").read_text())
    assert facts["imported"]["name"] == "sst" and facts["imported"]["head"] and "best_epoch" not in facts
    assert {path.name for path in (trained / "tasks/mood").iterdir()} == {
        "adapter.safetensors", "head.safetensors", "task.json",
    }  # fmt: skip


@pytest.mark.parametrize("kind", SETTINGS)
@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_there_and_back_is_the_same_to_the_bit(tmp_path: Path, kind: str, family: str) -> None:
    model = _model(kind)
    trained = write_trained(tmp_path, model, family=family)
    before = {p.name: p.read_bytes() for p in (trained / "tasks/mood").glob("*.safetensors")}
    export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out", safetensors=True)
    for path in (trained / "tasks/mood").glob("*.safetensors"):
        save_file({n: torch.zeros_like(t) for n, t in load_file(path).items()}, path)
    _import(tmp_path, tmp_path / "out")
    assert before == {p.name: p.read_bytes() for p in (trained / "tasks/mood").glob("*.safetensors")}


def test_names_in_distilbert(tmp_path: Path) -> None:
    model = _model("houlsby")
    write_trained(tmp_path, model, family="distilbert")
    export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out")
    names = set(torch.load(tmp_path / "out/pytorch_adapter.bin", weights_only=True))
    assert "distilbert.transformer.layer.1.attention_adapters.adapters.mood.adapter_down.0.weight" in names
    assert "distilbert.transformer.layer.2.output_adapters.adapters.mood.adapter_up.bias" in names


def test_an_adapter_saved_from_a_bare_model_has_no_prefix(tmp_path: Path) -> None:
    write_trained(tmp_path, _model("pfeiffer"))
    ours = _write(tmp_path / "in", "pfeiffer")
    path = tmp_path / "in/pytorch_adapter.bin"
    theirs = torch.load(path, weights_only=True)
    torch.save({name.removeprefix("bert."): tensor for name, tensor in theirs.items()}, path)
    moved = _import(tmp_path, tmp_path / "in")
    assert (moved.head, moved.remark) == (False, "the folder has no head")
    found = load_model(tmp_path / "trained").tensors["mood"]
    assert all(torch.equal(found[name], tensor) for name, tensor in ours.items())


def test_a_masked_adapter_goes_along_as_pfeiffer(tmp_path: Path) -> None:
    model = _model("masked")
    write_trained(tmp_path, model)
    export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out")
    assert json.loads((tmp_path / "out/adapter_config.json").read_text())["config"] == SETTINGS["pfeiffer"]
    with pytest.raises(UsageError, match="masked adapters, which cannot be brought from elsewhere"):
        _import(tmp_path, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ln_before": True}, "ln_before is True; a pfeiffer adapter here has False"),
        ({"use_gating": True}, "use_gating is True"),
        ({"phm_layer": True}, "phm_layer is True"),
        ({"non_linearity": "gelu"}, "non_linearity is 'gelu'; a pfeiffer adapter here has 'relu'"),
        ({"mh_adapter": True}, "mh_adapter is True"),
        ({"is_parallel": True}, "is_parallel is True"),
        ({"inv_adapter": "nice"}, "inv_adapter is 'nice'"),
        ({"residual_before_ln": "post_add"}, "residual_before_ln is 'post_add'"),
        ({"leave_out": []}, r"leave_out is \[\]; the model here has model.adapter_drop 1, which is \[0\]"),
        ({"leave_out": "0"}, "leave_out is '0'"),
        ({"scaling": 2.0}, r"scaling .* is 2.0; the model here has 1.0"),
        ({"scaling": "learned"}, "scaling .* is 'learned'"),
        ({"new_option": 1}, "setting new_option is not known"),
        ({"architecture": "reft"}, "architecture is 'reft'; the model here has pfeiffer adapters"),
    ],
)
def test_an_adapter_that_computes_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    trained = write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer", settings=change)
    before = sha256_tree(trained)
    with pytest.raises(DataError, match=message):
        _import(tmp_path, tmp_path / "in")
    assert sha256_tree(trained) == before


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attn_matrices": ["q", "k", "v"]}, "attn_matrices is"),
        ({"composition_mode": "scale"}, "composition_mode is 'scale'"),
        ({"use_dora": True}, "use_dora is True"),
        ({"output_lora": True}, "output_lora is True"),
        ({"alpha": 4}, r"alpha / r\) is 2.0; the model here has 1.0. Train with that model.scaling"),
        ({"r": 0}, r"alpha / r\) is None"),
    ],
)
def test_a_lora_that_computes_something_else_is_refused(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_trained(tmp_path, _model("lora"))
    _write(tmp_path / "in", "lora", settings=change)
    with pytest.raises(DataError, match=message):
        _import(tmp_path, tmp_path / "in")


@pytest.mark.parametrize(("version", "is_taken"), [("adapters.1.0.1", True), ("adapters.1.1.0", False)])
def test_alpha_counts_from_version_1_1_on(tmp_path: Path, version: str, is_taken: bool) -> None:
    """The library reads older LoRA adapters as if alpha were r (loading.py, `_fix_backward_compat`)."""
    write_trained(tmp_path, _model("lora"))
    _write(tmp_path / "in", "lora")
    config = _facts("sst", SETTINGS["lora"] | {"alpha": 16}, version=version)
    (tmp_path / "in/adapter_config.json").write_text(config)
    if is_taken:
        assert _import(tmp_path, tmp_path / "in").adapter == "lora"
    else:
        with pytest.raises(DataError, match=r"alpha / r\) is 8.0"):
            _import(tmp_path, tmp_path / "in")


def test_settings_that_only_training_or_older_files_know_do_not_matter(tmp_path: Path) -> None:
    write_trained(tmp_path, _model("houlsby"))
    _write(tmp_path / "in", "houlsby")
    old = {k: v for k, v in SETTINGS["houlsby"].items() if k not in ("stochastic_depth", "init_weights_seed")}
    config = old | {"dropout": 0.1, "init_weights": "houlsby", "non_linearity": "silu", "architecture": None}
    (tmp_path / "in/adapter_config.json").write_text(_facts("sst", config))
    assert _import(tmp_path, tmp_path / "in").adapter == "houlsby"


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"hidden_size": 768}, "hidden_size is 768; the encoder here has 16"),
        ({"model_type": "roberta"}, "model_type is 'roberta'; the encoder here has 'bert'"),
        ({"config": None}, "has no name and config"),
    ],
)
def test_an_adapter_of_another_encoder_is_refused(tmp_path: Path, facts: dict[str, object], message: str) -> None:
    write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer")
    (tmp_path / "in/adapter_config.json").write_text(_facts("sst", SETTINGS["pfeiffer"], **facts))
    with pytest.raises(DataError, match=message):
        _import(tmp_path, tmp_path / "in")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t | {"bert.invertible_adapters.sst.F.0.weight": torch.ones(1)}, "holds invertible_adapters.sst.F"),
        (lambda t: dict(list(t.items())[1:]), r"has no encoder\.layer\.1\.output\.adapters\.sst\.adapter_down"),
        (lambda t: {n: x[:1] if "down" in n else x for n, x in t.items()}, "shape .* with a bottleneck of 2, as here"),
        (lambda t: {n: x.numpy() for n, x in t.items()}, "cannot be read"),
        (list, "does not hold tensors by name"),
    ],
)
def test_other_tensors_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer")
    path = tmp_path / "in/pytorch_adapter.bin"
    torch.save(change(torch.load(path, weights_only=True)), path)
    with pytest.raises(DataError, match=message):
        _import(tmp_path, tmp_path / "in")


def test_a_pickle_that_would_run_something_does_not(tmp_path: Path) -> None:
    class _Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer")
    torch.save(_Evil(), tmp_path / "in/pytorch_adapter.bin")
    with pytest.raises(DataError, match="cannot be read"):
        _import(tmp_path, tmp_path / "in")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": 2}, "layers is 2; one for this task has 1"),
        ({"use_pooler": True}, "use_pooler is True"),
        ({"head_type": "tagging"}, "head_type is 'tagging'"),
        ({"num_labels": 2}, "num_labels is 2; one for this task has 3"),
        ({"classes": ("a", "b", "c")}, "label2id is"),
        ({"label2id": {"bad": 0, "fair": 1, "good": 7}}, "label2id is"),
    ],
)
def test_a_head_that_does_not_fit_stays_away_and_is_named(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    trained = write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer")
    _write_head(tmp_path / "in", **changes)
    before = (trained / "tasks/mood/head.safetensors").read_bytes()
    moved = _import(tmp_path, tmp_path / "in")
    assert not moved.head and message in moved.remark
    assert (trained / "tasks/mood/head.safetensors").read_bytes() == before


def test_a_head_without_class_names_is_taken_in_its_order(tmp_path: Path) -> None:
    trained = write_trained(tmp_path, _model("pfeiffer"))
    _write(tmp_path / "in", "pfeiffer")
    weight = _write_head(tmp_path / "in", classes=())
    assert _import(tmp_path, tmp_path / "in").head
    assert torch.equal(load_model(trained).tensors["mood"]["head.weight"], weight.T)


def test_mean_pooling_has_no_head_there(tmp_path: Path) -> None:
    model = _model("pfeiffer", pooling="mean")
    write_trained(tmp_path, model)
    moved = export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out")
    assert not moved.head and "pooling 'mean'" in moved.remark
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"adapter_config.json", "pytorch_adapter.bin"}


@pytest.mark.parametrize(
    ("task", "head_type", "num_labels"),
    [
        (STARS, "classification", 1),
        (Task("t", "multilabel", ("a", "b")), "multilabel_classification", 2),
        (Task("t", "ordinal", ("low", "mid", "high")), "classification", 3),
        (Task("t", "binary", ("no", "yes")), "classification", 2),
    ],
)
def test_heads_of_other_kinds_of_tasks(tmp_path: Path, task: Task, head_type: str, num_labels: int) -> None:
    model = _model("pfeiffer")
    write_trained(tmp_path, model, tasks=(task,))
    export_adapter(write_bundle(tmp_path, model), task.name, tmp_path / "out")
    config = json.loads((tmp_path / "out/head_config.json").read_text())["config"]
    assert (config["head_type"], config["num_labels"]) == (head_type, num_labels)
    assert _import(tmp_path, tmp_path / "out", task.name).head


@pytest.mark.parametrize("hidden", [16, 384, 768, 1000])
def test_the_library_comes_to_our_width_from_the_reduction_factor(hidden: int) -> None:
    assert all(int(hidden // reduction_factor(hidden, width)) == width for width in range(1, hidden + 1))


def test_the_same_bundle_gives_the_same_bytes(tmp_path: Path) -> None:
    model = _model("houlsby")
    write_trained(tmp_path, model)
    bundle = write_bundle(tmp_path, model)
    export_adapter(bundle, "mood", tmp_path / "a")
    export_adapter(bundle, "mood", tmp_path / "b")
    assert sha256_tree(tmp_path / "a") == sha256_tree(tmp_path / "b")


def test_what_cannot_be_exchanged_is_a_usage_error(tmp_path: Path) -> None:
    model = _model("prefix")
    write_trained(tmp_path, model)
    with pytest.raises(UsageError, match="'prefix' has no counterpart"):
        export_adapter(write_bundle(tmp_path, model), "mood", tmp_path / "out")
    shutil.rmtree(tmp_path / "bundle")
    write_trained(tmp_path, _model("pfeiffer"), family="camembert")
    bundle = write_bundle(tmp_path, _model("pfeiffer"))
    with pytest.raises(UsageError, match="no models of family 'camembert'"):
        export_adapter(bundle, "mood", tmp_path / "out")
    with pytest.raises(UsageError, match="no task 'moo'. Did you mean 'mood'"):
        export_adapter(bundle, "moo", tmp_path / "out")
    with pytest.raises(UsageError, match="exists and is no adapter's folder"):
        export_adapter(bundle, "mood", tmp_path / "bundle")
    with pytest.raises(UsageError, match=r"has no adapter_config\.json"):
        _import(tmp_path, tmp_path / "nothing")


def test_inputs_that_do_not_fit_each_other_are_artefact_errors(tmp_path: Path) -> None:
    write_trained(tmp_path, _model("pfeiffer"))
    bundle = write_bundle(tmp_path, _model("houlsby"))
    with pytest.raises(ArtefactError, match="does not hold houlsby adapters as params.yaml described them"):
        export_adapter(bundle, "mood", tmp_path / "out")
    facts = json.loads((tmp_path / "encoder/encoder.json").read_text())
    (tmp_path / "encoder/encoder.json").write_text(json.dumps(facts | {"trunk_sha256": "0"}))
    _write(tmp_path / "in", "pfeiffer")
    with pytest.raises(ArtefactError, match="was trained on another encoder"):
        _import(tmp_path, tmp_path / "in")


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = _model("pfeiffer")
    write_trained(tmp_path, model)
    write_bundle(tmp_path, model)
    out = str(tmp_path / "out")
    assert main(["adapters", "export", "--bundle", str(tmp_path / "bundle"), "--task", "stars", "--to", out]) == 0
    assert capsys.readouterr().out == f"{out}: the pfeiffer adapter of task stars, with its head\n"
    place = ["--trained", str(tmp_path / "trained"), "--encoder", str(tmp_path / "encoder")]
    assert main(["adapters", "import", out, "--task", "mood", "--json", *place]) == 0
    moved = json.loads(capsys.readouterr().out)
    assert not moved["head"] and "num_labels is 1" in moved["remark"]
    tensors = load_model(tmp_path / "trained").tensors
    assert all(np.array_equal(t, tensors["stars"][n]) for n, t in tensors["mood"].items() if n.startswith("layers."))
    assert main(["adapters", "import", str(tmp_path), "--task", "mood", *place]) == 2
    assert "has no adapter_config.json" in capsys.readouterr().err
