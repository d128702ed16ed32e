"""What other clones of the repository see of a remote of ours: nothing, or a remote that they can enable."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.remote.sites import Site, initremote, make_site, text, whereis
from tests.support.environment import Environment
from tests.support.repositories import Repository
from tests.support.ssh import SshServer


def share(client: Repository) -> None:
    """Bring what a client knows to everybody by the gateway."""
    client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")


@pytest.fixture(scope="module")
def pair(make_environment: Callable[[], Environment]) -> tuple[Site, Repository]:
    """A site whose client has used all its remotes and shared its branch, and another clone that has merged it."""
    site = make_site(make_environment(), node_remotes=True)
    site.client.add("f", b"for all to see")
    site.client.annex("copy", "--to", "mycl", "f")
    site.client.git("commit", "--quiet", "--message", "add f")
    site.client.git("push", "--quiet", "origin", "main:refs/heads/synced/main")
    share(site.client)
    site.cluster.gateway.annex("merge", "--quiet")
    return site, site.cluster.clone("other")


@pytest.mark.slow
def test_descriptions_of_nodes_and_cluster_are_as_before(pair: tuple[Site, Repository]) -> None:
    site, other = pair
    descriptions = other.descriptions()
    assert [descriptions[node.uuid] for node in site.cluster.nodes] == [
        "first disk (attic)",
        "second disk (cellar)",
        "NAS: shelf 3",
    ]
    assert descriptions[site.cluster.uuid] == "cluster mycluster"
    known = {site.cluster.uuid, site.cluster.gateway.uuid, site.client.uuid, other.uuid, *site.nodes}
    assert set(descriptions) == known


def test_private_remotes_are_in_no_log_that_is_shared(pair: tuple[Site, Repository]) -> None:
    _, other = pair
    branch = other.git("ls-tree", "-r", "--name-only", "git-annex").stdout.decode().split()
    assert "remote.log" not in branch


def test_locations_are_shared_though_the_remote_is_private(pair: tuple[Site, Repository]) -> None:
    site, other = pair
    assert whereis(other, "f") == {site.client.uuid, site.cluster.uuid, *site.nodes}


def test_a_native_clients_own_remote_for_the_cluster_still_works(pair: tuple[Site, Repository]) -> None:
    """git-annex proxies only what it reaches over ssh or HTTP, so the clone has the gateway over ssh."""
    site, other = pair
    with SshServer(site.environment) as server:
        variables = server.variables
        other.git("remote", "add", "gateway", server.url(site.cluster.gateway.path))
        other.git("fetch", "--quiet", "gateway", env=variables)
        # Makes git-annex learn the gateway's UUID and what it proxies.
        other.annex("info", "--fast", "gateway", env=variables)
        other.annex("get", "--from", "gateway-mycluster", "f", env=variables)
        key = other.key("f")
        assert other.object_bytes(key) == b"for all to see"
        mine = other.add("mine", b"from a native client")
        other.annex("copy", "--to", "gateway-mycluster", "mine", env=variables)
        assert site.cluster.holders(mine) == [True] * 3
        other.annex("drop", "--from", "gateway-node2", "--force", "mine", env=variables)
        assert site.cluster.holders(mine) == [True, False, True]


@pytest.mark.slow
def test_a_shared_remote_can_be_enabled_elsewhere(own_site: Site) -> None:
    initremote(own_site.client, "ours", f"url={own_site.url}", sameas=own_site.cluster.uuid, private=False)
    share(own_site.client)
    own_site.cluster.gateway.annex("merge", "--quiet")
    other = own_site.cluster.clone("other")
    other.annex("enableremote", "ours", "encryption=none")
    # The configuration comes from somebody else, so git-annex wants to be told that it is safe.
    asked = text(other.annex("verifyremote", "ours", check=False))
    number = re.search(r"verifyremote ours --safe (\d+)", asked)
    assert number is not None
    other.annex("verifyremote", "ours", "--safe", number[1])
    key = other.add("f", b"from another clone")
    other.annex("copy", "--to", "ours", "f")
    assert own_site.cluster.holders(key) == [True] * 3
    assert other.locations(key) == {other.uuid, *own_site.nodes}
    other.annex("drop", "--from", "ours", "f")
    assert own_site.cluster.holders(key) == [False] * 3
    # It is the same remote there, and no description has changed.
    assert other.config("remote.ours.annex-uuid") == own_site.cluster.uuid
    assert other.descriptions()[own_site.cluster.uuid] == "cluster mycluster"


def test_what_is_uploaded_here_is_downloaded_there(own_site: Site) -> None:
    """Two clients with a private remote each, and nothing between them but the gateway's branch."""
    other = own_site.cluster.clone("other")
    initremote(other, "mine", f"url={own_site.url}", sameas=own_site.cluster.uuid)
    own_site.client.add("f", b"handed over")
    own_site.client.annex("copy", "--to", "mycl", "f")
    own_site.client.git("commit", "--quiet", "--message", "add f")
    own_site.client.git("push", "--quiet", "origin", "main:refs/heads/synced/main")
    other.git("pull", "--quiet", "origin", "synced/main")
    # The gateway recorded it in its own branch too.
    other.git("fetch", "--quiet")
    other.annex("get", "f")
    assert other.object_bytes(other.key("f")) == b"handed over"


def test_git_annex_sync_content_works_with_the_remote(own_site: Site) -> None:
    key = own_site.client.add("f", b"synchronised")
    own_site.client.git("commit", "--quiet", "--message", "add f")
    said = text(own_site.client.annex("sync", "--content"))
    assert own_site.cluster.holders(key) == [True] * 3
    assert own_site.present(key) == own_site.nodes
    assert "put f (to mycl...)" in said


def test_a_remote_of_the_same_name_as_a_directory_is_no_trouble(own_site: Site) -> None:
    key = own_site.client.add("mycl/f", b"not confused")
    own_site.client.annex("copy", "--to", "mycl", "mycl/f")
    assert own_site.cluster.holders(key) == [True] * 3
