"""An unavailable node is reported once per run, by its description; a remote without available nodes is skipped."""

from __future__ import annotations

import os

import pytest

from tests.remote.testbed import initremote, text
from tests.support.repositories import Cluster, Repository


def _unplug(node: Repository) -> None:
    node.path.rename(node.path.with_name(f"{node.path.name} (unplugged)"))


def test_an_unplugged_disk_is_reported_once_per_run_without_naming_a_key(cluster: Cluster) -> None:
    gateway = cluster.gateway
    initremote(gateway, "own", sameas=cluster.uuid)
    keys = [gateway.add(f"f{number}", os.urandom(1000)) for number in range(4)]
    _unplug(cluster.nodes[1])
    said = text(gateway.annex("copy", "--to", "own", "."))
    line = f"second disk (cellar) [node2] is not there ({cluster.nodes[1].path}): left out"
    assert said.count("second disk") == said.count(line) == 1
    assert not any(key in said for key in keys)


def test_a_disk_with_another_repository_in_its_place_is_reported(cluster: Cluster) -> None:
    gateway = cluster.gateway
    initremote(gateway, "own", sameas=cluster.uuid)
    gateway.add("f", os.urandom(1000))
    _unplug(cluster.nodes[1])
    cluster.nodes[2].environment.run("git", "clone", "--quiet", gateway.path, cluster.nodes[1].path)
    cluster.nodes[1].annex("init", "--quiet", "new disk")
    said = text(gateway.annex("copy", "--to", "own", "f"))
    assert "second disk (cellar)" in said
    assert "left out" in said


@pytest.mark.slow
def test_sync_skips_a_cluster_whose_nodes_are_all_unavailable(cluster: Cluster) -> None:
    gateway = cluster.gateway
    client = cluster.clone()
    client.git("remote", "remove", "origin")
    initremote(client, "mycl", f"url={gateway.path}", sameas=cluster.uuid)
    initremote(gateway, "own", sameas=cluster.uuid)
    client.add("f", os.urandom(100))
    assert "available: true" in text(gateway.annex("info", "own"))
    for node in cluster.nodes:
        _unplug(node)
        # As where a file system was mounted.
        node.path.mkdir()
    assert "available: false" in text(gateway.annex("info", "own"))
    _unplug(gateway)
    assert "available: false" in text(client.annex("info", "mycl"))
    assert "to mycl" not in text(client.annex("sync", "--content"))


def test_an_encrypted_upload_succeeds_with_a_node_unavailable(cluster: Cluster) -> None:
    gateway = cluster.gateway
    initremote(gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    gateway.add("f", os.urandom(1000))
    _unplug(cluster.nodes[1])
    gateway.annex("copy", "--quiet", "--to", "vault", "f")
    gateway.annex("drop", "--quiet", "--force", "f")
    gateway.annex("get", "--quiet", "--from", "vault", "f")
