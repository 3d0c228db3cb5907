"""params.yaml: what is refused, with which words, and what is accepted."""

import json
from pathlib import Path

import pytest
import yaml

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.params import Model, Train, parse_params, read_params, schema

VALID = """
suite:
  name: s
  tasks:
    tone: {kind: multiclass, source: a.csv, label: tone, classes: [bad, good]}
    stars: {kind: regression, source: a.csv, label: stars, range: [1, 5]}
"""


def test_minimal_params_have_every_default() -> None:
    params = parse_params(VALID)
    assert [task.name for task in params.tasks()] == ["tone", "stars"]
    assert params.tasks()[1].range == (1.0, 5.0)
    assert params.train.epochs > 0 and params.model.sharing == "adapters"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("kind: multiclass", "kind: multiclas", "tone.kind: unknown choice 'multiclas'. Did you mean 'multiclass'?"),
        ("label: tone", "lable: tone", "suite.tasks.tone.lable: unknown key. Did you mean 'label'?"),
        ("suite:", "train: {epoch: 3}\nsuite:", "train.epoch: unknown key. Did you mean 'epochs'?"),
        ("suite:", "preset: fsat\nsuite:", "preset: unknown choice 'fsat'. Did you mean 'fast'?"),
        ("suite:", "preset: cheap\nsuite:", "preset: unknown choice 'cheap'. Choose one of: balanced, fast, quality."),
        ("suite:", "preset: [fast]\nsuite:", "preset: input should be a valid string"),
        ("suite:", "preset: fast\nmodel: 3\nsuite:", "model: input should be a valid dictionary"),
        (
            "suite:",
            "train: {recompute: maybe}\nsuite:",
            "params.yaml: train.recompute: input should be 'auto', or a valid boolean; \"maybe\" given.",
        ),
        ("suite:", "trian: {}\nsuite:", "trian: unknown key. Did you mean 'train'?"),
        ("  name: s\n", "", "suite.name: is required."),
        ("    stars:", "    tone:", ":6: 'tone' is given twice. Remove or rename one."),
        ("    stars:", "    Stars:", "suite.tasks.Stars: must be lower-case letters"),
        ("    stars:", "    windows:", "suite.tasks.windows: this name is taken"),
        ("[bad, good]", "[bad]", "suite.tasks.tone: kind 'multiclass' needs at least 2 classes; 1 given."),
        ("[bad, good]", "[bad, bad]", "suite.tasks.tone: classes are named twice: bad."),
        ("suite:", "train: {balancing: pcgrad}\nsuite:", "train.balancing: with model.sharing 'adapters' no weight"),
        (
            "suite:",
            "train: {sampling_temperature: 2}\nmodel: {sharing: hard, tuned_layers: 0}\nsuite:",
            "train.sampling_temperature: with model.sharing 'hard' and no tuned layer no weight is trained",
        ),
        (
            "suite:",
            "train: {balancing: cagrad}\nmodel: {sharing: soft}\nsuite:",
            "train.balancing: 'cagrad' compares the tasks' gradients on the same weights, but under soft",
        ),
        ("suite:", "train: {balancing: gradnrom}\nsuite:", "unknown choice 'gradnrom'. Did you mean 'gradnorm'?"),
        ("suite:", "model: {tuned_layers: 2}\nsuite:", "tuned_layers is for sharing 'hard' or 'soft' or"),
        ("suite:", "model: {sharing: hard, tune_embeddings: true}\nsuite:", "tune_embeddings needs `tuned_layers"),
        ("suite:", "model: {sharing: hierarchical, depths: {tnoe: 1}}\nsuite:", "model.depths.tnoe: no task 'tnoe'"),
        ("suite:", "model: {sharing: hierarchical, depths: {tone: 0}}\nsuite:", "depths.tone: 0; a task goes through"),
        (
            "suite:",
            "train: {adapter_drop: robust}\nmodel: {sharing: hard}\nsuite:",
            "train.adapter_drop: 'robust' is for model.sharing 'adapters'",
        ),
        (
            "suite:",
            "train: {recompute: true}\nmodel: {sharing: soft}\nsuite:",
            "train.recompute is for model.sharing 'adapters', not 'soft'. Remove it.",
        ),
        ("[1, 5]", "[5, 1]", "suite.tasks.stars: range is [lowest, highest]"),
        ("suite:", "gates: {floor: {tones: 1}}\nsuite:", "gates.floor.tones: no task 'tones' in suite.tasks. Did you"),
        ("suite:", "train: {epochs: many}\nsuite:", 'train.epochs: input should be a valid integer'),
        ("suite:", "data: {windows: {w: {tasks: [tone]}}}\nsuite:", "data.windows.w: give exactly one of"),
        ("{kind: multi", "{kind: [multi", "params.yaml:5: "),
    ],
)  # fmt: skip
def test_a_fault_is_named_with_its_place_and_a_way_out(old: str, new: str, message: str) -> None:
    assert old in VALID
    with pytest.raises(UsageError) as error:
        parse_params(VALID.replace(old, new, 1))
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_every_fault_has_its_own_line() -> None:
    with pytest.raises(UsageError) as error:
        parse_params(VALID + "train: {epochs: 0, rate: 1}\n")
    assert len(str(error.value).splitlines()) == 2


def test_yaml_words_for_booleans_stay_words() -> None:
    assert parse_params(VALID.replace("[bad, good]", "[no, yes]")).tasks()[0].classes == ("no", "yes")


def test_number_classes_become_words() -> None:
    assert parse_params(VALID.replace("[bad, good]", "[0, 1]")).tasks()[0].classes == ("0", "1")


def test_override_wins_and_is_checked() -> None:
    assert parse_params(VALID, overrides=["train.epochs=9"]).train.epochs == 9
    for bad in ("train.epochs", "train.epoch=9", "suite.name.x=1"):
        with pytest.raises(UsageError):
            parse_params(VALID, overrides=[bad])


def test_only_keeps_the_named_tasks_everywhere() -> None:
    text = VALID + "gates: {floor: {tone: 0.5, stars: 0.1}}\ndata: {windows: {w: {tasks: [stars], share: 0.1}}}\n"
    params = parse_params(text).only(["tone"])
    assert list(params.suite.tasks) == ["tone"] and list(params.gates.floor) == ["tone"] and not params.data.windows
    with pytest.raises(UsageError, match="no task 'ton'. Did you mean 'tone'"):
        parse_params(text).only(["ton"])


def test_missing_and_undecodable_files_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not found"):
        read_params(tmp_path / "params.yaml")
    (tmp_path / "params.yaml").write_bytes(b"suite: \xff")
    with pytest.raises(UsageError, match="is not UTF-8 text"):
        read_params(tmp_path / "params.yaml")


def test_schema_describes_every_key() -> None:
    value = json.loads(schema())
    for section in [value, *value["$defs"].values()]:
        for name, field in section["properties"].items():
            if section is not value:
                assert field.get("description"), name
    assert value["$defs"]["TaskSpec"]["properties"]["kind"]["enum"]


def test_the_repository_params_are_valid() -> None:
    params = read_params(Path(__file__).parents[1] / "params.yaml")
    assert list(params.suite.tasks) == ["sentiment", "intensity", "subjectivity", "topic"]


def test_sharing_brings_its_own_learning_rate_and_a_subset_of_tasks_its_depths() -> None:
    text = VALID + "model: {sharing: hierarchical, depths: {tone: 1, stars: 2}}\n"
    assert parse_params(text).learning_rate() == 1e-3
    assert parse_params(text, tasks="stars").model.depths == {"stars": 2}


def _filled(word: str, section: str) -> dict[str, object]:
    preset = catalog.PRESETS[word]
    return {**preset.settings.get(section, {}), **preset.adapter.get(section, {})}


@pytest.mark.parametrize("word", catalog.PRESETS)
def test_a_preset_fills_its_keys_and_no_others(word: str) -> None:
    params = parse_params(f"preset: {word}\n{VALID}")
    assert params.model == Model(**_filled(word, "model"))
    assert params.train == Train(**_filled(word, "train"))
    others = {"preset", "model", "train"}
    assert params.model_dump(exclude=others) == parse_params(VALID).model_dump(exclude=others)


@pytest.mark.parametrize("model", ["adapter: lora", "adapter: parallel", "sharing: hard"])
def test_what_was_tuned_for_a_preset_s_adapter_is_not_filled_beside_another_choice(model: str) -> None:
    params = parse_params(f"preset: balanced\nmodel: {{{model}}}\n{VALID}")
    assert params.model == Model(**yaml.safe_load(f"{{{model}}}"))
    assert params.train == Train()


def test_a_preset_s_adapter_is_kept_beside_a_word_that_changes_nothing() -> None:
    params = parse_params(f"model: {{sharing: adapters, bottleneck: 5}}\n{VALID}")
    assert params.model == Model(**{**_filled("balanced", "model"), "bottleneck": 5})


def test_keys_that_are_given_win_over_the_preset() -> None:
    params = parse_params(f"preset: quality\nmodel: {{adapter_drop: 2}}\n{VALID}")
    assert params.model.adapter_drop == 2
    assert parse_params(VALID, overrides=("preset=quality", "model.adapter_drop=1")).model.adapter_drop == 1


def test_balanced_is_what_one_gets_without_a_word() -> None:
    params = parse_params(VALID)
    assert params == parse_params(f"preset: balanced\n{VALID}")
    assert params.preset == "balanced"


def test_a_part_of_the_suite_keeps_what_the_preset_filled() -> None:
    params = parse_params(f"preset: fast\n{VALID}")
    assert params.only(["tone"]).model == params.model
