"""Running processes, by /proc, so that a test can assert that none was left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
POLL_SECONDS = 0.02


@dataclass(frozen=True)
class Process:
    """A process that was alive when it was inspected."""

    pid: int
    parent: int
    command: str

    def __str__(self) -> str:
        return f"{self.pid} (child of {self.parent}): {self.command}"


def _look(pid: int) -> Process | None:
    """Return the process `pid`; None if it has ended or is a zombie.

    It holds its files until the last of its threads is gone, which may be after the first has become a zombie.
    """
    try:
        status = (PROC / str(pid) / "stat").read_bytes()
        command = (PROC / str(pid) / "cmdline").read_bytes()
        threads = len(list((PROC / str(pid) / "task").iterdir()))
    except OSError:
        return None
    # The program's name stands in parentheses and may itself hold spaces and parentheses.
    state, parent = status[status.rindex(b")") + 1 :].split()[:2]
    if state == b"X" or (state == b"Z" and threads == 1):
        return None
    return Process(pid, int(parent), command.replace(b"\0", b" ").decode(errors="replace").strip())


def every_process() -> list[Process]:
    """All living processes of this machine that can be seen from here."""
    found = (_look(int(entry.name)) for entry in PROC.iterdir() if entry.name.isdigit())
    return [process for process in found if process is not None]


def descendants(pid: int) -> list[Process]:
    """The living children of `pid`, their children, and so on; `pid` itself is not among them."""
    children: dict[int, list[Process]] = {}
    for process in every_process():
        children.setdefault(process.parent, []).append(process)
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        below = children.get(waiting.pop(), [])
        found += below
        waiting += [process.pid for process in below]
    return sorted(found, key=lambda process: process.pid)


def with_variable(name: str, value: str) -> list[Process]:
    """The living processes that were started with the environment variable `name` set to `value`."""
    wanted = os.fsencode(f"{name}={value}")
    found = []
    for entry in PROC.iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            variables = (entry / "environ").read_bytes()
        except OSError:  # it ended meanwhile, or belongs to another user: not ours in either case
            continue
        if wanted in variables and wanted in variables.split(b"\0"):
            found.append(_look(int(entry.name)))
    return [process for process in found if process is not None]


def wait_until(condition: Callable[[], bool], within: float = 5.0) -> bool:
    """Wait for a condition, for at most so many seconds; return whether it came true."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(POLL_SECONDS)
    return condition()


def assert_none_left(find: Callable[[], list[Process]], within: float = 5.0) -> None:
    """Wait until `find` finds no process; raise AssertionError if it still does after so many seconds.

    Those still there are killed first, so that a failed test does not disturb the next.
    """
    if wait_until(lambda: not find(), within):
        return
    left = find()
    kill(left)
    if left:
        raise AssertionError("left behind:\n" + "\n".join(map(str, left)))


def assert_no_children_left(pid: int | None = None, within: float = 5.0) -> None:
    """Raise AssertionError if `pid` (by default this process) keeps having descendants, and kill them."""
    root = os.getpid() if pid is None else pid
    assert_none_left(lambda: descendants(root), within)


def end_group(pid: int) -> None:
    """Kill every process of the group that `pid` leads; it may be gone already."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def kill(processes: Iterable[Process]) -> None:
    """Kill these; they may be gone already."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
