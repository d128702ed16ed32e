"""Run a child process without an event loop, or in a thread. In an event loop, use `child.run`."""

from __future__ import annotations

import subprocess

from cluster_remote.annex.errors import CommandFailed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["run_and_wait"]


def run_and_wait(
    argv: Sequence[str], *, cwd: Path | None = None, env: Mapping[str, str] | None = None, timeout: float
) -> subprocess.CompletedProcess[bytes]:
    """Run a command to its end. Raises CommandFailed where it cannot be started or does not end in time."""
    try:
        return subprocess.run(
            argv, cwd=cwd, env=env, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired as e:
        raise CommandFailed(argv, None, f"did not end within {timeout:g} seconds") from e
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e
