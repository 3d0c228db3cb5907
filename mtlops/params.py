"""params.yaml: the one file a user edits, read strictly.

Read these classes from the bottom up: `Params` is the file, each other class one of its sections. A
default stands here and nowhere else.
"""

import datetime as dt
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    StringConstraints,
    ValidationError,
    model_validator,
)

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.errors import UsageError
from mtlops.tasks import Task, split_names

Name = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
"""Lower-case letters, digits, `-` and `_`: it becomes a folder, a metric and a tensor name."""


def _choice(table: Mapping[str, catalog.Entry]) -> AfterValidator:
    def check(word: str) -> str:
        if word not in table:
            raise ValueError(f"unknown choice {word!r}. {suggest(word, list(table))}")
        return word

    return AfterValidator(check)


def _choice_field(table: Mapping[str, catalog.Entry], default: Any = ...) -> Any:
    return Field(default, json_schema_extra={"enum": list(table)})


class _Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False, coerce_numbers_to_str=True
    )


class Inputs(_Section):
    """Columns of a source that are not labels."""

    text: str = "text"
    """Column with the text to predict from: a string, or a list of words, which are joined by one space each."""
    group: str | None = None
    """Column that says which rows belong together (author, product, thread): a group is never split
    between training and test. Built-in data sets bring their own."""
    timestamp: str | None = None
    """Column with the time of a row (ISO 8601 or a Parquet timestamp): the newest rows become the test split."""
    split: str | None = None
    """Column with `train`, `valid` or `test`, for data that is split already."""


class TaskSpec(_Section):
    """One prediction task."""

    kind: Annotated[str, _choice(catalog.KINDS)] = _choice_field(catalog.KINDS)
    """What is predicted."""
    source: str
    """A file (CSV, JSON Lines or Parquet; relative to params.yaml) or the name of a built-in data set.
    Several tasks may name the same source: their rows are then shared."""
    label: str | list[str]
    """Column with the label. Multilabel: a column of lists (in CSV separated by `|`), or one 0/1 column
    per class. Tagging: a column of lists with one tag for each word (JSON Lines or Parquet), by name or by position in
    `classes`. An empty cell means: this row has no label for this task."""
    classes: list[str] = []
    """Class names; ordinal from low to high, binary negative first; the tags of tagging; none for regression."""
    range: tuple[float, float] | None = None
    """Lowest and highest possible value of a regression label."""
    weight: float = Field(1.0, gt=0)
    """Weight in the mean over tasks that reports show."""
    inputs: Inputs | None = None
    """Columns of this task's source, where they differ from `suite.inputs`."""

    @model_validator(mode="after")
    def _kind_fits(self) -> Self:
        limits = catalog.KINDS[self.kind].num_classes
        if limits is None and self.classes:
            raise ValueError(f"kind {self.kind!r} has no classes. Remove `classes`.")
        if limits is not None and not limits[0] <= len(self.classes) <= limits[1]:
            wanted = f"exactly {limits[0]}" if limits[0] == limits[1] else f"at least {limits[0]}"
            raise ValueError(f"kind {self.kind!r} needs {wanted} classes; {len(self.classes)} given.")
        if len(set(self.classes)) != len(self.classes):
            twice = sorted({c for c in self.classes if self.classes.count(c) > 1})
            raise ValueError(f"classes are named twice: {', '.join(twice)}.")
        if isinstance(self.label, list) and (self.kind != "multilabel" or len(self.label) != len(self.classes)):
            raise ValueError("a list of label columns is for kind 'multilabel', one column per class.")
        if self.range is not None and (self.kind != "regression" or self.range[0] >= self.range[1]):
            raise ValueError("range is [lowest, highest] of a regression label.")
        return self


class Suite(_Section):
    """The tasks that share one encoder."""

    name: Name
    """Name of the suite: the model name in serving and the registry."""
    inputs: Inputs = Inputs()
    """Columns of the sources that are not labels."""
    tasks: dict[Name, TaskSpec] = Field(min_length=1)
    """The tasks by name, each described once."""


class Window(_Section):
    """Rows set aside as a production window: never trained on, kept for drift work.

    Exactly one of `where`, `after` and `share` says which rows.
    """

    tasks: list[str] = Field(min_length=1)
    """Tasks whose rows it takes."""
    where: dict[str, list[str]] | None = None
    """Takes the rows whose column has one of these values."""
    after: dt.datetime | None = None
    """Takes the rows at or after this time."""
    share: float | None = Field(None, gt=0, lt=1)
    """Takes this share of the groups at random: a control without drift."""

    @model_validator(mode="after")
    def _one_rule(self) -> Self:
        if sum(rule is not None for rule in (self.where, self.after, self.share)) != 1:
            raise ValueError("give exactly one of `where`, `after` and `share`.")
        return self


class Data(_Section):
    """How sources become splits."""

    max_rows_per_task: int = Field(0, ge=0)
    """At most this many labelled rows of each task, all splits together; 0 takes every row."""
    valid_share: float = Field(0.1, gt=0, lt=0.5)
    """Share of the rows for early stopping and calibration."""
    test_share: float = Field(0.2, gt=0, lt=0.5)
    """Share of the rows for evaluation."""
    min_words: int = Field(1, ge=1)
    """Rows with fewer words are set aside and counted."""
    seed: int = 0
    """Seed of the split and of the sampling of rows."""
    bad_rows: Literal["fail", "quarantine"] = "fail"
    """What to do with rows that cannot be read: stop, or set them aside in `quarantine.parquet` and count them."""
    windows: dict[Name, Window] = {}
    """Production windows by name."""
    labelled: list[str] = []
    """Labelled windows whose rows join the splits, the oldest first: folders that `mtlops admit` recorded, relative to
    params.yaml; DVC watches `data/windows`."""
    slices: list[str] = []
    """Columns of the sources by whose values test rows are also measured apart; length of text and time are always
    among them."""
    behaviour: list[str] = []
    """Behavioural checks: files (YAML or JSON Lines, relative to params.yaml; see data/README.md) or names of built-in
    ones."""


class Encoder(_Section):
    """The shared pretrained encoder."""

    source: str = "all-minilm-l6-v2"
    """Name of a built-in encoder, a folder with config.json, model.safetensors and tokenizer.json, or
    `organisation/name` of the Hugging Face hub: of family BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT,
    ELECTRA or MPNet."""
    revision: str | None = None
    """Commit of an encoder of the hub: 40 hex digits."""
    max_tokens: int = Field(64, ge=8, le=512)
    """Longer texts are cut to this many tokens, special tokens included."""


class Model(_Section):
    """What is trained on top of the encoder."""

    sharing: Annotated[str, _choice(catalog.SHARING)] = _choice_field(catalog.SHARING, "adapters")
    """How tasks share the encoder. All keys with `adapter` in their names, and those that describe an adapter, are
    for `adapters`."""
    tuned_layers: Annotated[int, Field(ge=0)] | Literal["all"] | None = None
    """The top layers that the tasks train together, a number or `all`; none means half. `hard`, `soft` and
    `hierarchical`; with 0 `hard` trains heads alone."""
    tune_embeddings: bool = False
    """Trains the embeddings too, with `tuned_layers: all`: `hard` and `hierarchical`. Nothing is cached then."""
    depths: dict[Name, int] = {}
    """How many of the encoder's layers a task goes through, in `hierarchical`; all for a task that is not named."""
    successive_weight: float = Field(0.0, ge=0)
    """Weight of the squared change of what is trained together since the last epoch, in `hierarchical` (Hashimoto
    et al. 2017, section 2.6: 0.01)."""
    soft: Annotated[str, _choice(catalog.SOFT)] = _choice_field(catalog.SOFT, "l2")
    """How the tasks' layers are tied in `soft`."""
    soft_weight: float = Field(0.01, ge=0)
    """Weight of the squared distances of every two tasks' layers: `soft: l2`."""
    adapter: Annotated[str, _choice(catalog.ADAPTERS)] = _choice_field(catalog.ADAPTERS, "pfeiffer")
    """Kind of adapter."""
    bottleneck: int | None = Field(None, ge=1, le=1024)
    """Width of an adapter's bottleneck, or rank of a LoRA; none takes the kind's own: a part of the hidden size."""
    scaling: float | None = Field(None, gt=0)
    """Factor of what a `parallel`, `mam` or `lora` adapter adds; none takes the kind's own."""
    prefix_length: int = Field(30, ge=1, le=256)
    """Learned positions in front of every text: `prefix` and `mam`."""
    fusion_keep: int = Field(0, ge=0)
    """Sources that each layer of a `fusion` keeps, the most important ones of each task; 0 keeps all."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of a `masked` adapter's units that training masks."""
    mask_weight: float = Field(0.1, ge=0)
    """Weight of the mask prediction in the loss of a `masked` adapter."""
    adapter_drop: int = Field(3, ge=0)
    """The lowest layers that carry no adapter (AdapterDrop, Rücklé et al. 2021): shared by all tasks and
    computed once per row."""
    pooling: Annotated[str, _choice(catalog.POOLINGS)] = _choice_field(catalog.POOLINGS, "cls")
    """How a text's token vectors become one vector."""
    head_dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout before the head, in training."""
    cache_precision: Literal["float32", "float16"] = "float32"
    """How the trunk cache keeps numbers: `float16` halves it, and training and evaluation then see values that are
    rounded to 11 bits; serving computes them anew, without rounding."""

    @property
    def shares_weights(self) -> bool:
        """Some weights are trained on several tasks."""
        return self.sharing != "adapters" and self.tuned_layers != 0

    @model_validator(mode="after")
    def _keys_fit_sharing(self) -> Self:
        owners = {
            "tuned_layers": ("hard", "soft", "hierarchical"),
            "tune_embeddings": ("hard", "hierarchical"),
            "depths": ("hierarchical",),
            "successive_weight": ("hierarchical",),
        }
        for key, wanted in owners.items():
            if getattr(self, key) != Model.model_fields[key].default and self.sharing not in wanted:
                words = " or ".join(map(repr, wanted))
                raise ValueError(f"{key} is for sharing {words}, not {self.sharing!r}. Remove it.")
        if self.tune_embeddings and self.tuned_layers != "all":
            raise ValueError("tune_embeddings needs `tuned_layers: all`: what lies above must learn too. Give both.")
        for task, depth in self.depths.items():
            if depth < 1:
                raise ValueError(f"depths.{task}: {depth}; a task goes through at least 1 layer.")
        return self


class Augmentation(_Section):
    """Changed copies of training rows, with the same labels; never of validation or test rows, nor of tasks that tag
    words: other words would need other tags.
    """

    copies: int = Field(0, ge=0, le=20)
    """Changed copies of each training row; each is computed and cached like a row of its own."""
    word_dropout: float = Field(0.0, ge=0, lt=1)
    """Share of a copy's words that are left out; at least one stays (Wei and Zou 2019)."""
    word_swap: int = Field(0, ge=0)
    """How often two random words of a copy change places."""

    @model_validator(mode="after")
    def _does_something(self) -> Self:
        if bool(self.copies) != bool(self.word_dropout or self.word_swap):
            raise ValueError("copies come with `word_dropout` or `word_swap`, and those need `copies`. Give both.")
        return self


class Train(_Section):
    """Training of adapters and heads."""

    epochs: int = Field(4, ge=1)
    """Passes over each task's training rows, at most."""
    patience: int = Field(3, ge=1)
    """A task stops after this many epochs without a better validation metric; its best adapter is kept."""
    batch_size: int = Field(32, ge=1)
    """Rows of one task in a step."""
    rows_per_pass: int = Field(128, ge=0)
    """Most (row, task) pairs that pass through the model at once; a larger step goes in parts whose gradients are added
    up: the same gradients to float rounding, and memory that does not grow with the number of tasks. 0: a step at
    once. Fewer where memory is short. Under sharing `adapters`."""
    memory_gb: float | None = Field(None, gt=0)
    """Gigabytes that training may use; none: four fifths of the GPU's memory, or of what the machine or its container
    has. How many rows pass at once is planned with it. Under sharing `adapters`."""
    recompute: Literal["auto"] | bool = "auto"
    """Keeps only each layer's input for the backward pass, and computes the rest again: less memory, more time, the
    same gradients. `auto`: when otherwise fewer than 16 rows would fit. Under sharing `adapters`."""
    precision: Literal["auto", "float32", "bfloat16"] | None = None
    """What training multiplies matrices in (autocast); weights, validation and serving stay float32. `auto`: `bfloat16`
    where the device has it in hardware, GPU or CPU, else `float32`; none: the same on a GPU and for updates that start
    from their parent's tensors, else `float32`. Under sharing `adapters`."""
    learning_rate: float | None = Field(None, gt=0)
    """Peak learning rate of AdamW for what each task has alone; none takes that of the adapter's kind, and 0.001 for
    heads on a trained trunk."""
    trunk_learning_rate: float = Field(2e-4, gt=0)
    """The same for layers of the trunk, where `model.sharing` trains them. The default suits a small encoder and few
    hundred steps; encoders of 12 layers and more usually want 2e-5 to 5e-5."""
    stitch_learning_rate: float = Field(1e-2, gt=0)
    """The same for cross-stitch units; Misra et al. 2016 take 100 to 1000 times the rate of the layers."""
    balancing: Annotated[str, _choice(catalog.BALANCERS)] = _choice_field(catalog.BALANCERS, "equal")
    """How the losses of the tasks are combined, where they train weights together."""
    balancing_learning_rate: float = Field(0.01, gt=0)
    """Learning rate of the weights that `uncertainty` and `gradnorm` learn."""
    gradnorm_alpha: float = Field(1.5, ge=0)
    """How strongly `gradnorm` pulls the tasks to one training rate (Chen et al. 2018, equation 2)."""
    dwa_temperature: float = Field(2.0, gt=0)
    """Softness of the weights of `dwa` (Liu et al. 2019, equation 7); more makes them more equal."""
    cagrad_c: float = Field(0.5, ge=0, lt=1)
    """How far `cagrad` may leave the mean gradient; 0 is the mean (Liu et al. 2021, equation 1)."""
    sampling_temperature: float = Field(1.0, ge=1)
    """T of the share n^(1/T) of a round that a task with n batches gets, where tasks train weights together: 1 takes
    every row once an epoch, more takes small tasks oftener and large ones less (Devlin et al. 2019)."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay (Loshchilov and Hutter 2019)."""
    warmup_share: float = Field(0.06, ge=0, lt=1)
    """Share of a task's steps in which the rate rises from 0; then `schedule` takes over."""
    schedule: Annotated[str, _choice(catalog.SCHEDULES)] = _choice_field(catalog.SCHEDULES, "linear")
    """What the rate does after warm-up."""
    layer_decay: float = Field(1.0, gt=0, le=1)
    """Factor of the learning rate from each trained layer to the one below; the top layer and heads learn at
    the full rate (Howard and Ruder 2018)."""
    unfreeze: Literal["none", "gradual"] = "none"
    """`gradual` trains in epoch e the top e of the trained layers only (Howard and Ruder 2018): give at least as
    many epochs as there are layers, and a `patience` that lasts until all take part."""
    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of a target that is spread over all classes; ordinal and regression tasks do not use it."""
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced` weighs each class inversely to how often training rows have it."""
    augmentation: Augmentation = Augmentation()
    """Changed copies of training rows."""
    teacher: str | None = None
    """Folder of a bundle to learn from, beside the labels (knowledge distillation, Hinton et al. 2015); it needs the
    same tasks with the same classes. DVC does not watch it, and every run overwrites models/candidate: keep it
    elsewhere."""
    distil_weight: float = Field(0.5, gt=0, le=1)
    """Weight of the teacher's answers in the loss; labels have the rest."""
    distil_temperature: float = Field(2.0, gt=0)
    """Divides the logits of teacher and student before they are compared; more shows the smaller probabilities."""
    distil_tasks: list[str] | None = None
    """Tasks that learn from the teacher; none means all."""
    clip_norm: float = Field(1.0, gt=0)
    """Largest norm of one task's gradient."""
    thresholds: Literal["fixed", "fitted"] = "fixed"
    """From which probability on a class of a binary or multilabel task is answered: 0.5, or what gives the best
    macro-F1 on the validation rows. On 380 rows of the default suite's binary task, `fitted` lost .006 on test rows;
    on 450 rows of a multilabel one it gained .005 (means over 200 splits)."""
    seed: int = 0
    """Seed of weights, order and dropout."""
    threads: int = Field(0, ge=0)
    """CPU threads; 0 takes one per core. Another number may change the last bits of the weights."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """`auto` takes a GPU when there is one."""
    adapter_drop: Literal["fixed", "robust", "stochastic"] = "fixed"
    """`fixed` trains every adapted layer in every step. `robust` draws for each batch how many of the lowest
    adapters to leave out, so that the result serves any number (Rücklé et al. 2021, section 3). `stochastic`
    leaves out each layer's adapter with probability `adapter_drop_rate`."""
    adapter_drop_rate: float = Field(0.1, ge=0, lt=1)
    """See `adapter_drop`."""
    checkpoint_seconds: float = Field(20.0, gt=0)
    """A killed run loses at most this much work."""
    cache_gb: float = Field(20.0, ge=0)
    """The most the trunk cache may hold, in gigabytes (10^9 bytes): once a run's own rows are there, what was not
    used for longest is removed until the rest fits."""


class Gates(_Section):
    """What a task must reach to be promoted. Levels and default sizes were measured: docs/benchmarks.md."""

    mode: Literal["enforced", "dry-run", "disabled"] = "enforced"
    """`enforced`: the verdict is what the rules say. `dry-run`: they are applied and reported, the verdict is
    PROMOTE. `disabled`: they are not applied."""
    floor: dict[str, float] = {}
    """Least value of a task's primary metric; below it the task is rejected."""
    baseline: Literal["majority", "tfidf", "frozen", "none"] = "frozen"
    """A task is held when even the upper end of its interval is below this baseline."""
    promote_when: Literal["better", "not-worse"] = "better"
    """With a champion: promote only when some task is significantly better, or as soon as none is worse."""
    alpha: float = Field(0.05, gt=0, le=0.2)
    """Largest share of null comparisons (nothing but the seed changed) that may end in PROMOTE, and likewise in
    REJECT: over all tasks and slices together (Holm 1979)."""
    seed_noise: dict[str, Annotated[float, Field(ge=0)]] = {}
    """Standard deviation of a task's primary metric over trainings that differ in nothing but the seed. A task is
    better or worse only beyond what test rows and seeds bring by chance. 0.02 for a task that is not named: more than
    most have, so measure yours."""
    max_drop: float | None = Field(0.025, gt=0)
    """A loss of the primary metric that must not pass: a task is held unless its test rows rule out at level `alpha`
    that this very model lost so much. With 0.025 a true loss of 0.03 is caught in 95 of 100 cases and more. Few test
    rows rule out little; `null` switches the rule off."""
    allow_removed: bool = False
    """Whether a task of the champion may be missing; else the suite is held."""
    slice_rows: int = Field(50, ge=2)
    """Slices of fewer test rows are shown, but not judged."""
    robustness_rows: int = Field(200, ge=0)
    """Test rows of each task that are perturbed to measure robustness; 0 switches it off."""
    behaviour_pass_rate: float | None = Field(None, ge=0, le=1)
    """Least share of a task's behavioural cases that must pass; below it the task is rejected."""
    twins: Literal["auto", "always", "never"] = "auto"
    """When each task is also trained alone, to measure negative transfer; `auto`: where something trainable is
    shared."""
    max_latency_ms: float | None = Field(None, gt=0)
    """Largest median time of one text through the exported bundle, all tasks, in milliseconds."""
    max_bundle_mb: float | None = Field(None, gt=0)
    """Largest size of the exported bundle, in megabytes (10^6 bytes)."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Level of the bootstrap intervals."""
    resamples: int = Field(2000, ge=100)
    """Bootstrap resamples; the smallest p-value is 1 / (resamples + 1)."""
    seed: int = 0
    """Seed of the bootstrap."""

    def seed_noise_of(self, task: str) -> float:
        """Returns the seeds' standard deviation of a task's primary metric."""
        return self.seed_noise.get(task, 0.02)


class Export(_Section):
    """The ONNX graph and the golden file."""

    opset: int = Field(20, ge=18, le=23)
    """ONNX operator set."""
    tolerance: float = Field(1e-4, gt=0)
    """Largest allowed difference between a logit of ONNX Runtime and of PyTorch."""
    golden_rows: int = Field(4, ge=1, le=64)
    """Rows per task in the golden file."""
    variants: list[Annotated[str, _choice(catalog.VARIANTS)]] = Field(
        [], json_schema_extra={"items": {"type": "string", "enum": list(catalog.VARIANTS)}}
    )
    """Number formats to write the graph in beside fp32, as `model.<variant>.onnx`."""
    variant_loss: float = Field(0.01, ge=0)
    """Most that a variant may lose of any task's primary metric, on all of its test rows."""
    variant_failure: Literal["leave-out", "fail"] = "leave-out"
    """What becomes of a variant that loses more: the bundle is written without it and the report says why, or nothing
    is written."""
    calibration_rows: int = Field(64, ge=1)
    """Validation rows of each task, evenly spread, from which `int8` takes its ranges; an update keeps its parent's."""

    @model_validator(mode="after")
    def _variants_are_different(self) -> Self:
        if len(set(self.variants)) < len(self.variants):
            raise ValueError("variants: a word is there twice. Remove it.")
        return self


class Drift(_Section):
    """What counts as drift, and of which columns."""

    level: float = Field(0.05, gt=0, lt=0.5)
    """Probability of at least one false alarm in one judgement of all tasks and kinds together, at the floors; where
    nothing drifts at all it is far lower."""
    effect_floor: float = Field(0.025, gt=0, lt=1)
    """A column's shift up to this w^2 (sum of squared differences of shares, each over the pooled share) is no drift:
    0.025 is a shift by 0.16 standard deviations, or 50 % becoming 58 %. With it 5,000 rows against 5,000 find a shift
    of twice the floor at least nine times in ten (docs/benchmarks.md); with 0.02 no test could."""
    embedding_floor: float = Field(0.002, gt=0, lt=2)
    """A shift of the embeddings up to this squared maximum mean discrepancy (Gaussian kernel as wide as the median
    distance) is no drift."""
    embedding: Literal["last", "cut"] = "last"
    """Which vector of a text is watched, the mean over its tokens of: `last`, the frozen encoder's last layer, which
    sees drift of meaning best and costs the layers above the cut once more for each text whose embedding is asked
    for; `cut`, the lowest adapted layer, which costs nothing and sees about half as much. Where tasks train layers
    together it is always `cut`."""
    bins: int = Field(10, ge=2, le=200)
    """Bins of a numeric column: quantiles of the reference."""
    min_rows: int = Field(50, ge=20)
    """With fewer rows on either side the answer is "insufficient data"."""
    metric_floor: float = Field(0.05, gt=0, lt=1)
    """A change of the label-free estimate of accuracy up to this is no drift."""
    columns: dict[str, Annotated[str, _choice(catalog.DRIFT)]] = {}
    """Columns of the sources to watch beside texts, embeddings, labels and answers: name of the column -> its test."""
    false_alarms_per_month: float = Field(1.0, gt=0, le=1000)
    """Monitoring: the most false alarms a month (30 days) that all tasks and kinds together may give, however many
    windows are looked at."""
    window_rows: int = Field(1000, ge=20)
    """Monitoring: a window of a task ends after so many answered rows ..."""
    window_minutes: float = Field(1440.0, gt=0)
    """... or after so many minutes of traffic, once it holds `min_rows`."""
    audit_rows: int = Field(200, ge=20)
    """Monitoring: a window of late labels ends after so many labelled rows; time as above."""
    bad_rows_share: float = Field(0.025, gt=0, lt=1)
    """Monitoring: a data fault is reported when more than this share of a window's rows is not usable (no
    probabilities, unknown labels, no text statistics)."""
    season: Literal["none", "daily", "weekly"] = "none"
    """Monitoring: after what time production repeats itself; hours are those of UTC. Then rows are compared with those
    of the same phase: docs/monitoring.md."""
    season_hours: Literal[1, 2, 3, 4, 6, 8, 12, 24] = 6
    """Monitoring: hours of a phase. A window ends with its phase; it needs `min_rows` to be judged."""
    season_cycles: int = Field(2, ge=1, le=8)
    """Monitoring: whole seasons without an alarm that are learnt before phases are judged."""
    volume_minutes: Literal[10, 15, 20, 30, 60] = 60
    """Monitoring: rows are counted in slots of so many minutes, each compared with earlier ones of the same phase."""
    volume_factor: float = Field(3.0, gt=1)
    """Monitoring: rows up to so many times more, or fewer, than usual are no fault."""
    feedback_days: float = Field(14.0, gt=0)
    """Monitoring: labels that come later than this find their answers forgotten; they are counted."""
    late_minutes: float = Field(10.0, gt=0)
    """Monitoring: a file of the prediction log that is still missing so long after the writer's next one is reported
    as lost."""


class Trigger(_Section):
    """When monitoring asks for a task to be trained again, and what carries that out."""

    by: Annotated[str, _choice(catalog.TRIGGERS)] = _choice_field(catalog.TRIGGERS, "none")
    """What carries out a request."""
    window: str | None = None
    """Labelled rows to train with (`local` and `kfp`), a file or folder beside params.yaml; none: the rows of the log
    whose labels came back, which needs the log to hold texts."""
    kinds: list[Literal["input", "embedding", "prediction", "estimate", "label", "quality"]] = [
        "prediction", "estimate", "label", "quality",
    ]  # fmt: skip
    """Kinds of drift that count; a window violates when one of them is drifted in it."""
    violations: int = Field(2, ge=1)
    """A request needs so many violating windows ..."""
    of_windows: int = Field(3, ge=1)
    """... among the last so many of the task, and the newest must be one of them."""
    cool_down_hours: float = Field(24.0, ge=0)
    """No second request for a task within this time."""
    max_per_month: int = Field(4, ge=0)
    """At most so many requests in 30 days, all tasks together."""
    webhook: str | None = None
    """URL that `webhook` posts to. Requests are signed with the secret in the environment variable
    MTLOPS_WEBHOOK_SECRET, or in the file that MTLOPS_WEBHOOK_SECRET_FILE names."""

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.violations > self.of_windows:
            raise ValueError(f"violations: {self.violations} of {self.of_windows} windows cannot be. Lower it.")
        if self.by == "webhook" and not self.webhook:
            raise ValueError("by 'webhook' needs `webhook: URL`. Give it.")
        return self


class Retrain(_Section):
    """Replacing single tasks of a champion: docs/loop.md. Without `tasks`, every task is trained."""

    tasks: list[str] = []
    """Tasks to train; all others are taken over from `parent`, file by file."""
    parent: str | None = None
    """Bundle that the others come from: its id in the registry, or its folder."""
    mix: Literal["all"] | Annotated[float, Field(ge=0)] | None = None
    """Which old training rows a task learns again beside those of its newest window: `all`, or so many for each new
    row, drawn by their hash; 0 takes none, and the task then forgets what it knew. None: 2 with a `warm` start, `all`
    with a `fresh` one."""
    fewest_old: int = Field(300, ge=0)
    """Old rows that are learned again at least where `mix` is a number above 0: beside few new ones a task forgets."""
    epochs: int = Field(2, ge=1, le=1000)
    """Passes over these rows with a `warm` start, in place of `train.epochs`."""
    fewest_steps: int = Field(50, ge=1, le=10_000)
    """Steps of the optimiser that a `warm` start takes at least: the rows of a small window are passed more often."""
    start: Literal["fresh", "warm"] = "warm"
    """Whether a task starts from new tensors or from those of its parent; `prefix` and `masked` adapters are not
    served as they are trained and need `fresh`."""
    blend: float = Field(0.6, gt=0, le=1)
    """Share of the update in the tensors of a task with a `warm` start, the rest is its parent's; 1: only the update.
    It costs nothing and keeps what the task knew (Wortsman et al. 2022, arXiv:2109.01903); docs/loop.md has what it
    gives and takes."""
    reference: Literal["window", "all"] = "window"
    """What drift of a retrained task is measured against from then on: the rows of its newest window, since that is
    what production looks like now, or all rows of its splits."""

    @property
    def mixture(self) -> Literal["all"] | float:
        """What `mix` means."""
        if self.mix is None:
            return 2.0 if self.start == "warm" else "all"
        return self.mix

    @model_validator(mode="after")
    def _has_parent(self) -> Self:
        if self.tasks and not self.parent:
            raise ValueError("`tasks` needs `parent`, the bundle that all other tasks are taken from. Give its id.")
        return self


class Params(_Section):
    """The whole of params.yaml; DVC depends on each section alone."""

    preset: Annotated[str, _choice(catalog.PRESETS)] = _choice_field(catalog.PRESETS, "balanced")
    """One word for how much training and serving may cost: it fills keys of `model` and `train` that are not given."""
    suite: Suite
    data: Data = Data()
    encoder: Encoder = Encoder()
    model: Model = Model()
    train: Train = Train()
    gates: Gates = Gates()
    export: Export = Export()
    drift: Drift = Drift()
    retrain: Retrain = Retrain()
    trigger: Trigger = Trigger()

    RESERVED: ClassVar[frozenset[str]] = frozenset({"windows", "encoder"})
    _left_out: tuple[str, ...] = PrivateAttr(())

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_what_is_not_given(cls, value: Any) -> Any:
        word = value.get("preset", cls.model_fields["preset"].default) if isinstance(value, Mapping) else None
        if not isinstance(word, str) or word not in catalog.PRESETS:
            return value
        preset, filled = catalog.PRESETS[word], dict(value)
        model = filled.get("model", {})
        chooses = isinstance(model, Mapping) and ("adapter" in model or model.get("sharing", "adapters") != "adapters")
        for part in (preset.settings, {} if chooses else preset.adapter):
            for section, settings in part.items():
                given = filled.get(section, {})
                if isinstance(given, Mapping):
                    filled[section] = {**settings, **given}
        return filled

    @model_validator(mode="after")
    def _names_agree(self) -> Self:
        tasks = list(self.suite.tasks)
        for name in self.RESERVED & set(tasks):
            raise ValueError(f"suite.tasks.{name}: this name is taken by a folder of mtlops. Choose another.")
        mentioned = [(f"gates.floor.{t}", t) for t in self.gates.floor]
        mentioned += [(f"gates.seed_noise.{t}", t) for t in self.gates.seed_noise]
        mentioned += [(f"data.windows.{w}.tasks", t) for w, window in self.data.windows.items() for t in window.tasks]
        mentioned += [("train.distil_tasks", t) for t in self.train.distil_tasks or ()]
        mentioned += [("retrain.tasks", t) for t in self.retrain.tasks]
        mentioned += [(f"model.depths.{t}", t) for t in self.model.depths]
        for where, task in mentioned:
            if task not in tasks:
                raise ValueError(f"{where}: no task {task!r} in suite.tasks. {suggest(task, tasks)}")
        return self

    @model_validator(mode="after")
    def _words_are_tagged_over_adapters(self) -> Self:
        tagging = [task.name for task in self.tasks() if task.per_word]
        if tagging and self.model.sharing != "adapters":
            raise ValueError(
                f"model.sharing: {self.model.sharing!r} gives each text one vector, but suite.tasks.{tagging[0]} of "
                f"kind 'tagging' needs one for each word. Use 'adapters', or give it a suite of its own."
            )
        return self

    @model_validator(mode="after")
    def _balancing_has_something_to_balance(self) -> Self:
        train, model = self.train, self.model
        if not model.shares_weights and (train.balancing != "equal" or train.sampling_temperature != 1.0):
            key = "balancing" if train.balancing != "equal" else "sampling_temperature"
            where = f"model.sharing {model.sharing!r}" + " and no tuned layer" * (model.tuned_layers == 0)
            raise ValueError(
                f"train.{key}: with {where} no weight is trained on more than one task, so there is nothing to "
                f"balance. Remove it, or share layers (model.sharing: hard, soft or hierarchical)."
            )
        if model.sharing == "soft" and model.soft == "l2" and catalog.BALANCERS[train.balancing].on_gradients:
            raise ValueError(
                f"train.balancing: {train.balancing!r} compares the tasks' gradients on the same weights, but under "
                f"soft sharing with 'l2' each task has its own. Use 'equal', 'uncertainty' or 'dwa', or model.soft: "
                f"cross-stitch."
            )
        if model.sharing != "adapters" and train.adapter_drop != "fixed":
            raise ValueError(f"train.adapter_drop: {train.adapter_drop!r} is for model.sharing 'adapters'. Remove it.")
        for key in ("rows_per_pass", "memory_gb", "recompute", "precision"):
            asks_nothing = ("auto", Train.model_fields[key].default)
            if model.sharing != "adapters" and getattr(train, key) not in asks_nothing:
                raise ValueError(f"train.{key} is for model.sharing 'adapters', not {model.sharing!r}. Remove it.")
        return self

    def tasks(self) -> tuple[Task, ...]:
        """Returns the suite's tasks in the order of params.yaml."""
        return tuple(
            Task(name=name, kind=spec.kind, classes=tuple(spec.classes), range=spec.range)
            for name, spec in self.suite.tasks.items()
        )

    def learning_rate(self) -> float:
        """Returns the peak learning rate of a task's own tensors: the one given, else the sharing's or adapter's."""
        own = catalog.SHARING[self.model.sharing].learning_rate or catalog.ADAPTERS[self.model.adapter].learning_rate
        return self.train.learning_rate or own

    def inputs(self, task: str) -> Inputs:
        """Returns the input columns of a task's source."""
        return self.suite.tasks[task].inputs or self.suite.inputs

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tasks of params.yaml that `only` left out: what names them is no mistake."""
        return self._left_out

    def retraining(self, names: Sequence[str], parent: str) -> "Params":
        """Returns the same params with these tasks to be retrained, and all others taken from a bundle.

        Raises:
            UsageError: a name is not a task of the suite.
        """
        self.only(names)
        retrain = self.retrain.model_copy(update={"tasks": list(names), "parent": parent})
        return self.model_copy(update={"retrain": retrain})

    def only(self, names: Sequence[str]) -> "Params":
        """Returns the same params as if the suite had only these tasks.

        Raises:
            UsageError: a name is not a task of the suite.
        """
        for name in names:
            if name not in self.suite.tasks:
                raise UsageError(f"--tasks: no task {name!r}. {suggest(name, list(self.suite.tasks))}")
        value = self.model_dump()
        value["suite"]["tasks"] = {t: v for t, v in value["suite"]["tasks"].items() if t in names}
        for of_tasks in ("floor", "seed_noise"):
            value["gates"][of_tasks] = {t: v for t, v in value["gates"][of_tasks].items() if t in names}
        value["model"]["depths"] = {t: v for t, v in value["model"]["depths"].items() if t in names}
        if self.train.distil_tasks is not None:
            value["train"]["distil_tasks"] = [t for t in self.train.distil_tasks if t in names]
        value["retrain"]["tasks"] = [t for t in value["retrain"]["tasks"] if t in names]
        for window in value["data"]["windows"].values():
            window["tasks"] = [t for t in window["tasks"] if t in names]
        value["data"]["windows"] = {w: v for w, v in value["data"]["windows"].items() if v["tasks"]}
        params = Params.model_validate(value)
        left_out = [task for task in self.suite.tasks if task not in names]
        params._left_out = (*self._left_out, *left_out)  # noqa: SLF001 - of our own class
        return params


def read_params(path: Path, *, overrides: Sequence[str] = (), tasks: str = "") -> Params:
    """Returns the params in `path`, after `overrides` of the form `section.key=value`.

    `tasks` is a comma list: the result is as if the suite had only these; empty for all.

    Raises:
        UsageError: the file is missing, not YAML, or not what `schema` describes; one line for each fault.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UsageError(f"{path}: not found. Give the file with --params, or run in the repository.") from None
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start}).") from None
    return parse_params(text, where=str(path), overrides=overrides, tasks=tasks)


def parse_params(text: str, *, where: str = "params.yaml", overrides: Sequence[str] = (), tasks: str = "") -> Params:
    """Returns the params in a YAML text; `where` names it in messages. Raises like `read_params`."""
    value = _read_yaml(text, where=where)
    if not isinstance(value, dict):
        raise UsageError(f"{where}: must hold the sections {', '.join(Params.model_fields)}.")
    for override in overrides:
        _override(value, override)
    try:
        params = Params.model_validate(value)
    except ValidationError as error:
        raise UsageError("\n".join(f"{where}: {said}" for said in _explanations(error, value))) from None
    return params.only(split_names(tasks)) if tasks else params


def schema() -> str:
    """Returns the JSON schema of params.yaml as text."""
    return json.dumps(Params.model_json_schema(), indent=2, ensure_ascii=False)


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, with `on`/`off`/`yes`/`no` left as words and a key given twice an error."""


def _read_yaml(text: str, *, where: str) -> Any:
    try:
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506 - a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise UsageError(f"{where}{line}: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{where}: is not YAML: {error}.") from None


def _unique_mapping(loader: StrictLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key.value!r} is given twice. Remove or rename one", key.start_mark
            )
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)
StrictLoader.yaml_implicit_resolvers = {
    first: [(tag, regexp) for tag, regexp in resolvers if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _override(value: dict[str, Any], override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or not path:
        raise UsageError(f"--set {override}: must look like section.key=value.")
    *parents, last = path.split(".")
    for key in parents:
        value = value.setdefault(key, {})
        if not isinstance(value, dict):
            raise UsageError(f"--set {override}: {key!r} is not a section.")
    value[last] = _read_yaml(text, where=f"--set {path}")


def _explanations(error: ValidationError, value: Mapping[str, Any]) -> list[str]:
    """One line for each faulty key: where a key may be one thing or another, its fault comes once for each of them."""
    of_key: dict[tuple[Any, ...], list[Any]] = {}
    for fault in error.errors():
        of_key.setdefault(_place(fault["loc"], value), []).append(fault)
    return [_explain({**faults[0], "loc": place, "msg": _either(faults)}) for place, faults in of_key.items()]


def _place(loc: Sequence[Any], value: Any) -> tuple[Any, ...]:
    """The keys of a fault's place; what follows a plain value in it names the alternative that it was held against."""
    for i, part in enumerate(loc):
        if not isinstance(value, dict | list):
            return tuple(loc[:i])
        known = part in value if isinstance(value, dict) else isinstance(part, int) and part < len(value)
        value = value[part] if known else {}
    return tuple(loc)


def _either(faults: Sequence[Any]) -> str:
    first, *others = (fault["msg"] for fault in faults)
    said = [first, *(other.removeprefix("Input should be ").partition(",")[0] for other in others)]
    return ", or ".join(said)


def _explain(fault: Any) -> str:
    path = ".".join(str(part) for part in fault["loc"] if part != "[key]")
    at = f"{path}: " if path else ""
    if fault["type"] == "extra_forbidden":
        return f"{at}unknown key. {suggest(str(fault['loc'][-1]), _known_keys(fault['loc'][:-1]))}"
    if fault["type"] == "missing":
        return f"{at}is required."
    if fault["type"] == "value_error":
        return f"{at}{fault['ctx']['error']}"
    if fault["type"] == "string_pattern_mismatch":
        return f"{at}must be lower-case letters, digits, '-' and '_', starting with a letter."
    message = fault["msg"][0].lower() + fault["msg"][1:].removesuffix(".")
    return f"{at}{message}; {json.dumps(fault['input'], default=str)} given."


def _known_keys(path: Sequence[str | int]) -> list[str]:
    """The keys that the section at `path` knows, found by walking the JSON schema."""
    root = Params.model_json_schema()
    node: dict[str, Any] = root
    for part in path:
        by_pattern: dict[str, Any] = next(iter(node.get("patternProperties", {}).values()), {})
        node = node.get("properties", {}).get(str(part)) or by_pattern
        choices = [node, *node.get("anyOf", []), *node.get("allOf", [])]
        reference = next((c["$ref"] for c in choices if "$ref" in c), None)
        if reference:
            node = root["$defs"][reference.rsplit("/", 1)[1]]
    return list(node.get("properties", {}))
