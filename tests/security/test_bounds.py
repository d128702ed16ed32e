"""Protections that a single function gives, each with the attack that it stops."""

from __future__ import annotations

import os

import pytest

from cluster_remote.access.identity import believed
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.catfile import BLOB_LIMIT, Blobs
from cluster_remote.annex.credentials import credentials_file, write_credentials
from cluster_remote.annex.errors import BadAnswer
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from tests.support.environment import Environment
from tests.support.repositories import make_repository


def uuid(number: int) -> UUID:
    return UUID(f"00000000-0000-0000-0000-{number:012}")


OWN, NODE, OTHER_NODE, STRANGER = map(uuid, range(1, 5))
CLUSTER = UUID("ac000000-0000-8000-8000-000000000000")
LOGS = BranchLogs({"cluster.log": f"1s {CLUSTER} {NODE} {OTHER_NODE} {OWN}\n".encode()})


def test_a_cluster_speaks_for_its_nodes_only_and_never_for_this_repository() -> None:
    named = frozenset({NODE, OWN, STRANGER, CLUSTER})
    assert believed(named, CLUSTER, LOGS, OWN) == (frozenset({NODE}), frozenset({OWN, STRANGER}))


def test_a_single_repository_speaks_for_itself_only() -> None:
    named = frozenset({NODE, OTHER_NODE, OWN})
    assert believed(named, NODE, LOGS, OWN) == (frozenset({NODE}), frozenset({OTHER_NODE, OWN}))


def test_a_log_of_any_size_is_not_kept_in_memory() -> None:
    assert list(Blobs().feed(b"0123 blob 3\nabc\n")) == [b"abc"]
    with pytest.raises(BadAnswer, match="at most"):
        list(Blobs().feed(b"0123 blob %d\n" % (BLOB_LIMIT + 1)))


def test_stored_credentials_are_for_their_owner_alone_whatever_the_umask(environment: Environment) -> None:
    made = make_repository(environment, environment.directory / "r", "r")
    with environment.applied(made.path):
        here = Repository.here()
        before = os.umask(0)
        try:
            write_credentials(here, NODE, "token", "user", "secret")
        finally:
            os.umask(before)
        assert credentials_file(here, NODE, "token").stat().st_mode & 0o777 == 0o600
