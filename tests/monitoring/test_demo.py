"""The demo's own params; the demo itself is run by `make demo`, on the default suite."""

from pathlib import Path

from monitoring.demo import WINDOW, prepare_folder
from mtlops.params import read_params

ROOT = Path(__file__).parents[2]


def test_the_demo_works_with_the_users_params_but_for_windows_and_trigger(tmp_path: Path) -> None:
    left = tmp_path / "demo/log/old.parquet"
    left.parent.mkdir(parents=True)
    left.write_text("of an earlier demo")
    params, own = (
        read_params(prepare_folder(ROOT / "params.yaml", tmp_path / "demo")),
        read_params(ROOT / "params.yaml"),
    )
    assert not left.exists()
    assert (params.trigger.by, params.drift.window_rows, params.drift.audit_rows) == ("local", WINDOW, WINDOW)
    changed = {"drift", "trigger"}
    assert params.model_dump(exclude=changed) == own.model_dump(exclude=changed)
