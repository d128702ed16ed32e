"""The audit of dependencies in continuous integration fails for a known fault, and says when it cannot tell."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

AUDIT = Path(__file__).parents[1] / ".ci" / "audit.py"
FAULT = {"id": "CVE-2000-1", "fix_versions": ["1.1"], "aliases": [], "description": ""}
SOUND = {"name": "sound", "version": "2.0", "vulns": []}


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        ([SOUND, {"name": "bad", "version": "1.0", "vulns": [FAULT]}], 1, "bad 1.0: CVE-2000-1, mended in 1.1"),
        ([SOUND, {"name": "ours", "skip_reason": "not found"}], 0, "audited 1 of 2 installed packages: 0 have"),
        ([{"name": "sound", "skip_reason": "not found"}], 0, "NOT AUDITED: the package index"),
        (None, 0, "NOT AUDITED: no database of advisories can be reached: no name resolution"),
    ],
)
def test_a_known_fault_fails_and_what_is_unknown_is_said(
    tmp_path: Path, found: list[object] | None, code: int, said: str
) -> None:
    """With a stand-in for pip-audit, because the real one needs a database, and packages with faults."""
    program = "import sys; sys.exit('no name resolution')"
    if found is not None:
        program = f"print({json.dumps({'dependencies': found})!r})"
    (tmp_path / "pip_audit.py").write_text(program)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = (sys.executable, str(AUDIT), str(tmp_path))
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code
    assert said in done.stdout + done.stderr
