"""Memory does not grow with the file, even if several are transferred at once."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import cloned, web_of
from tests.remote.test_jobs import Jobs
from tests.remote.testbed import Testbed
from tests.remote.ways import opened
from tests.support.environment import Environment
from tests.support.repositories import make_cluster
from tests.support.slow import only_in_all

LIMIT = 100 * 1024**2
LARGE = 300 * 1024**2
# More than 32 bit numbers can say.
LARGER = 2 * 1024**3 + 5
# Transfers at once, the sizes of their contents in one run and the next, and what memory may differ by. Contents fill
# all buffers from some 16 MiB on.
AT_ONCE, ONCE, TWICE, MARGIN = 8, 32 * 1024**2, 64 * 1024**2, 24 * 1024**2


def peak(pid: int) -> int:
    """The most memory that a process has had so far, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) * 1024


def marks(size: int) -> dict[int, bytes]:
    """What is not zero in a file: at its beginning, where 31 bits end if it is so long, and at its end."""
    return {0: b"begin", min(2**31 - 3, size // 2): b"middle", size - 2: b"nd"}


def make_file(file: Path, size: int) -> None:
    """A file that takes no room, with marks."""
    with file.open("wb") as opened:
        opened.truncate(size)
        for position, mark in marks(size).items():
            opened.seek(position)
            opened.write(mark)


def marked(file: Path, size: int) -> dict[int, bytes]:
    """What a file has where the marks should be."""
    with file.open("rb") as opened:
        found = {}
        for position, mark in marks(size).items():
            opened.seek(position)
            found[position] = opened.read(len(mark))
        return found


@pytest.mark.slow
@pytest.mark.parametrize("size", [LARGE, *only_in_all(LARGER)])
def test_a_large_file_round_trips_in_little_memory(own_testbed: Testbed, tmp_path: Path, size: int) -> None:
    node = own_testbed.cluster.nodes[0]
    file = tmp_path / "file"
    make_file(file, size)
    key = f"WORM-s{size}-m1--large"
    driver = own_testbed.driver(node.uuid)
    driver.forked = False
    with driver as annex:
        annex.prepare()
        assert annex.ask(f"TRANSFER STORE {key} {file}", within=240) == f"TRANSFER-SUCCESS STORE {key}"
        assert peak(annex.process.pid) < LIMIT
        stored = node.object_path(key)
        assert stored is not None
        assert stored.stat().st_size == size
        assert marked(stored, size) == marks(size)
        ups = list(annex.progress)
        back = tmp_path / "back"
        assert annex.ask(f"TRANSFER RETRIEVE {key} {back}", within=240) == f"TRANSFER-SUCCESS RETRIEVE {key}"
        assert peak(annex.process.pid) < LIMIT
        assert back.stat().st_size == size
        assert marked(back, size) == marks(size)
        assert annex.ask(f"REMOVE {key}") == f"REMOVE-SUCCESS {key}"
    # Progress was told now and then, of the whole.
    downs = annex.progress[len(ups) :]
    for told in (ups, downs):
        assert told == sorted(told)
        assert told[-1] <= size
        assert 1 <= len(told) <= 1000


def there_and_back(jobs: Jobs, directory: Path, size: int) -> None:
    """Store contents of a size and fetch them again, all at once."""
    keys = [f"WORM-s{size}-m1--{number}" for number in range(AT_ONCE)]
    for key in keys:
        make_file(directory / key, size)
    for direction, suffix in (("STORE", ""), ("RETRIEVE", ".back")):
        for job, key in enumerate(keys, 1):
            jobs.say(job, f"TRANSFER {direction} {key} {directory / key}{suffix}")
        answers = dict(jobs.answer() for _ in keys)
        assert answers == {job: f"TRANSFER-SUCCESS {direction} {key}" for job, key in enumerate(keys, 1)}
    for key in keys:
        assert marked(directory / f"{key}.back", size) == marks(size)
        for file in (directory / key, directory / f"{key}.back"):
            file.unlink()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["git-annex-http", "our-https", *only_in_all("our-http", "git-annex-https")])
def test_eight_transfers_at_once_over_http_take_no_more_memory_if_they_are_larger(
    environment: Environment, name: str
) -> None:
    with opened(name, environment, forked=False) as (way, testbed):
        token = way.env.get("CLUSTER_REMOTE_TOKEN")
        if token is not None:
            testbed.keep_token(testbed.cluster.uuid, way.url, token)
        assert way.server is not None
        driver = testbed.driver(url=way.url)
        driver.forked = False
        with driver as annex:
            jobs = Jobs(annex)
            jobs.say(1, "PREPARE")
            assert jobs.answer() == (1, "PREPARE-SUCCESS")
            pids = [annex.process.pid, *(() if way.is_git_annex else (way.server.pid,))]
            peaks = []
            for size in (ONCE, TWICE):
                there_and_back(jobs, environment.directory, size)
                peaks.append([peak(pid) for pid in pids])
    for small, large in zip(*peaks, strict=True):
        assert large < small + MARGIN, (small, large)
        assert large < 2 * LIMIT


@pytest.mark.slow
def test_eight_native_clients_at_once_cost_the_gateway_no_more_memory_if_files_are_larger(
    environment: Environment,
) -> None:
    with web_of(make_cluster(environment, environment.directory), forked=False) as web:
        alice = cloned(web, Mode.READ_WRITE)
        peaks = []
        for size in (ONCE, TWICE):
            names = [f"{size} {number}" for number in range(AT_ONCE)]
            for name in names:
                make_file(alice.path / name, size)
            alice.annex("add", "--quiet", "--backend=WORM", *names)
            alice.annex("copy", "--quiet", "-J8", "--to", "origin-mycluster", *names, timeout=240)
            alice.annex("drop", "--quiet", "--force", *names)
            alice.annex("get", "--quiet", "-J8", "--from", "origin-mycluster", *names, timeout=240)
            assert all(marked(alice.path / name, size) == marks(size) for name in names)
            alice.annex("drop", "--quiet", "--force", *names)
            peaks.append(peak(web.process.pid))
    small, large = peaks
    assert large < small + MARGIN, (small, large)
    assert large < 2 * LIMIT
