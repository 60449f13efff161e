"""Look the pinned packages up in PyPI's advisory service; say plainly when it cannot be reached.

Exit 1 only where a pinned version has a known vulnerability: a machine without network has nothing to be blamed for.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main() -> int:
    """Run pip-audit on constraints.txt and sum up what it could and could not look up."""
    command = [sys.executable, "-m", "pip_audit", "--requirement", "constraints.txt", "--no-deps", "--disable-pip"]
    run = subprocess.run(
        [*command, "--format", "json", "--progress-spinner", "off"], capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(run.stdout)["dependencies"]
    except (json.JSONDecodeError, KeyError):
        reason = (run.stderr.strip().splitlines() or ["no reason given"])[-1]
        print(f"audit skipped: no advisory service can be reached from here ({reason})")
        return 0
    known = [package for package in packages if "vulns" in package]
    bad = [package for package in known if package["vulns"]]
    if not known:
        print(f"audit skipped: the advisory service knows none of the {len(packages)} packages from here")
        return 0
    for package in bad:
        for advisory in package["vulns"]:
            fixed = ", ".join(advisory["fix_versions"]) or "no release yet"
            print(f"{package['name']} {package['version']}: {advisory['id']}, fixed in {fixed}")
    print(f"{len(known)} of {len(packages)} packages audited, {len(bad)} with a known vulnerability")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
