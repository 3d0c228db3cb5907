import json
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer

from mtlops.data.encoders import FILES, read_encoder, write_encoder
from mtlops.data.tokenisation import Tokenizer as OurTokenizer
from mtlops.data.tokenisation import pad
from mtlops.errors import DataError, UsageError
from mtlops.files import sha256_file
from tests import tiny_encoder
from tests.data.miniatures import encoder_folder


def test_a_users_encoder_is_copied_and_its_tokenizer_does_not_cut(tmp_path):
    source = encoder_folder(tmp_path / "mine")
    out = tmp_path / "out"
    out.mkdir()
    digest = write_encoder(out, read_encoder("mine", base=tmp_path, raw=tmp_path))
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    before = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer["padding"]["strategy"] == "BatchLongest"
    assert tokenizer == before | {"truncation": None, "padding": tokenizer["padding"]}
    assert (out / "model.safetensors").read_bytes() == (source / "model.safetensors").read_bytes()
    assert json.loads((out / "encoder.json").read_text(encoding="utf-8")) == {
        "schema_version": 1,
        "name": "mine",
        "requirement": None,
        "licence": None,
        "trunk_sha256": sha256_file(source / "model.safetensors"),
        "tokenizer_sha256": digest,
    }
    assert sha256_file(out / "tokenizer.json") == digest


@pytest.mark.parametrize("family, pad_id", [("bert", 0), ("roberta", 1), ("camembert", 1), ("distilbert", 0)])
def test_texts_are_padded_with_the_tokenizer_s_own_token(tmp_path, family, pad_id):
    tiny_encoder.write_encoder(tmp_path / "mine", family=family)
    out = tmp_path / "out"
    out.mkdir()
    write_encoder(out, read_encoder("mine", base=tmp_path, raw=tmp_path))
    ours = OurTokenizer(out / "tokenizer.json", max_tokens=8)
    texts = ["a film", "a very good film"]
    ids, mask = pad(ours.ids(texts), pad_id=ours.pad_id)
    assert ours.pad_id == pad_id and (ids[mask == 0] == pad_id).all() and (ids[mask == 1] != pad_id).all()
    raw = Tokenizer.from_file(str(out / "tokenizer.json")).encode_batch(texts)
    assert [encoding.ids for encoding in raw] == ids.tolist()


def test_a_file_that_does_not_say_its_padding_pads_with_0(tmp_path):
    folder = tiny_encoder.write_encoder(tmp_path)
    assert OurTokenizer(folder / "tokenizer.json", max_tokens=8).pad_id == 0


def test_weights_in_several_files_become_one(tmp_path):
    whole = tiny_encoder.write_encoder(tmp_path / "whole")
    parts = tiny_encoder.write_encoder(tmp_path / "parts")
    _split_weights(parts)
    merged = read_encoder("parts", base=tmp_path, raw=tmp_path).content["model.safetensors"]
    (tmp_path / "merged.safetensors").write_bytes(merged)
    expected, found = load_file(whole / "model.safetensors"), load_file(tmp_path / "merged.safetensors")
    assert found.keys() == expected.keys()
    assert all((found[name] == tensor).all() for name, tensor in expected.items())


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "model-2.safetensors").unlink(), "has no model-2.safetensors"),
        (lambda folder: (folder / "model-2.safetensors").write_bytes(b"short"), "model-2.safetensors is not a safeten"),
        (lambda folder: _write_index(folder, {"weight_map": {}}), "has no weight_map"),
        (lambda folder: _write_index(folder, {"weight_map": {"x": "model-1.safetensors"}}), "names x, which none"),
    ],
)
def test_damaged_parts_of_weights_are_named(tmp_path, damage, message):
    folder = tiny_encoder.write_encoder(tmp_path / "mine")
    _split_weights(folder)
    damage(folder)
    with pytest.raises(DataError, match=message):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


def test_a_pickle_is_not_opened(tmp_path):
    folder = encoder_folder(tmp_path / "mine")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"Only safetensors are read.*AutoModel\.from_pretrained"):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_of_an_encoder_is_named(tmp_path, name):
    (encoder_folder(tmp_path / "mine") / name).unlink()
    with pytest.raises(DataError, match=f"mine: has no {name}"):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", b"{", r"config\.json is not JSON"),
        ("config.json", b'{"model_type": "deberta-v2"}', r"config\.json: model_type is 'deberta-v2'"),
        ("tokenizer.json", b"[]", r"tokenizer\.json is not a JSON object"),
        ("tokenizer.json", b"\xff\xfe{", r"tokenizer\.json is not JSON"),
        ("tokenizer.json", b"{}", r"tokenizer\.json is not a readable tokenizer"),
        ("model.safetensors", b"short", r"model\.safetensors is not a safetensors file"),
        ("model.safetensors", b"\xff" * 64, r"model\.safetensors is not a safetensors file"),
    ],
)
def test_a_damaged_file_of_an_encoder_is_a_data_error(tmp_path, name, content, message):
    (encoder_folder(tmp_path / "mine") / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("config.json", {"vocab_size": 4}, "token ids up to 4, but config.json has vocab_size 4"),
        ("tokenizer.json", {"post_processor": None}, "puts no special token in front of a text"),
        (
            "config.json", {"model_type": "roberta", "pad_token_id": 1},
            r"pads with \[PAD\] \(0\), but config.json counts positions from pad_token_id 1",
        ),
    ],
)  # fmt: skip
def test_files_of_two_encoders_are_refused(tmp_path, name, change, message):
    _change(encoder_folder(tmp_path / "mine") / name, change)
    with pytest.raises(DataError, match=message):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


@pytest.mark.parametrize("configured, found", [(4, 4), (None, None), (9, None)])
def test_a_padding_token_of_another_name_is_the_one_that_the_config_names(tmp_path, configured, found):
    folder = encoder_folder(tmp_path / "mine")
    path = folder / "tokenizer.json"
    path.write_text(path.read_text(encoding="utf-8").replace("[PAD]", "blank"), encoding="utf-8")
    _change(folder / "config.json", {"pad_token_id": configured})
    if found is None:
        with pytest.raises(DataError, match="has no padding token"):
            read_encoder("mine", base=tmp_path, raw=tmp_path)
        return
    tokenizer = json.loads(read_encoder("mine", base=tmp_path, raw=tmp_path).content["tokenizer.json"])
    assert tokenizer["padding"]["pad_id"] == found


def test_an_unknown_encoder_is_a_usage_error_with_a_suggestion(tmp_path):
    with pytest.raises(UsageError, match=r"encoder\.source: 'all-minilm'.*Did you mean 'all-minilm-l6-v2'\?"):
        read_encoder("all-minilm", base=tmp_path, raw=tmp_path)


def _change(path: Path, change: dict[str, object]) -> None:
    value = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(value | change), encoding="utf-8")


def _split_weights(folder: Path) -> None:
    """Writes the weights as two files and an index, as transformers does with large models."""
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, by_tensor = sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), start=1):
        save_file({n: tensors[n] for n in part}, folder / f"model-{number}.safetensors", metadata={"format": "pt"})
        by_tensor |= dict.fromkeys(part, f"model-{number}.safetensors")
    _write_index(folder, {"metadata": {}, "weight_map": by_tensor})


def _write_index(folder: Path, value: dict[str, object]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps(value), encoding="utf-8")
