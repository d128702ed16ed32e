"""Measure how long a command takes, and the resources of its processes."""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster_remote.annex.waiting import child_group
from cluster_remote.bench.testbed import BenchFailed

__all__ = ["Usage", "timed"]

# Seconds between samples of the processes.
_SAMPLE_INTERVAL = 0.25
_TIMEOUT = 3600.0
_OURS = (b"git-annex-remote-cluster", b"cluster-remote")


@dataclass(frozen=True)
class Usage:
    """`seconds` is the duration; `memory` is the peak of our own processes in bytes, `processes` the most at once."""

    seconds: float
    memory: int
    processes: int


def timed(argv: Sequence[str], where: Path, environment: Mapping[str, str], servers: Sequence[int] = ()) -> Usage:
    """Run a command to its end. `servers` are other processes that work for it. Raises BenchFailed."""
    started = time.perf_counter()
    with child_group(argv, cwd=where, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as child:
        watch = _Watch([child.pid, *servers])
        watch.start()
        try:
            output, _ = child.communicate(timeout=_TIMEOUT)
        except subprocess.TimeoutExpired:
            raise BenchFailed(f"{' '.join(argv)} did not finish within {_TIMEOUT:.0f} seconds") from None
        finally:
            seconds = time.perf_counter() - started
            watch.stop()
    if child.returncode:
        raise BenchFailed(f"{' '.join(argv)} exited with code {child.returncode}: {output.decode()[-500:]}")
    return Usage(seconds, watch.memory, watch.processes)


class _Watch(threading.Thread):
    """Samples some processes and their descendants.

    Short peaks are missed, except for memory, whose high-water mark the kernel keeps.
    """

    def __init__(self, roots: Sequence[int]) -> None:
        super().__init__(daemon=True)
        self.memory = 0
        self.processes = 0
        self._roots = roots
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(_SAMPLE_INTERVAL):
            found = _family(self._roots)
            self.processes = max(self.processes, len(found))
            for pid in found:
                self.memory = max(self.memory, _high_water(pid))

    def stop(self) -> None:
        self._end.set()
        self.join()


def _family(roots: Sequence[int]) -> set[int]:
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_bytes()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(b")")[2].split()[1])
    family = set(roots)
    while more := {pid for pid, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _high_water(pid: int) -> int:
    """Return the peak resident set size in bytes of a process of this program; 0 for any other."""
    try:
        # The first word is the program, or its interpreter; the second one may be its script.
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[:2]
        if not any(word.rpartition(b"/")[2] in _OURS for word in words):
            return 0
        for line in Path(f"/proc/{pid}/status").read_bytes().splitlines():
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        return 0
    return 0
