"""Look up the installed packages in a database of advisories; fail if one of them has a known fault.

Says so where no database can be reached, because the package index in use has none.
"""

from __future__ import annotations

import json
import subprocess
import sys


def main(site_packages: str) -> int:
    """Return the exit code."""
    command = (
        sys.executable,
        "-m",
        "pip_audit",
        "--path",
        site_packages,
        "--format",
        "json",
        "--progress-spinner",
        "off",
    )
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        found = json.loads(done.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"NOT AUDITED: no database of advisories can be reached: {done.stderr.strip()[-300:]}", file=sys.stderr)
        return 0
    audited = [package for package in found if "vulns" in package]
    faulty = [package for package in audited if package["vulns"]]
    for package in faulty:
        for fault in package["vulns"]:
            fixed = ", ".join(fault["fix_versions"]) or "no version yet"
            print(f"{package['name']} {package['version']}: {fault['id']}, mended in {fixed}", file=sys.stderr)
    if not audited:
        print("NOT AUDITED: the package index in use has no database of advisories", file=sys.stderr)
    else:
        print(f"audited {len(audited)} of {len(found)} installed packages: {len(faulty)} have known faults")
    return 1 if faulty else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
