"""Shared clusters: enabled by name, by a mere clone, or by a second address; never without verification."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lifecycle.conftest import cluster_remote, members, second_computer
from tests.support.forked import run_forked
from tests.support.repositories import Cluster, Repository
from tests.support.slow import only_in_all


@pytest.fixture
def publisher(cluster: Cluster) -> Repository:
    """A clone that has put a file on the cluster, by the remote `data` that every clone gets."""
    publisher = cluster.clone("publisher")
    cluster_remote(publisher, "setup", "data", str(cluster.gateway.path), "--autoenable")
    publisher.add("f", b"content")
    publisher.git("commit", "--quiet", "-m", "f")
    publisher.annex("copy", "--to", "data", "f")
    return publisher


def published(publisher: Repository, name: str = "reader") -> Repository:
    """Return a clone from a plain git host."""
    host, path = publisher.path.parent / "host.git", publisher.path.parent / name
    publisher.git("init", "--quiet", "--bare", host)
    publisher.git("push", "--quiet", str(host), "main", "git-annex")
    publisher.environment.run("git", "clone", "--quiet", host, path)
    return Repository(path, publisher.environment)


def test_a_clone_and_setup_are_enough_to_get(cluster: Cluster, publisher: Repository) -> None:
    reader = published(publisher)
    text = cluster_remote(reader, "setup")
    assert str(cluster.gateway.path) in text
    reader.annex("get", "f")
    assert reader.config("remote.data.annex-verified") == "automatic"
    assert cluster_remote(reader, "setup", "--yes")
    assert reader.config("remote.data.annex-verified") == "verified"
    # Each node is a copy, and the cluster is none, by whatever UUID.
    reader.annex("drop", "--numcopies=3", "f")
    assert reader.annex("get", "f")
    assert reader.annex("drop", "--numcopies=5", "f", check=False).returncode != 0
    key = reader.add("g", b"more")
    reader.annex("copy", "--to", "data", "g")
    assert cluster.holders(key) == [True, True, True]
    assert reader.locations(key) == {reader.uuid, *(node.uuid for node in cluster.nodes)}
    assert "All is well" in cluster_remote(reader, "status", "data")
    assert "made with uuid=" not in cluster_remote(reader, "doctor")


@pytest.mark.slow
def test_a_gateway_unavailable_during_the_clone_does_no_harm(cluster: Cluster, publisher: Repository) -> None:
    reader = published(publisher)
    with cluster.gateway.unplugged():
        reader.annex("init")
    reader.annex("get", "f")


@pytest.mark.slow
def test_clones_without_the_program_count_the_same_copies(cluster: Cluster, publisher: Repository) -> None:
    reader = published(publisher)
    reader.annex("init", env={"PATH": f"{publisher.environment.annex}:/usr/bin:/bin"})
    counted = reader.annex("find", "--in", "here", "--or", "--copies=4", "f").stdout.split()
    assert counted == [b"f"]
    assert reader.annex("find", "--copies=5", "f").stdout == b""


@pytest.mark.slow
def test_a_clones_nodes_follow_changes_of_the_cluster(cluster: Cluster, publisher: Repository) -> None:
    publisher.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    work = cluster.gateway
    work.annex("merge")
    alias = publisher.config("remote.data.annex-uuid")
    cluster_remote(work, "node", "remove", "mycluster", "node3")
    assert members(work, alias) == {node.uuid for node in cluster.nodes[:2]}
    # As git-annex's own command would leave it.
    work.git("config", "remote.node3.annex-cluster-node", "mycluster")
    work.annex("updatecluster")
    publisher.git("fetch", "--quiet", "origin")
    assert "cluster-remote setup data" in cluster_remote(publisher, "doctor", code=1)
    cluster_remote(publisher, "setup", "data")
    assert members(publisher, alias) == {node.uuid for node in cluster.nodes}


def test_a_serverless_clone_joins_with_the_nodes_it_has(cluster: Cluster, work: Repository) -> None:
    cluster_remote(work, "setup", "data", "--cluster", "mycluster")
    cluster_remote(work, "setup", "data", "--autoenable", "--cluster", "mycluster")
    work.add("f", b"content")
    work.annex("copy", "--to", "data", "f")
    work.git("commit", "--quiet", "-m", "f")
    desktop = second_computer(cluster, 1)
    cluster_remote(desktop, "setup", "--yes")
    assert desktop.config("annex.cluster.mycluster") == cluster.uuid
    desktop.annex("get", "--from", "data", "f")


@pytest.mark.slow
def test_a_shared_remote_is_enabled_by_name_and_used_once_verified(cluster: Cluster) -> None:
    first = cluster.clone("first")
    cluster_remote(first, "setup", "data", str(cluster.gateway.path), "--share")
    reader = published(first)
    text = cluster_remote(reader, "setup", "data")
    assert f"url={cluster.gateway.path}" in text
    assert reader.config("remote.data.annex-verified") != "verified"
    cluster_remote(reader, "setup", "data", "--yes")
    key = reader.add("f", b"content")
    reader.annex("copy", "--to", "data", "f")
    assert cluster.holders(key) == [True, True, True]


@pytest.mark.slow
@pytest.mark.parametrize("how", [["data"], *only_in_all((["data", "--node", "node1"],))])
def test_an_unverified_address_is_not_adopted(
    cluster: Cluster, work: Repository, tmp_path: Path, how: list[str]
) -> None:
    cluster_remote(work, "setup", "data", "--cluster", "mycluster", "--share")
    desktop = second_computer(cluster, 1)
    # Somebody who can commit to the branch gives it a url.
    work.annex("enableremote", "data", "encryption=none", f"url={cluster.gateway.path}")
    desktop.git("fetch", "--quiet", "origin")
    desktop.annex("merge")
    done = run_forked(desktop.environment, "setup", *how, cwd=desktop.path, check=False)
    assert desktop.config("remote.data.annex-verified") != "verified", done


@pytest.mark.slow
def test_a_changed_address_of_a_verified_remote_needs_confirmation(cluster: Cluster) -> None:
    first, second = cluster.clone("first"), cluster.clone("second")
    gateway = str(cluster.gateway.path)
    cluster_remote(first, "setup", "data", gateway, "--share", "--no-nodes")
    first.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    second.git("fetch", "--quiet", "origin")
    cluster_remote(second, "setup", "data", "--yes", "--no-nodes")
    first.annex("enableremote", "data", "encryption=none", f"url=file://{gateway}")
    first.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    second.git("fetch", "--quiet", "origin")
    assert f"url=file://{gateway}" in cluster_remote(second, "setup", "data")
    pending = second.annex("verifyremote", "data", check=False).stdout
    assert b"--safe" in pending


@pytest.mark.parametrize("option", [["--depth", "1"], *only_in_all((["--single-branch"],))])
def test_setup_fetches_the_git_annex_branch_a_clone_lacks(cluster: Cluster, option: list[str]) -> None:
    path = cluster.gateway.path.parent / "shallow"
    cluster.gateway.environment.run("git", "clone", "--quiet", *option, f"file://{cluster.gateway.path}", path)
    clone = Repository(path, cluster.gateway.environment)
    clone.annex("init", "shallow")
    cluster_remote(clone, "setup", "c", str(cluster.gateway.path))
    assert clone.config("remote.c.annex-uuid") == cluster.uuid


@pytest.mark.parametrize("url", [None, *only_in_all("origin", "../gateway")])
def test_the_gateway_may_be_a_remote_a_relative_path_or_the_default(cluster: Cluster, url: str | None) -> None:
    client = cluster.clone()
    cluster_remote(client, "setup", "c", *([] if url is None else [url]), "--no-nodes")
    assert client.config("remote.c.annex-uuid") == cluster.uuid


@pytest.mark.slow
def test_a_second_address_gets_node_remotes_as_well(cluster: Cluster) -> None:
    client = cluster.clone()
    gateway = str(cluster.gateway.path)
    cluster_remote(client, "setup", "a", gateway)
    cluster_remote(client, "setup", "b", f"file://{gateway}")
    assert b"b-node1" in client.git("remote").stdout.split()


@pytest.mark.slow
def test_a_remote_named_like_an_option_is_not_passed_on(cluster: Cluster, tmp_path: Path) -> None:
    client = cluster.clone()
    client.git("config", f"remote.--upload-pack=touch {tmp_path}/pwned;.url", str(cluster.gateway.path))
    client.git("config", f"remote.--upload-pack=touch {tmp_path}/pwned;.annex-uuid", cluster.gateway.uuid)
    client.git("update-ref", "-d", "refs/heads/git-annex")
    run_forked(client.environment, "setup", "c", cluster.gateway.path, cwd=client.path, check=False)
    assert not (tmp_path / "pwned").exists()
