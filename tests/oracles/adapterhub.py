"""Agreement with AdapterHub's own library, in both directions: outputs and gradients, kind by kind.

The library pins another transformers than we use, so it runs in an environment of its own:

    python -m venv ../hub-venv && ../hub-venv/bin/pip install torch==2.13.0 && \
        ../hub-venv/bin/pip install adapters==1.3.0
    python -m tests.oracles.adapterhub ../hub-venv/bin/python

For every family and kind: (1) our adapter, written by `export_adapter`, is loaded by the library; (2) an adapter that
the library made and saved is read by `import_adapter`. Each time the last hidden states, the logits and the gradients
of a weighted sum of the logits with respect to every adapter and head tensor are compared on padded rows. Prints the
largest differences; ends with code 1 where one is above 1e-5.
"""

import argparse
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KINDS = {"pfeiffer": "seq_bn", "houlsby": "double_seq_bn", "parallel": "par_bn", "lora": "lora"}
FAMILIES = ("bert", "roberta", "distilbert", "electra", "xlm-roberta")
DROP, WIDTH, TASK, CLASSES = 1, 5, "mood", ("bad", "fair", "good")
LIMIT = 1e-5


def inputs(family: str) -> tuple[Tensor, Tensor, Tensor]:
    """Token ids and mask (4, 11), padded as the family pads, and the weights (4, 3) of the logits."""
    generator = torch.Generator().manual_seed(3)
    pad = 1 if "roberta" in family else 0
    ids = torch.randint(4, 40, (4, 11), generator=generator)
    mask = (torch.arange(11) < torch.tensor([[11], [7], [2], [9]])).long()
    return torch.where(mask.bool(), ids, pad), mask, torch.randn(4, len(CLASSES), generator=generator)


def library(work: Path) -> None:
    """The library's part, in its own environment: loads what lies in `work/*/ours`, writes `work/*/theirs`."""
    from adapters import AdapterConfig, AutoAdapterModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    for case in sorted(work.iterdir()):
        family, kind = case.name.split("_")
        model = AutoAdapterModel.from_pretrained(case / "encoder")
        loading: dict[str, Any] = {}
        for folder, options in (("ours", {}), ("ours-safetensors", {"use_safetensors": True})):
            name = model.load_adapter(str(case / folder), loading_info=loading, load_as=folder, **options)
            assert not loading["missing_keys"] and not loading["unexpected_keys"], (case.name, folder, loading)
            _answer(model, name, family, case / f"{folder}.answer")
        width = {"r": WIDTH} if kind == "lora" else {"reduction_factor": 16 / (WIDTH + 0.5)}
        config = AdapterConfig.load(KINDS[kind], leave_out=list(range(DROP)), **width)
        model.add_adapter("fresh", config=config)
        order = dict(enumerate(reversed(CLASSES)))
        model.add_classification_head("fresh", num_labels=len(CLASSES), layers=1, id2label=order)
        generator = torch.Generator().manual_seed(5)
        for name, parameter in model.named_parameters():
            if ".fresh." in name:
                parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
        model.save_adapter(str(case / "theirs"), "fresh", use_safetensors=kind == "houlsby")
        _answer(model, "fresh", family, case / "theirs.answer", reverse=True)


def _answer(model: Any, name: str, family: str, path: Path, *, reverse: bool = False) -> None:
    """Writes hidden states, logits and, as an adapter's folder, gradients; classes in our order."""
    ids, mask, weights = inputs(family)
    model.train_adapter(name)
    model.active_head = name
    model.eval()
    model.zero_grad()
    out = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    logits = out.logits.flip(1) if reverse else out.logits
    (logits * weights).sum().backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None and f".{name}." in n}
    assert len(gradients) == sum(f".{name}." in n for n, _ in model.named_parameters()), "a gradient is missing"
    answer = {"hidden": out.hidden_states[-1], "logits": logits, **{f"gradient.{n}": g for n, g in gradients.items()}}
    torch.save({n: t.detach().clone() for n, t in answer.items()}, path)


def ours(python: str) -> float:
    """Our part; returns the largest difference."""
    from mtlops.model.adapterhub import export_adapter, import_adapter
    from mtlops.model.trained import load_model
    from mtlops.params import Model
    from tests.tiny_model import write_bundle, write_trained

    largest = 0.0
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for family in FAMILIES:
            for kind in KINDS:
                case = work / f"{family}_{kind}"
                scaling = 8 / WIDTH if kind == "lora" else None  # the library's alpha is 8
                model = Model(adapter=kind, adapter_drop=DROP, bottleneck=WIDTH, scaling=scaling)
                write_trained(case, model, family=family)
                bundle = write_bundle(case, model)
                assert export_adapter(bundle, TASK, case / "ours").head
                assert export_adapter(bundle, TASK, case / "ours-safetensors", safetensors=True).head
        subprocess.run([python, __file__, "--library", str(work)], check=True)
        for case in sorted(work.iterdir()):
            for answer, name in (("ours", "ours"), ("ours-safetensors", "ours-safetensors"), ("theirs", "fresh")):
                if answer == "theirs":
                    moved = import_adapter(case / "theirs", TASK, trained=case / "trained", encoder=case / "encoder")
                    assert moved.head, moved.remark
                tensors = load_model(case / "trained").tensors[TASK]
                differences = _compare(case, answer, name, tensors)
                print(f"{case.name:<22} {answer:<17}", *(f"{what}={d:.1e}" for what, d in differences.items()))  # noqa: T201 - a script
                assert all(map(math.isfinite, differences.values()))
                largest = max(largest, *differences.values())
    return largest


def _compare(case: Path, answer: str, name: str, tensors: dict[str, Tensor]) -> dict[str, float]:
    """Largest differences of hidden states, logits and gradients; gradients are read as if they were an adapter."""
    from mtlops.model import multitask
    from mtlops.model.encoders import load_trunk
    from mtlops.model.multitask import PairModel
    from mtlops.model.pooling import Pooling
    from mtlops.model.trained import load_model

    family = case.name.split("_")[0]
    ids, mask, weights = inputs(family)
    trunk = load_trunk(case / "encoder")
    pairs = PairModel(trunk, load_model(case / "trained").model)
    pairs.pooling = Pooling(lambda x, _: x)
    leaves = {n: t.clone().requires_grad_() for n, t in tensors.items()}
    bank = multitask.stack([leaves])
    state = trunk(ids, mask, depth=DROP, cut=pairs.cut)
    hidden = pairs(state, mask, bank)
    assert float((hidden - pairs.frozen(state, mask)).abs().max()) > 0.1, "the adapter does nothing here"
    logits = multitask.logits(hidden[:, 0], bank)
    (logits * weights).sum().backward()
    hidden, logits = hidden.detach(), logits.detach()
    expected = torch.load(case / f"{answer}.answer", weights_only=True)
    theirs = {n.removeprefix("gradient."): t for n, t in expected.items() if n.startswith("gradient.")}
    found = _gradients(case, name, theirs, is_reversed=answer == "theirs")
    assert found.keys() == leaves.keys(), found.keys() ^ leaves.keys()
    assert all(float(gradient.abs().max()) > 1e-4 for gradient in found.values()), "a gradient is 0 everywhere"
    return {
        "hidden": float((hidden - expected["hidden"])[mask.bool()].abs().max()),
        "logits": float((logits - expected["logits"]).abs().max()),
        "gradients": max(float((leaves[n].grad - g).abs().max()) for n, g in found.items()),
    }


def _gradients(case: Path, name: str, theirs: dict[str, Tensor], *, is_reversed: bool) -> dict[str, Tensor]:
    """Their gradients under our names, through `import_adapter` itself."""
    from mtlops.model.adapterhub import import_adapter
    from mtlops.model.trained import load_model

    source, trained = case / f"gradient-{name}", case / f"trained-{name}"
    shutil.copytree(case / ("theirs" if is_reversed else "ours"), source)
    for path in source.glob("*.safetensors"):
        path.unlink()
    for path in source.glob("*.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"name": name}))
    torch.save({n: t for n, t in theirs.items() if not n.startswith("heads.")}, source / "pytorch_adapter.bin")
    torch.save({n: t for n, t in theirs.items() if n.startswith("heads.")}, source / "pytorch_model_head.bin")
    shutil.copytree(case / "trained", trained)
    import_adapter(source, TASK, trained=trained, encoder=case / "encoder")
    return load_model(trained).tensors[TASK]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("python", nargs="?", help="the interpreter of the library's environment")
    parser.add_argument("--library", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        library(options.library)
    else:
        worst = ours(options.python)
        print(f"largest difference {worst:.1e}, limit {LIMIT:g}")  # noqa: T201 - a script
        sys.exit(worst > LIMIT)
