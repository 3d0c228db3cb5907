"""Layouts for other servers, read as those servers read them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import yaml
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.serving.runtime import Runtime
from tests.tiny_suite import Workspace

TYPES = {"TYPE_INT64": np.int64, "TYPE_FP32": np.float32}


@pytest.fixture(scope="module")
def bundle(finished: Workspace) -> Bundle:
    return Bundle.open(finished.bundle)


@pytest.fixture
def repository(bundle: Bundle, tmp_path: Path) -> Path:
    assert main(["export", "--layout", "triton", "--bundle", str(bundle.folder), "--to", str(tmp_path / "triton")]) == 0
    return tmp_path / "triton"


def read_config(repository: Path) -> Any:
    """config.pbtxt, refused where it says anything that Triton's own message does not know."""
    return text_format.Parse((repository / "tiny/config.pbtxt").read_text(), model_config_pb2.ModelConfig())


def test_triton_finds_a_model_in_its_version_s_folder(repository: Path, bundle: Bundle) -> None:
    config = read_config(repository)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 0)
    model = repository / "tiny/1" / config.default_model_filename
    assert model.read_bytes() == (bundle.folder / "model.onnx").read_bytes()
    assert sorted(path.name for path in repository.iterdir()) == ["tiny"]
    assert config.parameters["bundle"].string_value == bundle.id


def test_the_config_names_exactly_what_the_graph_asks_for_and_answers(repository: Path) -> None:
    config = read_config(repository)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(repository / "tiny/1" / config.default_model_filename), options)
    assert {one.name for one in config.input} == {value.name for value in session.get_inputs()}
    assert {one.name for one in config.output} <= {value.name for value in session.get_outputs()}
    assert all(list(one.dims) == [-1] * len(one.dims) for one in [*config.input, *config.output])


def test_a_client_that_reads_only_the_config_gets_the_bundle_s_answers(repository: Path, bundle: Bundle) -> None:
    config, text = read_config(repository), "the film was very good"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(repository / "tiny/1" / config.default_model_filename), options)
    tasks = json.loads(config.parameters["tasks"].string_value)
    tokenizer = Tokenizer(repository / "tiny/tokenizer.json", max_tokens=bundle.manifest["max_tokens"])
    input_ids, mask = pad(tokenizer.ids([text]), pad_id=tokenizer.pad_id)
    given = {
        "input_ids": input_ids, "attention_mask": mask, "pair_row": np.zeros(1),
        "pair_task": np.asarray([tasks["topic"]["position"]]),
    }  # fmt: skip
    feeds = {
        one.name: given[one.name].astype(TYPES[model_config_pb2.DataType.Name(one.data_type)]) for one in config.input
    }
    (logits,) = session.run([config.output[0].name], feeds)
    first, last = tasks["topic"]["columns"]
    scores = np.exp(logits[0, first:last] / tasks["topic"]["temperature"])
    expected = Runtime(bundle).predict([text], tasks=["topic"])["topic"].probabilities
    assert expected is not None
    assert np.allclose(scores / scores.sum(), expected[0], atol=1e-5)
    assert len(tasks["topic"]["classes"]) == last


def test_kserve_runs_the_server_on_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    to = tmp_path / "kserve"
    words = ["--layout", "kserve", "--image", "registry.example/mtlops:0.1.0", "--storage-uri", "s3://models/tiny"]
    assert main(["export", *words, "--bundle", str(bundle.folder), "--to", str(to)]) == 0
    assert Bundle.open(to / "model").id == bundle.id
    runtime, service = (
        yaml.safe_load((to / f"{name}.yaml").read_text()) for name in ("serving-runtime", "inference-service")
    )
    (container,) = runtime["spec"]["containers"]
    assert (container["name"], container["image"]) == ("kserve-container", "registry.example/mtlops:0.1.0")
    model = service["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://models/tiny"
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["modelFormat"]["name"] == runtime["spec"]["supportedModelFormats"][0]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]


def test_the_arguments_of_the_container_are_the_server_s(bundle: Bundle, tmp_path: Path) -> None:
    from mtlops.cli import _parser

    to = tmp_path / "kserve"
    assert (
        main(["export", "--layout", "kserve", "--image", "i:1", "--bundle", str(bundle.folder), "--to", str(to)]) == 0
    )
    (container,) = yaml.safe_load((to / "serving-runtime.yaml").read_text())["spec"]["containers"]
    options = _parser().parse_args(container["args"])
    assert (options.port, str(options.bundle), options.variant) == (
        container["ports"][0]["containerPort"],
        "/mnt/models",
        "fp32",
    )
    assert "REPLACE" in (to / "inference-service.yaml").read_text()


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--to", "x"], 2, "--to: is for --layout triton or kserve"),
        (["--layout", "triton", "--image", "i"], 2, "--image: is for --layout kserve"),
        (["--layout", "kserve"], 2, "--image: say which container image"),
        (["--layout", "triton", "--variant", "int8"], 4, "has no variant 'int8'; it has fp32"),
        (["--layout", "triton", "--to", "."], 2, "is there already"),
    ],
)
def test_what_is_refused_says_why(
    bundle: Bundle, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    words: list[str], code: int, says: str,
) -> None:  # fmt: skip
    monkeypatch.delenv("MTLOPS_IMAGE", raising=False)
    more = ["--bundle", str(bundle.folder)] if "--layout" in words else []
    assert main(["export", *words, *more]) == code
    assert says in capsys.readouterr().err
