"""Only the library goes into the wheel."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.clones import ROOT, repository_files


def test_wheel_holds_mtlops_alone(tmp_path: Path) -> None:
    for name in repository_files():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, tmp_path / name)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", "out", "."]
    subprocess.run(command, cwd=tmp_path, check=True)
    [wheel] = (tmp_path / "out").glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"mtlops"}
    assert "mtlops/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    modules = {name for name in names if name.endswith(".py")}
    assert modules == {name for name in repository_files() if name.startswith("mtlops/") and name.endswith(".py")}
