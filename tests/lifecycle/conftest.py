"""A repository with its nodes as remotes, and clones of it."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator

import pytest

from tests.support.environment import Environment, temporary_environment
from tests.support.forked import run_forked
from tests.support.repositories import Cluster, Repository, make_cluster


@pytest.fixture
def environment() -> Iterator[Environment]:
    with temporary_environment() as environment:
        yield environment


@pytest.fixture
def cluster(environment: Environment) -> Cluster:
    """Three nodes that are remotes of `cluster.gateway`; they already form a cluster, `mycluster`."""
    return make_cluster(environment, environment.directory / "c")


@pytest.fixture
def work(cluster: Cluster) -> Repository:
    """The repository that has node1, node2 and node3 as remotes."""
    return cluster.gateway


def second_computer(cluster: Cluster, *nodes: int, name: str = "desktop") -> Repository:
    """Return an up-to-date clone of the work repository with some of the nodes as remotes."""
    clone = cluster.clone(name)
    for number in nodes:
        clone.git("remote", "add", f"node{number}", cluster.nodes[number - 1].path)
        clone.git("fetch", "--quiet", f"node{number}")
    clone.annex("info", "--fast")
    return clone


def cluster_remote(where: Repository, *arguments: str, code: int = 0, env: dict[str, str] | None = None) -> str:
    """Run the command and return everything it wrote; raise AssertionError if its exit code is not `code`."""
    done = run_forked(where.environment, *arguments, cwd=where.path, check=False, timeout=120, env=env)
    text = os.fsdecode(done.stdout + done.stderr)
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert "git-annex: git [" not in text
    return text


def members(where: Repository, uuid: str | None) -> set[str]:
    """Return the nodes of a cluster by cluster.log."""
    assert uuid
    return _members(where.log("cluster.log")).get(uuid, set())


def _members(log: str) -> dict[str, set[str]]:
    """Parse cluster.log: the nodes of each cluster, by the newest line."""
    lines = sorted((line.split(" ") for line in log.splitlines()), key=lambda words: float(words[0].rstrip("s")))
    return {words[1]: set(filter(None, words[2:])) for words in lines}


def failing(environment: Environment, command: str, what: str = "echo out of order >&2; exit 1") -> None:
    """Make one git-annex command fail, or do something else, from now on."""
    real = shlex.quote(str(environment.which("git-annex")))
    environment.program("git-annex", f'#!/bin/sh\nif [ "$1" = {command} ]; then {what}; fi\nexec {real} "$@"\n')


def state(where: Repository) -> tuple[bytes, dict[str, set[str]]]:
    """Return the configuration of a repository and the nodes of every cluster."""
    nodes = _members(where.log("cluster.log"))
    return where.git("config", "--list", "--local").stdout, {each: found for each, found in nodes.items() if found}
