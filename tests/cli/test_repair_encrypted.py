"""A new node of an encrypted cluster is filled from the others, with the bytes as they are."""

from __future__ import annotations

import os

import pytest

from tests.cli.command import cluster_remote, told
from tests.remote.testbed import initremote, objects
from tests.support.repositories import Cluster
from tests.support.slow import only_in_all


@pytest.mark.slow
@pytest.mark.parametrize(
    "parameters",
    [*only_in_all(([],)), ["chunk=1KiB"], *only_in_all((["mac=HMACSHA256"],))],
    ids=["whole", "chunks", "other mac"],
)
def test_encrypted_content_is_copied_to_a_node_that_lacks_it(cluster: Cluster, parameters: list[str]) -> None:
    gateway, nodes = cluster.gateway, cluster.nodes
    initremote(gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared", *parameters)
    contents = {name: os.urandom(size) for name, size in (("f", 2500), ("empty", 0), ("g", 1000))}
    keys = {name: gateway.add(name, content) for name, content in contents.items()}
    gateway.add("elsewhere", b"not in the vault")
    with nodes[1].unplugged():
        gateway.annex("copy", "--quiet", "--to", "vault", *keys)
    held = {key for key in objects(nodes[0]) if key.startswith("GPG")}
    assert held
    # With no node away, nor a file named: what the vault holds by the location log.
    planned = told(gateway, "repair", "vault", "--dry-run", code=1)
    assert {delivery["key"] for delivery in planned["deliveries"]} == held
    assert objects(nodes[1]) == {}
    assert told(gateway, "repair", "vault")["recorded"] == 0
    assert objects(nodes[1]).keys() == held
    # It is good for something where all others are gone.
    for node in (nodes[0], nodes[2]):
        node.path.rename(node.path.with_name(f"{node.path.name} (lost)"))
    gateway.annex("drop", "--quiet", "--force", *keys)
    gateway.annex("get", "--quiet", "--from", "vault", *keys)
    assert {name: gateway.object_bytes(key) for name, key in keys.items()} == contents
    assert told(gateway, "repair", "vault", code=1)["problems"][0]["kind"] == "node-unreachable"


@pytest.mark.slow
def test_a_lost_node_of_an_encrypted_cluster_is_replaced(cluster: Cluster) -> None:
    gateway, (lost, new, _) = cluster.gateway, cluster.nodes
    gateway.git("config", "--unset", "remote.node2.annex-cluster-node")
    gateway.annex("updatecluster")
    initremote(gateway, cluster.name, f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    gateway.add("f", b"content")
    gateway.annex("copy", "--quiet", "--to", cluster.name, "f")
    lost.path.rename(lost.path.with_name("lost"))
    cluster_remote(gateway, "node", "replace", cluster.name, "node1", "node2", "--yes")
    assert [key.partition("-")[0] for key in objects(new)] == ["GPGHMACSHA1"]
    assert told(gateway, "status", cluster.name)["healthy"]


def test_an_encrypted_cluster_behind_a_gateway_is_left_to_git_annex(cluster: Cluster) -> None:
    client = cluster.clone()
    url = f"url={cluster.gateway.path}"
    initremote(client, "vault", url, f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    assert "git annex fsck --fast --from vault" in cluster_remote(client, "repair", "vault", code=2).err


def test_check_names_the_nodes_that_lack_encrypted_content(cluster: Cluster) -> None:
    gateway, nodes = cluster.gateway, cluster.nodes
    initremote(gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared", "chunk=1KiB")
    gateway.add("f", os.urandom(2500))
    gateway.annex("copy", "--quiet", "--to", "vault", "f")
    held = {key for key in objects(nodes[0]) if key.startswith("GPG")}
    checked = told(gateway, "check", "vault", "--content")
    assert (checked["healthy"], checked["encrypted"], checked["keys"]) == (True, True, len(held))
    assert checked["unverifiable"] == len(held) * len(nodes)
    # One node has lost everything.
    for key in held:
        nodes[1].annex("drop", "--quiet", "--force", f"--key={key}")
    checked = told(gateway, "check", "vault", "--all", code=1)
    assert {finding["key"] for finding in checked["findings"]} == held
    assert {node["missing"] for node in checked["nodes"]} == {0, len(held)}
    assert [problem["kind"] for problem in checked["problems"]] == ["content-missing"]
    (remedy,) = checked["problems"][0]["commands"]
    cluster_remote(gateway, *remedy.split()[1:])
    assert told(gateway, "check", "vault")["healthy"]
    # All of them have: git-annex corrects the log, as the remedy says.
    for node in nodes:
        for key in held:
            node.annex("drop", "--quiet", "--force", f"--key={key}")
    (lost,) = [each for each in told(gateway, "check", "vault", code=1)["problems"] if each["kind"] == "lost"]
    gateway.annex(*lost["commands"][0].split()[2:], check=False)
    assert told(gateway, "check", "vault")["keys"] == 0


def test_the_log_is_not_corrected_for_nodes_of_an_encrypted_cluster(cluster: Cluster) -> None:
    initremote(cluster.gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    assert "git annex fsck" in cluster_remote(cluster.gateway, "check", "vault", "--fix", code=2).err
