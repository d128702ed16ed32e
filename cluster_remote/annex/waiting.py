"""Wait for a child process or a disk where there is no event loop. In one, use `child.run` and `disk.ask_disk`."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import contextmanager

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.limits import why_refused
from cluster_remote.p2p.key import decode
from cluster_remote.p2p.text import visible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path
    from typing import Any, TypeVar

    T = TypeVar("T")

__all__ = ["KEPT", "Completed", "ask_disk_and_wait", "child_group", "run_and_wait"]

KEPT = 4096
"""Bytes to keep from the end of a child's standard error for error messages."""


class Completed:
    """A command that has exited: its exit code and output. `complaint` is the tail of its standard error."""

    __slots__ = ("argv", "complaint", "returncode", "stdout")

    def __init__(self, argv: Sequence[str], returncode: int, stdout: bytes, complaint: str) -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stdout = stdout
        self.complaint = complaint


@contextmanager
def child_group(argv: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command in its own process group, and kill the group at the end if the command is still running.

    `git annex` is git running git-annex: killing only git would leave git-annex behind. `options` are Popen's.
    Raises OSError.
    """
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True, **options) as child:
        try:
            yield child
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)


def run_and_wait(
    argv: Sequence[str | Path],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    timeout: float,
    merged: bool = False,
) -> Completed:
    """Run a command until it exits; with `merged`, its output includes its standard error.

    Raises CommandFailed if it cannot be started or does not exit in time.
    """
    words = tuple(map(str, argv))
    stderr = subprocess.STDOUT if merged else subprocess.PIPE
    try:
        with child_group(argv, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=stderr) as child:
            stdout, complaint = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as e:
        raise CommandFailed(words, None, f"did not end within {timeout:g} seconds") from e
    except OSError as e:
        raise CommandFailed(words, None, f"cannot be started: {why_refused(e)}") from e
    return Completed(words, child.returncode, stdout, visible(decode((complaint or b"")[-KEPT:])).strip())


# Threads that still wait for a disk, by directory.
_waiting: dict[str, threading.Thread] = {}


def ask_disk_and_wait(directory: str, question: Callable[[], T], seconds: float) -> T | None:
    """Return the answer to a question about a directory; None if its disk does not answer within `seconds`.

    While a disk hangs, only the first caller waits for it. The thread is a daemon, so that the program can exit.
    """
    earlier = _waiting.get(directory)
    if earlier is not None and earlier.is_alive():
        return None
    answers: list[T] = []
    thread = threading.Thread(target=lambda: answers.append(question()), daemon=True, name=f"disk of {directory}")
    thread.start()
    thread.join(seconds)
    if not answers:
        _waiting[directory] = thread
        return None
    return answers[0]
