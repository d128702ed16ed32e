"""Measure how time and memory grow: with the number of keys, and with the number of clients of `serve`."""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import anyio

from cluster_remote.annex.logformat import branch_path
from cluster_remote.bench.cases import Load, Results
from cluster_remote.bench.existing import make_content
from cluster_remote.bench.measure import timed
from cluster_remote.bench.testbed import BenchFailed, Client, Testbed
from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode
from cluster_remote.p2p.session import Present
from cluster_remote.transport.sockets import UnixTransport

__all__ = ["grows", "make_keys", "run_clients", "run_keys"]

_CONTENT = b"four"
_CLIENT = UUID("00000000-0000-0000-0000-000000000001")
# The most clients with the same token.
_CLIENTS_PER_TOKEN = 16
# The number of first transfers; their median counts.
_FIRST = 5


def make_keys(testbed: Testbed, count: int) -> None:
    """Give all nodes `count` contents, and the location logs for them.

    The nodes share one directory of contents, and git imports all logs at once: with git-annex this would take longer
    than all measurements.
    """
    keys = [f"SHA256-s{len(_CONTENT)}--{hashlib.sha256(b'%d' % number).hexdigest()}" for number in range(count)]
    now = int(time.time())
    nodes = range(1, testbed.nodes + 1)
    uuids = [testbed.run(testbed.node(number), "git", "config", "annex.uuid").strip() for number in nodes]
    log = "".join(f"{now}s 1 {uuid}\n" for uuid in uuids)
    with subprocess.Popen(
        ["git", "fast-import", "--quiet"], cwd=testbed.gateway, env=testbed.environment(), stdin=subprocess.PIPE
    ) as importing:
        assert importing.stdin is not None
        importing.stdin.write(
            b"commit refs/heads/git-annex\ncommitter Bench <bench@example.com> %d +0000\ndata 0\n"
            b"from refs/heads/git-annex^0\n" % now
        )
        for key in keys:
            importing.stdin.write(f"M 100644 inline {_log_of(key)}\ndata {len(log)}\n{log}\n".encode())
    if importing.returncode:
        raise BenchFailed(f"git fast-import exited with code {importing.returncode}")
    first = testbed.node(1) / ".git/annex/objects"
    content = testbed.directory / "content"
    content.write_bytes(_CONTENT)
    for key in keys:
        folder = first / _log_of(key).removesuffix(".log")
        folder.mkdir(parents=True)
        (folder / key).write_bytes(_CONTENT)
    for number in nodes[1:]:
        objects = testbed.node(number) / ".git/annex/objects"
        if objects.exists():
            objects.rmdir()
        objects.symlink_to(first)
    # git-annex reads the new logs into its index, once.
    testbed.annex(testbed.gateway, "merge")


def _log_of(key: str) -> str:
    return decode(branch_path(Key(key)))


def run_keys(
    make_testbed: Callable[[int], Testbed], numbers: Sequence[int], nodes: int, ways: Sequence[str], rounds: int,
    results: Results, tell: Callable[[str], None],
) -> None:  # fmt: skip
    """Measure `status`, `check --all`, `repair --dry-run` and a first transfer, with these numbers of keys."""
    commands = {
        "status": ["cluster-remote", "status"],
        "check --all": ["cluster-remote", "check", "--all"],
        "repair --dry-run": ["cluster-remote", "repair", "--dry-run"],
    }
    for number in numbers:
        testbed = make_testbed(nodes)
        try:
            make_keys(testbed, number)
            clients = {way: testbed.client(way) for way in ways if way in ("serverless", "remote", "gateway", "bare")}
            for client in clients.values():
                # git-annex has to do this once after a clone.
                testbed.annex(client.path, "merge")
            for _ in range(rounds):
                for way, client in clients.items():
                    # `bare` has no cluster: only a transfer shows how git-annex itself grows.
                    for name, argv in commands.items() if way != "bare" else ():
                        case = _case(name, number, nodes)
                        usage = timed(
                            [*argv, client.remotes[0]], client.path, testbed.environment(), testbed.server_pids(way)
                        )
                        results.add(case, way, "seconds", usage.seconds)
                        results.add(case, way, "our memory (bytes)", usage.memory)
                        tell(f"{case}: {way} {usage.seconds:.2f} s, {usage.memory / 2**20:.0f} MiB")
                    _first_transfer(testbed, way, client, number, results, tell)
        finally:
            testbed.close()
    for name in (*commands, "first transfer"):
        grows(results, "keys", {number: _case(name, number, nodes) for number in numbers}, tell)


def _case(name: str, keys: int, nodes: int) -> str:
    return f"{name}, {keys:,} keys, {nodes} nodes"


def _first_transfer(
    testbed: Testbed, way: str, client: Client, number: int, results: Results, tell: Callable[[str], None]
) -> None:
    case = _case("first transfer", number, testbed.nodes)
    mark = f"first-{way}-{time.monotonic_ns()}"
    folder = client.path / mark
    folder.mkdir()
    for file in range(_FIRST):
        (folder / str(file)).write_bytes(os.urandom(10_000))
    testbed.annex(client.path, "add", "-q", mark)
    testbed.run(client.path, "git", "commit", "-q", "-m", mark)
    seconds = [
        timed(
            ["git", "annex", "copy", "-q", "--to", client.remotes[0], f"{mark}/{file}"],
            client.path, testbed.environment(), testbed.server_pids(way),
        ).seconds
        for file in range(_FIRST)
    ]  # fmt: skip
    results.add(case, way, "seconds", statistics.median(seconds))
    tell(f"{case}: {way} {statistics.median(seconds):.2f} s")


def grows(results: Results, what: str, cases: Mapping[int, str], tell: Callable[[str], None]) -> None:
    """Report, for each way, how many times as long the largest of several numbers takes as the smallest."""
    if len(cases) < 2:
        return
    least, most = min(cases), max(cases)
    for way in results.figures.get(cases[most], {}):
        before, after = results.median(cases[least], way), results.median(cases[most], way)
        if before and after:
            name = cases[most].partition(",")[0]
            tell(f"{name}: {way}: {most / least:,.0f} times as many {what} take {after / before:,.1f} times as long")


def run_clients(
    testbed: Testbed, numbers: Sequence[int], load: Load, results: Results, tell: Callable[[str], None]
) -> None:
    """Measure each number of clients of `serve` that store files at the same time, `load.files` in all."""
    # One token gets only a share of the gateway's client slots.
    tokens = [testbed.token() for _ in range(max(numbers) // _CLIENTS_PER_TOKEN + 1)]
    cases = {number: f"{load.name} stored by {number} clients of serve" for number in numbers}
    for number, case in cases.items():
        (pid,) = testbed.server_pids("gateway")
        started = time.perf_counter()
        waits, usage = anyio.run(_clients, testbed, tokens, number, load, pid)
        seconds = time.perf_counter() - started
        # Each client's first file includes the time to connect, and to start the processes that serve the nodes.
        first = max(each[0] for each in waits)
        later = [second for each in waits for second in each[1:] or each]
        waited, typical = max(later), statistics.median(later)
        results.add(case, "gateway", "seconds", seconds)
        results.add(case, "gateway", "median wait (seconds)", typical)
        results.add(case, "gateway", "longest wait (seconds)", waited)
        results.add(case, "gateway", "longest wait, in medians", waited / typical)
        results.add(case, "gateway", "longest wait for the first file of a client (seconds)", first)
        for when, used in zip(("at the start", "in the middle", "at the end"), usage, strict=True):
            results.add(case, "gateway", f"our memory {when} (bytes)", used.memory)
            results.add(case, "gateway", f"descriptors {when}", used.descriptors)
        tell(
            f"{case}: {seconds:.2f} s; a file took {typical:.3f} s (median), {waited:.3f} s at most "
            f"({waited / typical:.1f} medians), the first of a client {first:.3f} s at most; serve has "
            f"{', '.join(str(used) for used in usage)} (at the start, in the middle, at the end)"
        )
    grows(results, "clients", cases, tell)


async def _clients(
    testbed: Testbed, tokens: Sequence[str], number: int, load: Load, server: int
) -> tuple[list[list[float]], list[_Usage]]:
    """Return, for each client, how long each of its files took, in seconds, and what the server used three times.

    Raises BenchFailed.
    """
    usage = [_Usage.of(server)]
    waits: list[list[float]] = [[] for _ in range(number)]
    failures: list[Exception] = []
    each = max(load.files // number, 1)
    middle = max(number * each // 2, 1)

    async def store_all(session: StreamSession, directory: Path, mine: list[float]) -> None:
        for count in range(each):
            key, path = make_content(directory, count, load.size)
            began = time.perf_counter()
            outcome = await session.store(key, AssociatedFile(), FileSource(os.fsencode(path)))
            mine.append(time.perf_counter() - began)
            if sum(map(len, waits)) == middle:
                usage.append(_Usage.of(server))
            path.unlink()
            if isinstance(outcome, Present) or not outcome.stored or len(outcome.uuids) != testbed.nodes:
                raise BenchFailed(f"serve did not store a content on all nodes: {outcome}")

    async def client(directory: Path, mine: list[float], token: str) -> None:
        transport = UnixTransport(os.fsencode(testbed.directory / "gateway.sock"), token=token, name="serve")
        session = StreamSession(transport, client=_CLIENT)
        try:
            await store_all(session, directory, mine)
        except (SessionError, BenchFailed) as error:
            failures.append(error)
            tasks.cancel_scope.cancel()
        finally:
            await session.aclose()

    async with anyio.create_task_group() as tasks:
        for count, mine in enumerate(waits):
            directory = testbed.directory / f"contents-{number}-{count}"
            directory.mkdir()
            tasks.start_soon(client, directory, mine, tokens[count % len(tokens)])
    if failures:
        raise BenchFailed(str(failures[0]))
    usage.append(_Usage.of(server))
    return waits, usage


@dataclass(frozen=True)
class _Usage:
    """What a process uses now: resident memory in bytes, and file descriptors."""

    memory: int
    descriptors: int

    @classmethod
    def of(cls, pid: int) -> _Usage:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(pages * os.sysconf("SC_PAGE_SIZE"), len(list(Path(f"/proc/{pid}/fd").iterdir())))

    def __str__(self) -> str:
        return f"{self.memory / 2**20:.0f} MiB and {self.descriptors} descriptors"
