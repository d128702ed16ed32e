"""Run cluster-remote as users do: as a process of its own, in a repository."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.cli.outcomes import outcome
from tests.support.environment import Environment
from tests.support.forked import run_forked
from tests.support.repositories import Repository

__all__ = ["Done", "cluster_remote", "told"]


class Done:
    """A finished command: `code`, and `out` and `err` as text."""

    def __init__(self, completed: subprocess.CompletedProcess[bytes]) -> None:
        self.code = completed.returncode
        self.out = os.fsdecode(completed.stdout)
        self.err = os.fsdecode(completed.stderr)

    def __repr__(self) -> str:
        return f"exit code {self.code}\n{self.out}\n{self.err}"


def cluster_remote(
    where: Repository | Environment,
    *arguments: str | Path,
    code: int | None = 0,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> Done:
    """Run `cluster-remote` in a repository (or outside any) to its end.

    Raises:
        AssertionError: its exit code is not `code` (None: any), or it showed a traceback.
    """
    environment, directory = (
        (where, where.directory) if isinstance(where, Environment) else (where.environment, where.path)
    )
    done = Done(run_forked(environment, *arguments, cwd=cwd or directory, env=env, check=False, timeout=timeout))
    assert code is None or done.code == code, f"cluster-remote {' '.join(map(str, arguments))}: {done!r}"
    assert "Traceback" not in done.err, done.err
    return done


def told(where: Repository | Environment, command: str, *arguments: str | Path, **options: Any) -> dict[str, Any]:
    """Return a command's `--json` output, validated by its schema; options as for `cluster_remote`."""
    return outcome(command, cluster_remote(where, command, "--json", *arguments, **options).out)
