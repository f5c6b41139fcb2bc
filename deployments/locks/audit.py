"""Asks the vulnerability service for every version of the locks: `make audit`.

Exit status: 0 nothing known, 1 something known, 2 not asked. pip-audit alone ends with 0 when the service knows none of
the packages, as an index without that service does; what was not answered counts as not asked here.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]
LOCKS = ["requirements.lock", "deployments/locks/image.lock", "deployments/locks/torch-cuda.lock"]


def main() -> int:
    files = [word for lock in LOCKS for word in ("-r", lock)]
    options = ["--disable-pip", "--require-hashes", "--progress-spinner", "off", "--timeout", "20", "--format", "json"]
    pip_audit = Path(sys.executable).parent / "pip-audit"
    done = subprocess.run(
        [str(pip_audit), *options, *sys.argv[1:], *files], cwd=PROJECT, capture_output=True, text=True, check=False
    )
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        said = [line for line in done.stderr.strip().splitlines() if line.strip()]
        return not_asked(said[-1] if said else f"pip-audit ended with {done.returncode}")
    return told(packages)


def told(packages: list[dict[str, Any]]) -> int:
    for package in packages:
        for known in package.get("vulns", []):
            fixed = ", ".join(known["fix_versions"]) or "no version"
            print(f"{package['name']} {package['version']}: {known['id']}, fixed in {fixed}")
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    if skipped:
        return not_asked(f"no answer for {len(skipped)} of {len(packages)} packages, {skipped[0]} for one")
    vulnerable = sum(bool(package["vulns"]) for package in packages)
    print(f"{len(packages)} packages, {vulnerable} with a known vulnerability")
    return 1 if vulnerable else 0


def not_asked(why: str) -> int:
    print(f"audit: not done, the vulnerability service cannot be reached ({why}); try where it can", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
