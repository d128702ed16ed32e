"""Protections that a single function gives, each with the attack that it stops."""

from __future__ import annotations

import pytest

from cluster_remote.access.configuration import check_writing
from cluster_remote.access.identity import believed, node_named, not_recorded
from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.credentials import credentials_file, write_credentials
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.routing import upload_outcome
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Stored
from tests.cli.command import cluster_remote
from tests.remote.testbed import Testbed
from tests.support.environment import Environment, open_umask
from tests.support.peers import ScriptedPeer, opening
from tests.support.repositories import make_repository

SECRET = "sesame" * 8


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


def test_a_remote_s_name_means_that_remote_whatever_others_call_themselves() -> None:
    config = GitConfig.parse(f"remote.disk1.annex-uuid\n{NODE}\0".encode())
    logs = BranchLogs({"uuid.log": f"{STRANGER} disk1 timestamp=9s\n".encode(), **LOGS.files})
    assert node_named("disk1", config, logs) == NODE
    # A gateway's node of that name is meant where that gateway is asked.
    theirs = {**LOGS.files, "proxy.log": f"1s {STRANGER} {OTHER_NODE}:disk1\n".encode()}
    here = GitConfig.parse(f"remote.disk1.annex-uuid\n{STRANGER}\0".encode())
    assert node_named("disk1", here, BranchLogs(theirs), CLUSTER) == OTHER_NODE


def test_of_thousands_of_repositories_that_a_peer_names_few_are_shown() -> None:
    said = not_recorded("peer", frozenset(map(uuid, range(5000))))
    assert len(said) < 1000
    assert "and 4990 more" in said


def test_of_thousands_that_the_branch_names_alike_or_enables_few_are_shown() -> None:
    alike = BranchLogs({"uuid.log": b"".join(b"%s same timestamp=1s\n" % uuid(n).text.encode() for n in range(5000))})
    enabled = GitConfig.parse("".join(f"remote.r{n}.annex-verified\nautomatic\0" for n in range(5000)).encode())
    for refuse in (lambda: node_named("same", GitConfig.parse(b""), alike), lambda: check_writing(enabled)):
        with pytest.raises(BadSettings, match="and 4990 more") as refused:
            refuse()
        assert len(str(refused.value)) < 1000


def test_of_thousands_of_repositories_that_a_node_claims_few_are_shown() -> None:
    node = Node(NODE, "disk1", "", 100.0, lambda: None, "local")  # type: ignore[arg-type,return-value]
    claimed = Stored(True, frozenset(map(uuid, range(100, 2000))))
    outcome = upload_outcome([(node, claimed)], frozenset({NODE}))
    assert isinstance(outcome, Stored)
    assert outcome.uuids == {NODE}
    assert len(" ".join(outcome.reasons)) < 1000


def test_stored_credentials_are_for_their_owner_alone_whatever_the_umask(environment: Environment) -> None:
    made = make_repository(environment, environment.directory / "r", "r")
    with environment.applied(made.path):
        here = Repository.here()
        with open_umask():
            write_credentials(here, NODE, "token", "user", "secret")
        assert credentials_file(here, NODE, "token").stat().st_mode & 0o777 == 0o600


def test_a_server_that_claims_to_be_this_repository_becomes_no_remote(own_testbed: Testbed) -> None:
    """git annex move would remove the content here, because it has "arrived" here."""
    client = own_testbed.client
    with ScriptedPeer(opening(client.uuid, token=SECRET), unix=own_testbed.environment.directory / "liar") as peer:
        env = {"CLUSTER_REMOTE_TOKEN": SECRET}
        done = cluster_remote(client, "setup", "liar", f"unix:{peer.address}", "--yes", code=None, env=env)
    assert done.code
    assert "is this repository itself" in done.out + done.err
    assert client.config("remote.liar.annex-uuid") is None
