"""More nodes than the limit of open files has room for: jobs wait for each other, or one line says what to do."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.remote.testbed import initremote, text
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository, make_cluster

NODES = 8


@pytest.fixture
def cluster(environment: Environment) -> Cluster:
    cluster = make_cluster(environment, environment.directory, nodes=NODES)
    initremote(cluster.gateway, "own", sameas=cluster.uuid)
    return cluster


def _limited(here: Repository, limit: int, command: str, check: bool = True) -> subprocess.CompletedProcess[bytes]:
    """Run a command that may have so many open files, and cannot raise this limit."""
    return here.environment.run("sh", "-c", f"ulimit -n {limit} && exec {command}", cwd=here.path, check=check)


def test_with_room_for_one_session_all_jobs_reach_all_nodes(cluster: Cluster) -> None:
    here = cluster.gateway
    keys = [here.add(f"file{number}", b"content %d" % number) for number in range(8)]
    _limited(here, 100, "git annex copy --quiet -J4 --to own")
    assert [cluster.holders(key) for key in keys] == [[True] * NODES] * len(keys)
    for command in ("check own --all -J9 --content", "repair own -J9"):
        _limited(here, 100, f"cluster-remote {command}")
    _limited(here, 100, "git annex drop --quiet --force -J4 --from own")
    assert [cluster.holders(key) for key in keys] == [[False] * NODES] * len(keys)


def test_without_room_for_a_session_one_line_names_the_limit(cluster: Cluster) -> None:
    here = cluster.gateway
    key = here.add("file", b"content")
    remedy = f"{NODES} nodes need 76 file descriptors, and the limit of this process is 60; raise it with ulimit -n"
    done = _limited(here, 60, "git annex copy --to own file", check=False)
    assert done.returncode == 1
    assert text(done).count("ulimit") == text(done).count(remedy) == 1
    for command in ("check own --all", "repair own"):
        done = _limited(here, 60, f"cluster-remote {command}", check=False)
        assert os.fsdecode(done.stderr) == f"cluster-remote: {remedy}\n"
    assert cluster.holders(key) == [False] * NODES
    # Reading takes one node at a time.
    here.annex("copy", "--quiet", "--to", "own", "file")
    here.annex("drop", "--quiet", "--force", "file")
    _limited(here, 60, "git annex get --quiet --from own file")
    assert here.object_bytes(key) == b"content"
