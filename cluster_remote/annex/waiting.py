"""Run a child process where there is no event loop. In one, use `child.run`."""

from __future__ import annotations

import subprocess

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.p2p.key import decode
from cluster_remote.p2p.text import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["KEPT", "Completed", "run_and_wait"]

KEPT = 4096
"""Bytes to keep from the end of a child's standard error for error messages."""


class Completed:
    """A command that ended: its exit code and output. `complaint` is the end of its standard error."""

    __slots__ = ("argv", "complaint", "returncode", "stdout")

    def __init__(self, argv: Sequence[str], returncode: int, stdout: bytes, complaint: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.complaint = complaint


def run_and_wait(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float
) -> Completed:
    """Run a command to its end. Raises CommandFailed where it cannot be started or does not end in time."""
    try:
        done = subprocess.run(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise CommandFailed(argv, None, f"did not end within {timeout:g} seconds") from e
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e
    return Completed(argv, done.returncode, done.stdout, visible(decode(done.stderr[-KEPT:])).strip())
