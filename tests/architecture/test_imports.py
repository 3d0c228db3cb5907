"""Imports point one way, and the light parts stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import ROOT

HEAVY = {"dvc", "great_expectations", "kfp", "onnx", "onnxruntime", "pandas", "sklearn", "torch", "transformers"}
TRAINING = HEAVY - {"onnxruntime"}


def test_imports_point_one_way() -> None:
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "code, denied",
    [
        ("import mtlops.cli as cli; cli.main(['--help'])", HEAVY),
        *((f"import mtlops.cli as cli; cli.main(['{step}', '--help'])", HEAVY) for step in ("prepare", "train")),
        ("import mtlops.cli as cli; cli.main(['schema'])", HEAVY),
        ("import mtlops.cli as cli; cli.main(['adapters', 'export', '--help'])", HEAVY),
        ("import mtlops.cli as cli; cli.main(['serve', '--help'])", HEAVY | {"uvicorn", "grpc"}),
        ("import mtlops.params, mtlops.bundle, mtlops.data.normalisation, mtlops.data.tokenisation", HEAVY),
        ("import mtlops.report", HEAVY),
        ("import mtlops.serving", HEAVY),
        ("import mtlops.serving.runtime", TRAINING),
        ("import mtlops.serving.server", HEAVY | {"opentelemetry", "pyarrow"}),
        ("import mtlops.steps.prepare", HEAVY),
        ("import pipelines.__main__", HEAVY),
        ("import monitoring.resident, monitoring.triggers, mtlops.steps.monitor", HEAVY),
        ("import monitoring.__main__ as command; command.main(['once', '--help'])", HEAVY),
    ],
)
def test_light_imports(code: str, denied: set[str]) -> None:
    program = f"""
import sys
try:
    {code}
except SystemExit:
    pass
print("modules:", *{{name.partition(".")[0] for name in sys.modules}})
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = set(done.stdout.rpartition("modules:")[2].split())
    assert "mtlops" in loaded or "pipelines" in loaded or "monitoring" in loaded
    assert not loaded & denied
