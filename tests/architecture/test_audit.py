"""What the audit says about what pip-audit found."""

import importlib.util

from tests.clones import ROOT

SPEC = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
assert SPEC is not None
assert SPEC.loader is not None
audit = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(audit)

CLEAN = {"name": "numpy", "version": "2.4.6", "vulns": []}
UNKNOWN = {"name": "dvc", "skip_reason": "Dependency not found"}
HOLED = {"name": "jinja2", "version": "3.1.2", "vulns": [{"id": "PYSEC-1", "fix_versions": ["3.1.3", "4"]}]}


def test_vulnerability_is_named_and_fails() -> None:
    assert audit.verdict([CLEAN, HOLED]) == (
        ["jinja2 3.1.2: PYSEC-1, fixed in 3.1.3, 4", "2 of 2 packages audited, 1 known vulnerabilities"], 1
    )  # fmt: skip


def test_packages_that_were_not_audited_are_said() -> None:
    assert audit.verdict([CLEAN, UNKNOWN]) == (
        ["1 of 2 packages audited, 0 known vulnerabilities", "not audited: dvc"], 0
    )  # fmt: skip


def test_audit_of_nothing_does_not_pass_for_an_audit() -> None:
    assert audit.verdict([UNKNOWN]) == (["not audited: no advisory source knows any of the 1 packages"], 0)
