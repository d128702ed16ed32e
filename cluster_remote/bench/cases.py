"""The measurements: transfers of one large file and of many small ones, start-up, and slow connections."""

from __future__ import annotations

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.bench.measure import Usage, timed
from cluster_remote.bench.testbed import BARE, BenchFailed, Client, Testbed

__all__ = ["Load", "Results", "run_limit", "run_slow_lines", "run_slow_node", "run_start_up", "run_transfers"]


@dataclass(frozen=True)
class Load:
    """`files` files of `size` bytes each."""

    name: str
    files: int
    size: int


@dataclass
class Results:
    """Seconds (or bytes, or counts, depending on the figure) by case, way and figure: one value per round."""

    figures: dict[str, dict[str, dict[str, list[float]]]] = field(default_factory=dict)

    def add(self, case: str, way: str, figure: str, value: float) -> None:
        self.figures.setdefault(case, {}).setdefault(way, {}).setdefault(figure, []).append(value)

    def median(self, case: str, way: str, figure: str = "seconds") -> float | None:
        values = self.figures.get(case, {}).get(way, {}).get(figure)
        return statistics.median(values) if values else None


def _make_files(client: Client, testbed: Testbed, load: Load, mark: str) -> list[str]:
    """Add and commit a directory of new files with random content in a client. Return their keys."""
    directory = client.path / mark
    directory.mkdir()
    for number in range(load.files):
        with (directory / str(number)).open("wb") as file:
            left = load.size
            while left:
                block = os.urandom(min(left, 1 << 20))
                file.write(block)
                left -= len(block)
    testbed.annex(client.path, "add", "-q", mark)
    testbed.run(client.path, "git", "commit", "-q", "-m", mark)
    return testbed.annex(client.path, "find", "--format", "${key}\\n", mark).split()


def run_transfers(
    testbed: Testbed, clients: dict[str, Client], load: Load, jobs: Sequence[int], rounds: int, results: Results,
    tell: Callable[[str], None], steps: Sequence[str] = ("up", "down", "check", "drop"),
) -> None:  # fmt: skip
    """Upload, download, check and drop, in every way in turn, so that other load on the machine affects all equally."""
    for round_number in range(rounds):
        for job in jobs:
            for way, client in clients.items():
                mark = f"{load.name}-{way}-{job}-{round_number}".replace(" ", "-")
                keys = _make_files(client, testbed, load, mark)
                for step in steps:
                    if step == "down":
                        testbed.annex(client.path, "drop", "-q", "--force", mark)
                    usage = _step(testbed, way, client, step, job, mark)
                    case = f"{load.name} {step}, {testbed.nodes} nodes, -J{job}"
                    results.add(case, way, "seconds", usage.seconds)
                    results.add(case, way, "our memory (bytes)", usage.memory)
                    results.add(case, way, "processes", usage.processes)
                    tell(f"{case}: {way} {usage.seconds:.2f} s")
                testbed.forget(keys)


def _step(testbed: Testbed, way: str, client: Client, step: str, jobs: int, mark: str) -> Usage:
    """Run the commands that a user would type for one step; for the way `plain`, one per node."""
    verb = {
        "up": ["copy", "--to"],
        "down": ["get", "--from"],
        "check": ["fsck", "--fast", "--from"],
        "drop": ["drop", "--from"],
    }[step]
    # Content is downloaded only once, from the first remote.
    remotes = client.remotes[:1] if step == "down" else client.remotes
    usages = [
        timed(["git", "annex", *verb, remote, "-q", f"-J{jobs}", mark], client.path, testbed.environment(), servers)
        for servers in (testbed.server_pids(way),)
        for remote in remotes
    ]
    return Usage(
        sum(usage.seconds for usage in usages),
        max(usage.memory for usage in usages),
        max(usage.processes for usage in usages),
    )


def run_limit(testbed: Testbed, load: Load, rounds: int, results: Results, tell: Callable[[str], None]) -> None:
    """Measure the nodes' limit: a prepared conversation directly with every node's git-annex-shell, all at once."""
    for round_number in range(rounds):
        client = Client(testbed.gateway, ())
        mark = f"{load.name}-limit-{round_number}".replace(" ", "-")
        keys = _make_files(client, testbed, load, mark)
        started = time.perf_counter()
        feeds = [_feed(testbed, number, mark, load.size) for number in range(1, testbed.nodes + 1)]
        for feed in feeds:
            output, _ = feed.communicate(timeout=1800)
            stored = output.count(b"SUCCESS\n")
            if stored != load.files:
                raise BenchFailed(f"a node stored {stored} of {load.files} files: {output[-300:]!r}")
        seconds = time.perf_counter() - started
        case = f"{load.name} up, {testbed.nodes} nodes, -J1"
        results.add(case, "limit", "seconds", seconds)
        tell(f"{case}: limit {seconds:.2f} s")
        testbed.forget(keys)


def _feed(testbed: Testbed, number: int, mark: str, size: int) -> subprocess.Popen[bytes]:
    # A shell sends the messages, so that none of our code is part of the limit.
    names = testbed.annex(testbed.gateway, "find", "--format", "${key} ${file}\\n", mark).splitlines()
    script = ["printf 'VERSION 4\\n'"]
    for line in names:
        key, _, file = line.partition(" ")
        script.append(f"printf 'PUT  {key}\\nDATA {size}\\n'; cat {file}; printf 'VALID\\n'")
    shell = f"git-annex-shell p2pstdio {testbed.node(number)} 00000000-0000-0000-0000-000000000001"
    return subprocess.Popen(
        ["sh", "-c", f"sh -s | {shell}"],
        cwd=testbed.gateway,
        env=testbed.environment(),
        stdin=_script("; ".join(script)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def _script(text: str) -> int:
    descriptor = os.memfd_create("script")
    os.write(descriptor, text.encode())
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def run_start_up(testbed: Testbed, client: Client, rounds: int, results: Results, tell: Callable[[str], None]) -> None:
    """Measure the time to the first line and of `git annex info NAME`, compared with a trivial special remote."""
    environment = testbed.environment()
    testbed.init_bare(client.path, "nothing")
    nothing = str(testbed.directory / "bin" / BARE)
    for _ in range(max(rounds, 10)):
        for way, argv in (("ours", "git-annex-remote-cluster"), ("nothing", nothing)):
            results.add("start to the first line", way, "seconds", _first_line(argv, environment))
        for way, remote in (("ours", client.remotes[0]), ("nothing", "nothing")):
            usage = timed(["git", "annex", "info", "--fast", remote], client.path, environment)
            results.add("git annex info NAME", way, "seconds", usage.seconds)
    tell("start-up: done")


def _first_line(program: str, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdin is not None
        if child.stdout.readline() != b"VERSION 1\n":
            raise BenchFailed(f"{program} does not begin with VERSION 1")
        seconds = time.perf_counter() - started
        child.stdin.close()
    return seconds


def run_slow_node(
    make_testbed: Callable[[int, Mapping[int, float]], Testbed],
    load: Load,
    rounds: int,
    results: Results,
    tell: Callable[[str], None],
) -> None:
    """Measure the time until two fast nodes have the file, without and with a third one that accepts 5 MB/s."""
    case = f"{load.name} up, until the 2 fast nodes have it"
    beside: Mapping[int, float] = {3: 5.0}
    for nodes, lines, way in ((2, {}, "alone"), (3, beside, "beside a slow node")):
        testbed = make_testbed(nodes, lines)
        try:
            client = testbed.client("serverless")
            for round_number in range(rounds):
                mark = f"slow-{nodes}-{round_number}"
                keys = _make_files(client, testbed, load, mark)
                seconds = _until_fast_nodes_have(testbed, client, mark, keys)
                results.add(case, way, "seconds", seconds)
                tell(f"{case}: {way} {seconds:.2f} s")
                testbed.forget(keys)
        finally:
            testbed.close()


def run_slow_lines(
    make_testbed: Callable[[int, Mapping[int, float]], Testbed], load: Load, rounds: int, results: Results,
    tell: Callable[[str], None], nodes: int = 3, line: float = 10.0,
) -> None:  # fmt: skip
    """Download a file from a cluster whose nodes have connections of `line` MB/s each, and from one node alone."""
    case = f"{load.name} down, {nodes} nodes on lines of {line:g} MB/s"
    testbed = make_testbed(nodes, dict.fromkeys(range(1, nodes + 1), line))
    try:
        client = testbed.client("serverless")
        for round_number in range(rounds):
            mark = f"lines-{round_number}"
            keys = _make_files(client, testbed, load, mark)
            testbed.annex(client.path, "copy", "-q", "--to", client.remotes[0], mark)
            for way, remote in (("one node", "node1"), ("serverless", client.remotes[0])):
                testbed.annex(client.path, "drop", "-q", "--force", mark)
                usage = timed(["git", "annex", "get", "-q", "--from", remote, mark], client.path, testbed.environment())
                results.add(case, way, "seconds", usage.seconds)
                results.add(case, way, "our memory (bytes)", usage.memory)
                results.add(case, way, "processes", usage.processes)
                tell(f"{case}: {way} {usage.seconds:.2f} s")
            testbed.forget(keys)
    finally:
        testbed.close()


def _until_fast_nodes_have(testbed: Testbed, client: Client, mark: str, keys: Iterable[str]) -> float:
    """Return the seconds from the start of the copy until both fast nodes hold all contents."""
    argv = ["git", "annex", "copy", "-q", "--to", client.remotes[0], mark]
    started = time.perf_counter()
    with subprocess.Popen(
        argv, cwd=client.path, env=testbed.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
    ) as copy:
        try:
            while not all(_has(testbed.node(number), key) for number in (1, 2) for key in keys):
                if copy.poll() not in (None, 0) or time.perf_counter() - started > 1800:
                    raise BenchFailed("the copy ended before the fast nodes had the file")
                time.sleep(0.01)
            seconds = time.perf_counter() - started
            if copy.wait(1800):
                raise BenchFailed(f"{' '.join(argv)} exited with code {copy.returncode}")
        finally:
            if copy.poll() is None:
                copy.kill()
    return seconds


def _has(node: Path, key: str) -> bool:
    return any((node / ".git" / "annex" / "objects").glob(f"*/*/{key}/{key}"))
