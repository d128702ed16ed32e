"""cluster-remote node, rename and remove."""

from __future__ import annotations

import pytest

from tests.lifecycle.conftest import cluster_remote, failing, members, second_computer, state
from tests.support.environment import remove_tree
from tests.support.repositories import Cluster, Repository
from tests.support.slow import only_in_all


@pytest.fixture
def two(cluster: Cluster, work: Repository) -> Repository:
    """A cluster `disks` of node1 and node2, with one file on both."""
    cluster_remote(work, "setup", "disks", "--node", "node1", "--node", "node2")
    work.add("f", b"content")
    work.annex("copy", "--to", "disks", "f")
    work.git("commit", "--quiet", "-m", "f")
    return work


def test_an_added_node_can_be_filled(cluster: Cluster, two: Repository) -> None:
    assert "cluster-remote repair disks" in cluster_remote(two, "node", "add", "disks", "node3")
    cluster_remote(two, "repair", "disks")
    assert cluster.holders(two.key("f")) == [True, True, True]


def test_a_remote_not_yet_seen_by_git_annex_can_be_added(cluster: Cluster, two: Repository) -> None:
    # As the remedy for a node without a remote says.
    path = two.config("remote.node2.url")
    assert path is not None
    two.git("remote", "remove", "node2")
    two.git("remote", "add", "again", path)
    cluster_remote(two, "node", "add", "disks", "again")
    two.git("remote", "add", "new", cluster.nodes[2].path)
    two.git("remote", "remove", "node3")
    cluster_remote(two, "node", "replace", "disks", "again", "new")
    assert members(two, two.config("annex.cluster.disks")) == {cluster.nodes[0].uuid, cluster.nodes[2].uuid}


def test_a_removed_node_keeps_its_content(cluster: Cluster, two: Repository) -> None:
    text = cluster_remote(two, "node", "remove", "disks", "second disk (cellar)")
    assert "stays there" in text
    assert members(two, two.config("annex.cluster.disks")) == {cluster.nodes[0].uuid}
    assert members(two, cluster.uuid) == {node.uuid for node in cluster.nodes}
    assert cluster.holders(two.key("f")) == [True, True, False]
    assert cluster.nodes[1].uuid in two.locations(two.key("f"))


def test_a_node_can_be_emptied_before_it_is_removed(cluster: Cluster, two: Repository) -> None:
    only = two.add("g", b"only on the one that goes")
    two.annex("move", "--to", "node2", "g")
    cluster_remote(two, "node", "remove", "disks", "node2", "--drain")
    assert cluster.holders(only) == [True, False, False]
    assert cluster.nodes[1].uuid not in two.locations(only)


def test_a_node_that_cannot_be_emptied_is_not_removed(cluster: Cluster, two: Repository) -> None:
    two.annex("numcopies", "3")
    before = members(two, two.config("annex.cluster.disks"))
    cluster_remote(two, "node", "remove", "disks", "node2", "--drain", code=1)
    assert members(two, two.config("annex.cluster.disks")) == before
    assert cluster.holders(two.key("f")) == [True, True, False]


def test_the_last_node_cannot_be_removed(cluster: Cluster, two: Repository) -> None:
    cluster_remote(two, "node", "remove", "disks", "node2")
    assert "cluster-remote remove disks --cluster" in cluster_remote(two, "node", "remove", "disks", "node1", code=2)


@pytest.mark.slow
@pytest.mark.parametrize("dead", [True, *only_in_all(False)])
def test_a_lost_disk_can_be_replaced_by_another(cluster: Cluster, two: Repository, dead: bool) -> None:
    lost = cluster.nodes[1].uuid
    remove_tree(cluster.nodes[1].path)
    two.annex("drop", "f")
    cluster_remote(two, "node", "replace", "disks", "node2", "node3", *(["--dead"] if dead else []))
    assert members(two, two.config("annex.cluster.disks")) == {cluster.nodes[0].uuid, cluster.nodes[2].uuid}
    assert cluster.nodes[2].has_object(two.key("f"))
    trust = two.git("show", "git-annex:trust.log", check=False).stdout.decode()
    assert (f"{lost} X" in trust) is dead


@pytest.mark.slow
def test_dry_runs_change_nothing(two: Repository) -> None:
    before = state(two)
    for arguments in (
        ["node", "add", "disks", "node3"],
        ["node", "remove", "disks", "node2", "--drain"],
        ["node", "replace", "disks", "node2", "node3", "--dead"],
        ["rename", "disks", "photos"],
        ["remove", "disks", "--cluster"],
    ):
        assert "Nothing has been done" in cluster_remote(two, *arguments, "--dry-run")
    assert state(two) == before


def test_a_renamed_cluster_works_under_its_new_name(cluster: Cluster, two: Repository) -> None:
    uuid = two.config("annex.cluster.disks")
    cluster_remote(two, "rename", "disks", "Photos")
    assert two.config("annex.cluster.photos") == uuid
    assert two.config("annex.cluster.disks") is None
    assert two.config("remote.node1.annex-cluster-node") == "mycluster photos"
    key = two.add("g", b"more")
    two.annex("copy", "--to", "Photos", "g")
    assert cluster.holders(key) == [True, True, False]
    # The old name is free again.
    cluster_remote(two, "setup", "disks", "--node", "node3")


def test_a_remote_whose_name_looks_like_an_option_is_renamed_and_removed(two: Repository) -> None:
    """Such a name can only come through the git-annex branch, or from git-annex itself."""
    for name in ("-one", "--two"):
        same = f"--sameas={two.config('annex.cluster.disks')}"
        kind = ("type=external", "externaltype=cluster", "encryption=none")
        two.annex("initremote", same, "--private", "--", name, *kind)
    cluster_remote(two, "rename", "--", "-one", "even")
    cluster_remote(two, "remove", "--", "--two")
    assert sorted(two.git("remote").stdout.split()) == [b"disks", b"even", b"node1", b"node2", b"node3"]


@pytest.mark.slow
def test_a_remote_at_a_gateway_is_renamed_with_its_nodes(cluster: Cluster) -> None:
    client = cluster.clone()
    cluster_remote(client, "setup", "c", str(cluster.gateway.path))
    cluster_remote(client, "rename", "c", "d")
    key = client.add("f", b"content")
    client.annex("copy", "--to", "d", "f")
    client.annex("drop", "--numcopies=3", "f")
    assert cluster.holders(key) == [True, True, True]
    assert client.git("remote").stdout.split() == [b"d", b"d-node1", b"d-node2", b"d-node3", b"origin"]


@pytest.mark.slow
def test_a_failed_rename_keeps_the_old_name(two: Repository) -> None:
    before = state(two)
    failing(two.environment, "renameremote")
    cluster_remote(two, "rename", "disks", "photos", code=1)
    assert state(two) == before


@pytest.mark.slow
@pytest.mark.parametrize("again", ["--node=node3", *only_in_all("--node=node1")])
def test_taking_down_a_cluster_frees_its_name(cluster: Cluster, two: Repository, again: str) -> None:
    cluster_remote(two, "remove", "disks", "--cluster")
    assert two.config("annex.cluster.disks") is None
    assert two.config("remote.node1.annex-cluster-node") == "mycluster"
    assert b"disks" not in two.git("remote").stdout
    assert cluster.holders(two.key("f")) == [True, True, False]
    cluster_remote(two, "setup", "disks", again)
    assert two.config("remote.disks.annex-private") == "true"
    assert two.config("remote.disks.annex-verified") == "verified"


@pytest.mark.slow
def test_taking_down_the_remote_keeps_the_cluster(two: Repository) -> None:
    uuid = two.config("annex.cluster.disks")
    before = members(two, uuid)
    cluster_remote(two, "remove", "disks")
    assert members(two, uuid) == before
    cluster_remote(two, "setup", "disks")
    assert two.config("remote.disks.annex-uuid") == uuid


@pytest.mark.slow
def test_removing_a_gateways_remote_removes_its_node_remotes(cluster: Cluster) -> None:
    client = cluster.clone()
    cluster_remote(client, "setup", "c", str(cluster.gateway.path))
    assert "only the gateway can change" in cluster_remote(client, "node", "add", "c", "origin", code=2)
    cluster_remote(client, "remove", "c")
    assert client.git("remote").stdout.split() == [b"origin"]
    cluster_remote(client, "setup", "c", str(cluster.gateway.path))


def test_a_node_without_a_remote_is_removed_by_its_description(cluster: Cluster, work: Repository) -> None:
    desktop = second_computer(cluster, 1)
    cluster_remote(desktop, "setup", "mycluster", "--node", "node1")
    cluster_remote(desktop, "node", "remove", "mycluster", "NAS: shelf 3")
    assert members(desktop, cluster.uuid) == {node.uuid for node in cluster.nodes[:2]}
