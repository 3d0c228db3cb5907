"""Known vulnerabilities of the versions in constraints.txt, by pip-audit. Exit 1 when there is one, else 0."""

import json
import subprocess
import sys
from typing import Any

COMMAND = (
    sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--requirement", "constraints.txt",
    "--format", "json", "--progress-spinner", "off", "--timeout", "30",
)  # fmt: skip


def verdict(packages: list[dict[str, Any]]) -> tuple[list[str], int]:
    """Returns what to say about pip-audit's list of packages, and the exit code.

    A package that the advisory source does not know was not audited, and is said.
    """
    unknown = [package["name"] for package in packages if "skip_reason" in package]
    if len(unknown) == len(packages):
        return [f"not audited: no advisory source knows any of the {len(packages)} packages"], 0
    lines = [
        f"{package['name']} {package['version']}: {found['id']}, fixed in {', '.join(found['fix_versions']) or 'none'}"
        for package in packages
        for found in package.get("vulns", [])
    ]
    lines.append(
        f"{len(packages) - len(unknown)} of {len(packages)} packages audited, {len(lines)} known vulnerabilities"
    )
    if unknown:
        lines.append(f"not audited: {' '.join(unknown)}")
    return lines, int(any(package.get("vulns") for package in packages))


def main() -> int:
    """Asks, prints and returns the exit code."""
    done = subprocess.run(COMMAND, capture_output=True, text=True, check=False)  # noqa: S603 - our own tool
    if not done.stdout.startswith("{"):
        reason = done.stderr.strip().rpartition("\n")[2]
        print(f"not audited: no advisory source answers ({reason})")
        return 0
    lines, code = verdict(json.loads(done.stdout)["dependencies"])
    print("\n".join(lines))
    return code


if __name__ == "__main__":
    raise SystemExit(main())
