"""Logs of any size that somebody pushes: a line of any length costs that line, and too many lines an error."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster_remote.annex import logformat
from cluster_remote.annex.catfile import BLOB_LIMIT, LINE_LIMIT, Blobs, TooLarge
from cluster_remote.annex.clusterlog import MOST_NODES, ClusterLog
from cluster_remote.diagnosis.asking import MOST_AT_ONCE
from cluster_remote.p2p.key import UUID, Key
from tests.cli.command import cluster_remote
from tests.remote.testbed import Testbed
from tests.security.stranger import commit
from tests.support.slow import only_in_all

REPAIR = ("repair", "mycl", "f", "--dry-run")
ENDLESS = "x" * (20 * 2**20)
LINES = ["1s 1 00000000-0000-0000-0000-000000000000"] * (BLOB_LIMIT // 40)


def fed(content: bytes, chunk: int) -> Iterator[bytes | None]:
    stream = b"0123 blob %d\n%b\n4567 blob 3\nabc\n89ab missing\n" % (len(content), content)
    blobs = Blobs()
    for start in range(0, len(stream), chunk):
        yield from blobs.feed(stream[start : start + chunk])


@pytest.mark.parametrize("chunk", [65536, 65537, 2**30])
def test_an_overlong_line_costs_that_line(chunk: int) -> None:
    log = b"\n".join([b"one", ENDLESS.encode(), b"y" * LINE_LIMIT, b"z" * (LINE_LIMIT + 1), b"", b"last"])
    assert list(fed(log, chunk)) == [b"one\n\0\n" + b"y" * LINE_LIMIT + b"\n\0\nlast\n", b"abc", None]


def test_a_log_of_too_many_lines_is_refused() -> None:
    log = "\n".join(LINES).encode()
    assert list(fed(log[: BLOB_LIMIT - 1], 65536))[1:] == [b"abc", None]
    with pytest.raises(TooLarge):
        list(fed(log, 65536))


def _commands(key: str, file: str) -> list[tuple[str, ...]]:
    return [
        ("status", "mycl"),
        ("doctor",),
        ("check", "mycl", "--all"),
        ("check", "mycl", file),
        ("repair", "mycl", file),
        ("present", "mycl", key),
        ("put", "mycl", file),
        ("drop", "mycl", key, "--force"),
    ]


def test_every_command_does_its_work_beside_overlong_lines(own_testbed: Testbed) -> None:
    client = own_testbed.client
    key = client.add("f", b"f")
    for log in ("uuid.log", "remote.log", "cluster.log", "proxy.log", "trust.log", "group.log"):
        commit(client, log, ENDLESS)
    commit(client, logformat.branch_path(Key(key)).decode(), ENDLESS)
    for command in _commands(key, "f"):
        # Of a doctor only that it ends: it finds other mistakes.
        cluster_remote(client, *command, code=None if command[0] in ("doctor", "status") else 0)
        if command[0] == "put":
            assert own_testbed.cluster.holders(key) == [True] * 3
    client.annex("copy", "--to", "mycl", "f")
    assert own_testbed.cluster.holders(key) == [True] * 3
    client.annex("drop", "--force", "f")
    client.annex("get", "f")


@pytest.mark.parametrize("log", ["remote.log", *only_in_all("uuid.log", "cluster.log", "of the key")])
def test_a_log_of_too_many_lines_is_named_by_every_command_that_reads_it(own_testbed: Testbed, log: str) -> None:
    client = own_testbed.client
    key = client.add("f", b"f")
    path = logformat.branch_path(Key(key)).decode() if log == "of the key" else log
    commit(client, path, *LINES)
    name = Path(path).name.removesuffix(".log")
    for command in _commands(key, "f"):
        done = cluster_remote(client, *command, code=None)
        said = done.out + done.err
        if log != "of the key" or command[0] in ("check", "repair"):
            assert done.code, command
            assert name in said, (command, said[-1000:])
            assert f"more than {BLOB_LIMIT >> 20} MiB" in said, (command, said[-1000:])
        elif command[0] in ("put", "drop"):
            # At a gateway, they need no location log here.
            assert done.code == 0, (command, said[-1000:])


def test_a_directory_or_a_commit_in_the_place_of_a_log_costs_that_log(own_testbed: Testbed) -> None:
    client = own_testbed.client
    key = client.add("f", b"f")
    for log in ("trust.log", "group.log", "preferred-content.log", logformat.branch_path(Key(key)).decode()):
        commit(client, f"{log}/x", "anything")
    client.annex("copy", "--to", "mycl", "f")
    assert own_testbed.cluster.holders(key) == [True] * 3
    for command in _commands(key, "f"):
        cluster_remote(client, *command, code=None if command[0] in ("doctor", "status", "check") else 0)


def test_what_is_no_blob_is_read_as_git_annex_reads_it() -> None:
    tree = b"40000 a\0" + b"\n" * 20
    stream = b"1 tree %d\n%b\nx:y missing\n2 submodule\n3 commit 4\na\nb\n\n4 blob 1\nx\n" % (len(tree), tree)
    for chunk in (1, 7, 1000):
        blobs = Blobs()
        fed = [stream[start : start + chunk] for start in range(0, len(stream), chunk)]
        assert [blob for part in fed for blob in blobs.feed(part)] == [tree, None, None, b"a\nb\n", b"x"]


def test_any_number_of_names_on_the_branch_keeps_no_log_from_being_read(own_testbed: Testbed) -> None:
    client = own_testbed.client
    keys = {name: client.add(name, name.encode()) for name in ("f", "g")}
    client.annex("copy", "--to", "mycl", "f")
    blob = client.git("hash-object", "-w", "--stdin", input=b"x").stdout.decode().strip()
    names = "".join(f"100644 blob {blob}\tzz{number:0250}\n" for number in range(BLOB_LIMIT // 270))
    tree = client.git("mktree", input=client.git("ls-tree", "git-annex").stdout + names.encode()).stdout.decode()
    made = client.git("commit-tree", "-p", "git-annex", "-m", "stranger", tree.strip()).stdout.decode().strip()
    client.git("update-ref", "refs/heads/git-annex", made)
    cluster_remote(client, "check", "mycl", "f")
    client.annex("copy", "--to", "mycl", "g")
    assert own_testbed.cluster.holders(keys["g"]) == [True] * 3
    cluster_remote(client, "check", "mycl", "f", "g")


def test_a_cluster_of_too_many_nodes_costs_that_line() -> None:
    cluster, *nodes = (f"ac{number:06d}-1111-8111-8111-111111111111" for number in range(MOST_NODES + 2))
    sane = f"1s {cluster} {nodes[0]}\n"
    for count, expected in ((MOST_NODES, MOST_NODES), (MOST_NODES + 1, 1)):
        log = ClusterLog.parse((sane + f"2s {cluster} {' '.join(nodes[:count])}\n").encode())
        assert len(log.nodes(UUID(cluster))) == expected


@pytest.mark.parametrize(
    "command",
    [("status", "mycl"), *(pytest.param(each, marks=pytest.mark.slow) for each in (("check", "mycl", "f"), REPAIR))],
)
def test_few_nodes_are_contacted_at_once_however_many_the_log_lists(
    own_testbed: Testbed, command: tuple[str, ...]
) -> None:
    """A process may be started for each."""
    client, running = own_testbed.client, own_testbed.environment.directory / "running"
    client.add("f", b"f")
    running.mkdir()
    many = " ".join(f"{number:08d}-1111-4111-8111-111111111111" for number in range(3 * MOST_AT_ONCE))
    commit(client, "cluster.log", f"9999999999s {own_testbed.cluster.uuid} {many}")
    counts = own_testbed.environment.directory / "counts"
    own_testbed.environment.program(
        "git-annex-shell",
        f"#!/bin/sh\ntouch '{running}'/$$\nls '{running}' | wc -l >>'{counts}'\nsleep 0.3\nrm '{running}'/$$\nexit 1\n",
    )
    cluster_remote(client, *command, code=None)
    found = [int(count) for count in counts.read_text().split()]
    assert len(found) >= 3 * MOST_AT_ONCE
    # And the gateway itself.
    assert max(found) <= MOST_AT_ONCE + 1
