"""Training against the loop that people write today: `python -m tests.benchmarks.training --work FOLDER`.

The reference is a plain Hugging Face loop, written here: one task after the other, batches in random order, padded to
their longest row, every layer computed in every epoch, the same Pfeiffer adapters or all weights trained. Both sides
load the encoder, train the same rows of the same four tasks for the same number of epochs with batches of one size,
score the validation rows after every epoch and keep the best. CPU seconds of all threads, in turns, in one process.

Beside it, the trunk's matrix products alone: PyTorch's own way against `mtlops.model.linear`.
"""

import argparse
import copy
import shutil
import statistics
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedTokenizerFast

from mtlops import catalog
from mtlops.data.prepared import read_split
from mtlops.decoding import decode
from mtlops.model.linear import Linear
from mtlops.params import Params, read_params
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from mtlops.tasks import Task
from tests.benchmarks.page import machine, table, write_part
from tests.benchmarks.side_by_side import ratio, side_by_side

ROWS = 600
"""Rows of each task, all splits together."""

TUNED_RATE = 5e-5
"""Learning rate of full fine-tuning."""

_SAME = ("preset=quality", "model.adapter=pfeiffer")
"""The same function as the plain adapter loop's."""

OURS = {
    "adapters in every layer": (*_SAME, "train.precision=float32"),
    "adapters in every layer, bfloat16 where the CPU has it": _SAME,
    "lora in every layer, bfloat16 where the CPU has it (preset quality)": ("preset=quality",),
    "lowest 3 of 6 layers without adapters (preset balanced, the default)": ("preset=balanced",),
    "lowest 4 of 6 layers without adapters (preset fast)": ("preset=fast",),
}
THEIRS = {"plain loop, adapters in every layer": True, "plain loop, full fine-tuning": False}
FILL = ", trunk cached before"

PRODUCTS = ((384, 384), (384, 1536), (1536, 384))
PRODUCT_ROWS, PRODUCT_CALLS = 2048, 50


@dataclass
class Bench:
    """The data, and what each side reached.

    Attributes:
        work: folder with `prepared` and `encoder`.
        params: of the suite.
        quality: mean of the tasks' best validation metrics, by candidate, a value a round.
    """

    work: Path
    params: Params
    quality: dict[str, list[float]] = field(default_factory=dict)

    def candidates(self) -> dict[str, Callable[[], None]]:
        """Returns every candidate by name."""
        found: dict[str, Callable[[], None]] = {}
        for name, frozen in THEIRS.items():
            found[name] = lambda name=name, frozen=frozen: self._theirs(name, frozen=frozen)
        for name, overrides in OURS.items():
            found[name] = lambda name=name, overrides=overrides: self._ours(name, overrides)
            found[name + FILL] = lambda name=name, overrides=overrides: self._ours(name + FILL, overrides, warm=True)
        return found

    def _ours(self, name: str, overrides: tuple[str, ...], *, warm: bool = False) -> None:
        params = read_params(Path("params.yaml"), overrides=(*overrides, *self._threads()))
        cache = self.work / "cache"
        if not warm:
            shutil.rmtree(cache, ignore_errors=True)
        with tempfile.TemporaryDirectory() as out:
            done = train(params, prepared=self.work / "prepared", encoder=self.work / "encoder", cache=cache,
                         out=Path(out) / "trained", report=Path(out) / "training.json")  # fmt: skip
        self.quality.setdefault(name, []).append(statistics.mean(done.best.values()))

    def _theirs(self, name: str, *, frozen: bool) -> None:
        best = [plain_loop(task, self.params, self.work, frozen=frozen) for task in self.params.tasks()]
        self.quality.setdefault(name, []).append(statistics.mean(best))

    def _threads(self) -> tuple[str, ...]:
        return (f"train.threads={self.params.train.threads}",)


class PlainAdapter(nn.Module):
    """A BERT layer's output block with a Pfeiffer adapter, as `mtlops.model.adapters.pfeiffer` defines it."""

    def __init__(self, block: nn.Module, hidden: int) -> None:
        super().__init__()
        self.block, self.down, self.up = block, nn.Linear(hidden, hidden // 16), nn.Linear(hidden // 16, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, hidden: Tensor, residual: Tensor) -> Tensor:
        """Returns the layer's output."""
        summed = self.block.dense(hidden) + residual
        norm = self.block.LayerNorm
        adapted: Tensor = norm(summed + self.up(torch.relu(self.down(norm(summed)))))
        return adapted


class PlainModel(nn.Module):
    """An encoder with a head on its first token."""

    def __init__(self, encoder: Path, outputs: int, *, frozen: bool) -> None:
        super().__init__()
        self.encoder = AutoModel.from_pretrained(encoder, add_pooling_layer=False)
        hidden = self.encoder.config.hidden_size
        if frozen:
            self.encoder.requires_grad_(requires_grad=False)
            for layer in self.encoder.encoder.layer:
                layer.output = PlainAdapter(layer.output, hidden)
        self.head = nn.Linear(hidden, outputs)

    def forward(self, **inputs: Tensor) -> Tensor:
        """Returns logits (B, C)."""
        logits: Tensor = self.head(self.encoder(**inputs).last_hidden_state[:, 0])
        return logits


def plain_loop(task: Task, params: Params, work: Path, *, frozen: bool) -> float:
    """Trains one task and returns the best validation metric."""
    torch.manual_seed(params.train.seed)
    model = PlainModel(work / "encoder", task.num_outputs, frozen=frozen)
    rows = {name: read_split(work / "prepared", task.name, name) for name in ("train", "valid")}
    labels = {name: task.encode(table["label"].to_pylist()) for name, table in rows.items()}
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=params.learning_rate() if frozen else TUNED_RATE)
    score, best, kept = catalog.load(catalog.KINDS[task.kind].metrics), -1.0, None
    random = np.random.default_rng(params.train.seed)
    batches = Batches(PreTrainedTokenizerFast(tokenizer_file=str(work / "encoder/tokenizer.json"), pad_token="[PAD]"),
                      params)  # fmt: skip
    for _ in range(params.train.epochs):
        model.train()
        for positions, inputs in batches.of(rows["train"], random.permutation(rows["train"].num_rows)):
            loss = nn.functional.cross_entropy(model(**inputs), torch.from_numpy(labels["train"][positions]))
            loss.backward()
            nn.utils.clip_grad_norm_(trained, params.train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
        model.eval()
        with torch.inference_mode():
            order = np.arange(rows["valid"].num_rows)
            logits = torch.cat([model(**inputs) for _, inputs in batches.of(rows["valid"], order)]).numpy()
        value = score(task, labels["valid"], decode(task, logits))[catalog.KINDS[task.kind].primary]
        if value > best:
            best, kept = value, copy.deepcopy([p.detach() for p in trained])
    assert kept is not None
    return best


@dataclass
class Batches:
    """Batches of rows in a given order, padded to their longest."""

    tokenizer: PreTrainedTokenizerFast
    params: Params

    def of(self, table: pa.Table, order: np.ndarray) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
        """Yields row positions and the encoder's inputs."""
        texts, size = table["text"].to_pylist(), self.params.train.batch_size
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            inputs = self.tokenizer(
                [texts[i] for i in rows], padding="longest", truncation=True,
                max_length=self.params.encoder.max_tokens, return_tensors="pt",
            )  # fmt: skip
            yield rows, {name: inputs[name] for name in ("input_ids", "attention_mask")}


def main() -> None:
    """Prepares a small cut of the default suite, measures, prints and writes the part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("data/cache/bench"), help="where the data are kept")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of fetched packages")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    params = read_params(Path("params.yaml"), overrides=(f"train.threads={options.threads}",))
    if not (options.work / "prepared/manifest.json").exists():
        few = params.data.model_copy(update={"max_rows_per_task": ROWS})
        small = params.model_copy(update={"data": few})
        prepare(small, raw=options.raw, out=options.work / "prepared", encoder=options.work / "encoder")
    torch.set_num_threads(options.threads)
    bench = Bench(options.work, params)
    lines = report(bench, side_by_side(bench.candidates(), rounds=options.rounds), rounds=options.rounds)
    print("\n".join(lines))
    if not options.dry:
        write_part("training", lines)


def report(bench: Bench, seconds: dict[str, list[float]], *, rounds: int) -> list[str]:
    """Returns the part of docs/benchmarks.md."""
    plain = seconds[next(iter(THEIRS))]
    tuned = seconds[list(THEIRS)[1]]
    rows = [
        [
            name,
            f"{statistics.median(of):.1f}",
            ratio(plain, of),
            ratio(tuned, of),
            f"{statistics.mean(bench.quality[name]):.3f}",
        ]
        for name, of in seconds.items()
    ]
    train_rows = sum(read_split(bench.work / "prepared", t.name, "train").num_rows for t in bench.params.tasks())
    about = (
        f"`python -m tests.benchmarks.training` on {machine()}, {bench.params.train.threads} thread: the default "
        f"suite cut to {train_rows:,} training rows over {len(bench.params.tasks())} tasks, "
        f"{bench.params.train.epochs} epochs, batches of {bench.params.train.batch_size}, "
        f"{rounds} {'round' if rounds == 1 else 'rounds'} in turns. "
        "CPU seconds: median of the rounds; ratios: median and range. A line without “cached before” fills the trunk "
        "cache first and pays for it; the others are what every later run on the same rows costs. Quality: mean of "
        "the tasks' best validation macro-F1; on so few rows it only shows that nobody skips work."
    )
    head = ["", "CPU s", "faster than the plain adapter loop", "faster than full fine-tuning", "valid macro-F1"]
    return ["## Training", "", about, "", *table(head, rows), "", *report_products(products(), rounds=rounds)]


def products() -> dict[str, Callable[[], None]]:
    """Returns what makes the default encoder's products, `PRODUCT_CALLS` of each, forward and backward, by name."""
    found: dict[str, Callable[[], None]] = {}
    for num_in, num_out in PRODUCTS:
        layer = Linear(num_in, num_out).requires_grad_(requires_grad=False)
        x = torch.randn(PRODUCT_ROWS, num_in, requires_grad=True)
        plain = partial(nn.functional.linear, weight=layer.weight, bias=layer.bias)
        for who, product in ((_PLAIN, plain), (_OURS, layer)):
            found[f"{num_in} x {num_out}{who}"] = partial(_many, product, x)
    return found


_PLAIN, _OURS = ", torch.nn.Linear", ", ours"


def _many(product: Callable[[Tensor], Tensor], x: Tensor) -> None:
    for _ in range(PRODUCT_CALLS):
        torch.autograd.grad(product(x).sum(), x)


def report_products(candidates: dict[str, Callable[[], None]], *, rounds: int) -> list[str]:
    """Measures them in turns and returns what the page says."""
    for warm_up in candidates.values():
        warm_up()
    seconds = side_by_side(candidates, rounds=rounds)
    rows = []
    for num_in, num_out in PRODUCTS:
        plain, ours = (seconds[f"{num_in} x {num_out}{who}"] for who in (_PLAIN, _OURS))
        each = [f"{1000 * statistics.median(of) / PRODUCT_CALLS:.1f}" for of in (plain, ours)]
        rows.append([f"{num_in} x {num_out}", *each, ratio(plain, ours)])
    about = (
        f"The trunk's products in float32, {PRODUCT_ROWS:,} rows, forward and backward: `torch.nn.Linear`, which gives "
        "them to MKL on x86, and `mtlops.model.linear`, which gives them to oneDNN."
    )
    return [about, "", *table(["weight", "torch.nn.Linear, CPU ms", "ours, CPU ms", "faster"], rows)]


if __name__ == "__main__":
    main()
