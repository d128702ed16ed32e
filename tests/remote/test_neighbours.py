"""What other clones of the repository see of a remote of ours: nothing, or a remote that they can enable."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.remote.testbed import Testbed, initremote, make_testbed, text, whereis
from tests.support.environment import Environment
from tests.support.repositories import Repository
from tests.support.ssh import SshServer


def share(client: Repository) -> None:
    """Bring what a client knows to everybody by the gateway."""
    client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")


@pytest.fixture(scope="module")
def pair(make_environment: Callable[[], Environment]) -> tuple[Testbed, Repository]:
    """A testbed whose client has used all its remotes and shared its branch, and another clone that has merged it."""
    testbed = make_testbed(make_environment(), node_remotes=True)
    testbed.client.add("f", b"for all to see")
    testbed.client.annex("copy", "--to", "mycl", "f")
    testbed.client.git("commit", "--quiet", "--message", "add f")
    testbed.client.git("push", "--quiet", "origin", "main:refs/heads/synced/main")
    share(testbed.client)
    testbed.cluster.gateway.annex("merge", "--quiet")
    return testbed, testbed.cluster.clone("other")


@pytest.mark.slow
def test_descriptions_of_nodes_and_cluster_are_unchanged(pair: tuple[Testbed, Repository]) -> None:
    testbed, other = pair
    descriptions = other.descriptions()
    assert [descriptions[node.uuid] for node in testbed.cluster.nodes] == [
        "first disk (attic)",
        "second disk (cellar)",
        "NAS: shelf 3",
    ]
    assert descriptions[testbed.cluster.uuid] == "cluster mycluster"
    known = {testbed.cluster.uuid, testbed.cluster.gateway.uuid, testbed.client.uuid, other.uuid, *testbed.nodes}
    assert set(descriptions) == known


def test_private_remotes_are_in_no_shared_log(pair: tuple[Testbed, Repository]) -> None:
    _, other = pair
    branch = other.git("ls-tree", "-r", "--name-only", "git-annex").stdout.decode().split()
    assert "remote.log" not in branch


def test_locations_are_shared_even_if_the_remote_is_private(pair: tuple[Testbed, Repository]) -> None:
    testbed, other = pair
    assert whereis(other, "f") == {testbed.client.uuid, testbed.cluster.uuid, *testbed.nodes}


def test_a_native_clients_own_remote_for_the_cluster_still_works(pair: tuple[Testbed, Repository]) -> None:
    """git-annex proxies only what it reaches over ssh or HTTP, so the clone has the gateway over ssh."""
    testbed, other = pair
    with SshServer(testbed.environment) as server:
        variables = server.variables
        other.git("remote", "add", "gateway", server.url(testbed.cluster.gateway.path))
        other.git("fetch", "--quiet", "gateway", env=variables)
        # Makes git-annex learn the gateway's UUID and what it proxies.
        other.annex("info", "--fast", "gateway", env=variables)
        other.annex("get", "--from", "gateway-mycluster", "f", env=variables)
        key = other.key("f")
        assert other.object_bytes(key) == b"for all to see"
        mine = other.add("mine", b"from a native client")
        other.annex("copy", "--to", "gateway-mycluster", "mine", env=variables)
        assert testbed.cluster.holders(mine) == [True] * 3
        other.annex("drop", "--from", "gateway-node2", "--force", "mine", env=variables)
        assert testbed.cluster.holders(mine) == [True, False, True]


@pytest.mark.slow
def test_a_shared_remote_can_be_enabled_elsewhere(own_testbed: Testbed) -> None:
    initremote(own_testbed.client, "ours", f"url={own_testbed.url}", sameas=own_testbed.cluster.uuid, private=False)
    share(own_testbed.client)
    own_testbed.cluster.gateway.annex("merge", "--quiet")
    other = own_testbed.cluster.clone("other")
    other.annex("enableremote", "ours", "encryption=none")
    # The configuration comes from somebody else, so git-annex wants to be told that it is safe.
    asked = text(other.annex("verifyremote", "ours", check=False))
    number = re.search(r"verifyremote ours --safe (\d+)", asked)
    assert number is not None
    other.annex("verifyremote", "ours", "--safe", number[1])
    key = other.add("f", b"from another clone")
    other.annex("copy", "--to", "ours", "f")
    assert own_testbed.cluster.holders(key) == [True] * 3
    assert other.locations(key) == {other.uuid, *own_testbed.nodes}
    other.annex("drop", "--from", "ours", "f")
    assert own_testbed.cluster.holders(key) == [False] * 3
    # It is the same remote there, and no description has changed.
    assert other.config("remote.ours.annex-uuid") == own_testbed.cluster.uuid
    assert other.descriptions()[own_testbed.cluster.uuid] == "cluster mycluster"


def test_content_uploaded_in_one_clone_is_downloaded_in_another(own_testbed: Testbed) -> None:
    """Two clients with a private remote each, and nothing between them but the gateway's branch."""
    other = own_testbed.cluster.clone("other")
    initremote(other, "mine", f"url={own_testbed.url}", sameas=own_testbed.cluster.uuid)
    own_testbed.client.add("f", b"handed over")
    own_testbed.client.annex("copy", "--to", "mycl", "f")
    own_testbed.client.git("commit", "--quiet", "--message", "add f")
    own_testbed.client.git("push", "--quiet", "origin", "main:refs/heads/synced/main")
    other.git("pull", "--quiet", "origin", "synced/main")
    # The gateway recorded it in its own branch too.
    other.git("fetch", "--quiet")
    other.annex("get", "f")
    assert other.object_bytes(other.key("f")) == b"handed over"


def test_git_annex_sync_content_works_with_the_remote(own_testbed: Testbed) -> None:
    key = own_testbed.client.add("f", b"synchronised")
    own_testbed.client.git("commit", "--quiet", "--message", "add f")
    said = text(own_testbed.client.annex("sync", "--content"))
    assert own_testbed.cluster.holders(key) == [True] * 3
    assert own_testbed.present(key) == own_testbed.nodes
    assert "put f (to mycl...)" in said


def test_a_remote_named_like_a_directory_works(own_testbed: Testbed) -> None:
    key = own_testbed.client.add("mycl/f", b"not confused")
    own_testbed.client.annex("copy", "--to", "mycl", "mycl/f")
    assert own_testbed.cluster.holders(key) == [True] * 3
