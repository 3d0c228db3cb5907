import json

import pytest

from mtlops.data.encoders import FILES, read_encoder, write_encoder
from mtlops.errors import DataError, UsageError
from mtlops.files import sha256_file
from tests.data.miniatures import encoder_folder


def test_a_users_encoder_is_copied_and_its_tokenizer_neither_cuts_nor_pads(tmp_path):
    source = encoder_folder(tmp_path / "mine")
    out = tmp_path / "out"
    out.mkdir()
    digest = write_encoder(out, read_encoder("mine", base=tmp_path, raw=tmp_path))
    tokenizer = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))
    before = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    assert tokenizer == before | {"truncation": None, "padding": None}
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


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_of_an_encoder_is_named(tmp_path, name):
    (encoder_folder(tmp_path / "mine") / name).unlink()
    with pytest.raises(DataError, match=f"mine: has no {name}"):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("config.json", b"{", r"config\.json is not JSON"),
        ("tokenizer.json", b"[]", r"tokenizer\.json is not a JSON object"),
        ("tokenizer.json", b"\xff\xfe{", r"tokenizer\.json is not JSON"),
        ("model.safetensors", b"short", r"model\.safetensors is not a safetensors file"),
        ("model.safetensors", b"\xff" * 64, r"model\.safetensors is not a safetensors file"),
    ],
)
def test_a_damaged_file_of_an_encoder_is_a_data_error(tmp_path, name, content, message):
    (encoder_folder(tmp_path / "mine") / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_encoder("mine", base=tmp_path, raw=tmp_path)


def test_an_unknown_encoder_is_a_usage_error_with_a_suggestion(tmp_path):
    with pytest.raises(UsageError, match=r"encoder\.source: 'all-minilm'.*Did you mean 'all-minilm-l6-v2'\?"):
        read_encoder("all-minilm", base=tmp_path, raw=tmp_path)
