"""A large content comes from several slow nodes at once, and whatever is wrong with one of them, it comes right."""

from __future__ import annotations

import os

import pytest

from tests.remote.testbed import initremote, messages
from tests.support.environment import Environment
from tests.support.repositories import Cluster, make_cluster

SIZE = 16 * 1024 * 1024


def _stored(environment: Environment) -> tuple[Cluster, str, bytes]:
    """A content on three nodes from which it takes four seconds each, and no copy here."""
    cluster = make_cluster(environment, environment.directory)
    here = cluster.gateway
    initremote(here, "own", sameas=cluster.uuid)
    content = os.urandom(SIZE)
    key = here.add("film", content)
    here.annex("copy", "--quiet", "--to", "own", "film")
    here.annex("drop", "--quiet", "--force", "film")
    for number in (1, 2, 3):
        here.git("config", f"remote.node{number}.annex-bwlimit-download", "4MB")
    return cluster, key, content


def _asked(said: list[str]) -> list[int]:
    return [int(message.split()[2]) for message in said if message.startswith("> GET ")]


@pytest.mark.slow
def test_each_node_sends_a_part_of_the_missing_bytes_and_the_whole_verifies(environment: Environment) -> None:
    cluster, key, content = _stored(environment)
    cluster.gateway.leave_partial(key, content[:1_000_000])
    # The second time, too: the first one was verified, so nothing was wrong with it.
    for start in (1_000_000, 0):
        done = cluster.gateway.annex("get", "--from", "own", "film", "--debug")
        asked = _asked(messages(done))
        assert len(asked) >= 3
        assert min(asked) == start
        assert len(set(asked)) == len(asked)
        assert cluster.gateway.object_bytes(key) == content
        assert not [path for path in (cluster.gateway.path / ".git/annex/tmp").iterdir() if path.is_file()]
        cluster.gateway.annex("drop", "--quiet", "--force", "film")


def test_a_damaged_copy_on_one_node_does_not_block_the_good_ones(environment: Environment) -> None:
    cluster, key, content = _stored(environment)
    # So that whatever part it gives is damaged.
    cluster.nodes[1].damage_object(key, content[1:] + b"X")
    done = cluster.gateway.annex("get", "--from", "own", "film")
    assert cluster.gateway.object_bytes(key) == content
    assert b"checksum mismatch in the content fetched in parts" in done.stdout + done.stderr


@pytest.mark.slow
def test_a_node_lost_midway_is_replaced(environment: Environment) -> None:
    cluster, key, content = _stored(environment)
    real = environment.which("git-annex-shell")
    environment.program(
        "git-annex-shell",
        f'#!/bin/sh\ncase "$*" in *node2*) {real} "$@" | head -c 3000000 ;; *) exec {real} "$@" ;; esac\n',
    )
    cluster.gateway.annex("get", "--from", "own", "film")
    assert cluster.gateway.object_bytes(key) == content


def test_fsck_downloads_from_one_node_to_tell_whose_copy_is_damaged(environment: Environment) -> None:
    cluster, key, _ = _stored(environment)
    done = cluster.gateway.annex("fsck", "--from", "own", "film", "--debug")
    assert _asked(messages(done)) == [0]
    assert cluster.holders(key) == [True, True, True]
