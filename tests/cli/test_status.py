"""status: who answers, what each node holds, what is wrong and what mends it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import pytest

from tests.cli.ailing import carry_out, empty, on_a_terminal, store, unverified
from tests.cli.command import cluster_remote, told
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.peers import ScriptedPeer, Stall
from tests.support.repositories import DESCRIPTIONS, GATEWAY_DESCRIPTION, Cluster, make_repository
from tests.support.shells import limit_version, scripted_shell
from tests.support.sockets import serve_p2p


@pytest.fixture(scope="module")
def stocked(make_environment: Callable[[], Environment]) -> Testbed:
    """A cluster with three contents on every node, that the tests of this file leave as it is."""
    testbed = make_testbed(make_environment(), node_remotes=True)
    store(testbed, ["one", "two", "three"])
    return testbed


def nodes_of(said: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The nodes of the only cluster in an outcome, by name."""
    (cluster,) = said["clusters"]
    return {node["name"]: node for node in cluster["nodes"]}


def problems_of(said: dict[str, Any]) -> list[tuple[str, str | None]]:
    (cluster,) = said["clusters"]
    return [(problem["kind"], problem["node"]) for problem in cluster["problems"]]


@pytest.mark.slow
def test_a_healthy_cluster_is_reported_as_healthy_with_every_node(stocked: Testbed) -> None:
    said = told(stocked.client, "status", "mycl")
    assert said["well"]
    (cluster,) = said["clusters"]
    assert (cluster["name"], cluster["uuid"], cluster["tracking"]) == ("mycl", stocked.cluster.uuid, "nodes")
    size = sum(len(f"the content of {name}\n") for name in ("one", "two", "three"))
    assert (cluster["keys"], cluster["size"], cluster["problems"]) == (3, size, [])
    gateway = cluster["gateway"]
    assert gateway["address"] == stocked.url
    assert gateway["description"] == GATEWAY_DESCRIPTION
    assert gateway["contact"]["uuid"] == stocked.cluster.gateway.uuid
    nodes = nodes_of(said)
    assert set(nodes) == {"node1", "node2", "node3"}
    for number, place in enumerate(stocked.cluster.nodes, 1):
        node = nodes[f"node{number}"]
        assert (node["uuid"], node["description"]) == (place.uuid, DESCRIPTIONS[number - 1])
        assert node["contact"]["reachable"]
        assert node["contact"]["version"] == 4
        assert 0 < node["contact"]["latency"] < node["contact"]["connecting"]
        assert (node["keys"], node["size"], node["unsized"], node["lacking"]) == (3, size, 0, 0)
        assert node["sample"] == {"asked": 3, "missing": 0, "unlogged": 0}
        assert (node["trust"], node["cost"], node["path"]) == ("semitrusted", 110, str(place.path))
        assert 0 < node["free"] <= shutil.disk_usage(place.path).total


def test_the_text_output_names_the_way_the_nodes_and_the_verdict(stocked: Testbed) -> None:
    shown = cluster_remote(stocked.client, "status", "mycl").out
    for words in (*DESCRIPTIONS[:3], stocked.url, GATEWAY_DESCRIPTION, "reachable", "3 contents", "All is well."):
        assert words in shown


def test_without_a_name_all_clusters_are_shown_but_not_node_remotes(stocked: Testbed) -> None:
    said = told(stocked.client, "status")
    assert [cluster["name"] for cluster in said["clusters"]] == ["mycl"]


def test_a_node_remote_is_shown_when_named(stocked: Testbed) -> None:
    said = told(stocked.client, "status", "n2")
    (node,) = nodes_of(said).values()
    assert (node["uuid"], node["keys"], node["contact"]["reachable"]) == (stocked.cluster.nodes[1].uuid, 3, True)


def test_status_works_from_a_subdirectory(stocked: Testbed) -> None:
    below = stocked.client.path / "some" / "where"
    below.mkdir(parents=True)
    assert told(stocked.client, "status", cwd=below)["clusters"][0]["keys"] == 3


def test_at_an_address_the_locally_known_clusters_are_shown(stocked: Testbed) -> None:
    said = told(stocked.client, "status", stocked.url)
    assert said["clusters"][0]["uuid"] == stocked.cluster.uuid
    assert {node["keys"] for node in nodes_of(said).values()} == {3}


def test_at_an_address_outside_a_repository_the_server_is_shown(stocked: Testbed) -> None:
    said = told(stocked.environment, "status", stocked.url)
    (cluster,) = said["clusters"]
    assert (cluster["uuid"], cluster["keys"]) == (stocked.cluster.gateway.uuid, None)
    assert said["well"]


def test_at_a_socket_the_token_is_used_and_not_shown(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "served", "served")
    with serve_p2p(repository) as (path, token):
        done = cluster_remote(environment, "status", f"unix:{path}", env={"CLUSTER_REMOTE_TOKEN": token})
        assert repository.uuid in done.out
        assert token not in done.out + done.err


def test_trust_groups_and_preferred_content_are_shown_and_a_node_with_preferred_content_never_lags(
    own_testbed: Testbed,
) -> None:
    client, (first, second, third) = own_testbed.client, own_testbed.cluster.nodes
    keys = store(own_testbed, ["one"])
    client.annex("untrust", first.uuid)
    client.annex("group", second.uuid, "archive")
    client.annex("wanted", second.uuid, "include=*.jpg")
    client.annex("required", third.uuid, "include=*.txt")
    for node in (second, third):
        node.annex("drop", "--force", "--key", keys["one"])
        client.annex("setpresentkey", keys["one"], node.uuid, "0")
    said = told(client, "status", "mycl")
    nodes = nodes_of(said)
    assert nodes["node1"]["trust"] == "untrusted"
    assert (nodes["node2"]["groups"], nodes["node2"]["preferred"]) == (["archive"], "include=*.jpg")
    assert (nodes["node3"]["required"], nodes["node3"]["lacking"]) == ("include=*.txt", 1)
    assert problems_of(said) == []
    shown = cluster_remote(client, "status", "mycl").out
    assert "untrusted" in shown
    assert "wants include=*.jpg" in shown


def test_an_unavailable_node_is_named_with_the_reason_and_the_others_are_shown(stocked: Testbed) -> None:
    second = stocked.cluster.nodes[1]
    with second.unplugged():
        said = told(stocked.client, "status", "mycl", code=1)
        shown = cluster_remote(stocked.client, "status", "mycl", code=1).out
    assert problems_of(said) == [("node-unreachable", second.uuid)]
    nodes = nodes_of(said)
    assert [nodes[name]["contact"]["reachable"] for name in ("node1", "node2", "node3")] == [True, False, True]
    assert str(second.path) in nodes["node2"]["contact"]["error"]
    assert nodes["node2"]["keys"] == 3
    assert f"{DESCRIPTIONS[1]} cannot be reached" in shown
    assert "cluster-remote repair mycl" in shown


def test_a_dead_node_is_neither_asked_nor_a_problem(own_testbed: Testbed) -> None:
    second = own_testbed.cluster.nodes[1]
    own_testbed.client.annex("dead", second.uuid)
    with second.unplugged():
        said = told(own_testbed.client, "status", "mycl")
    node = nodes_of(said)["node2"]
    assert (node["trust"], node["contact"], node["sample"]) == ("dead", None, None)


@pytest.mark.slow
def test_an_emptied_node_is_detected_by_sampling(own_testbed: Testbed) -> None:
    store(own_testbed, ["one", "two"])
    third = own_testbed.cluster.nodes[2]
    empty(third)
    said = told(own_testbed.client, "status", "mycl", code=1)
    assert problems_of(said) == [("content-missing", third.uuid)]
    assert nodes_of(said)["node3"]["sample"] == {"asked": 2, "missing": 2, "unlogged": 0}
    without = told(own_testbed.client, "status", "mycl", "--sample", "0")
    assert nodes_of(without)["node3"]["sample"] is None
    few = told(own_testbed.client, "status", "mycl", "--sample", "1", code=1)
    assert nodes_of(few)["node3"]["sample"] == {"asked": 1, "missing": 1, "unlogged": 0}


def test_unrecorded_content_is_detected_by_sampling(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    first = own_testbed.cluster.nodes[0]
    own_testbed.client.annex("setpresentkey", keys["one"], first.uuid, "0")
    said = told(own_testbed.client, "status", "mycl", code=1)
    assert problems_of(said) == [("content-unlogged", first.uuid)]


def test_a_node_lagging_according_to_the_log_is_named(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one", "two"])
    first = own_testbed.cluster.nodes[0]
    first.annex("drop", "--force", "--key", keys["one"])
    own_testbed.client.annex("setpresentkey", keys["one"], first.uuid, "0")
    said = told(own_testbed.client, "status", "mycl", code=1)
    assert problems_of(said) == [("lagging", first.uuid)]
    assert (nodes_of(said)["node1"]["lacking"], nodes_of(said)["node1"]["keys"]) == (1, 1)


def test_an_unverified_remote_is_named_with_the_command_to_verify_it(own_testbed: Testbed) -> None:
    other = unverified(own_testbed, "shared")
    said = told(other, "status", "shared", code=1)
    assert problems_of(said) == [("not-verified", None)]
    carry_out(other, said["clusters"][0]["problems"][0]["commands"][1:])
    assert told(other, "status", "shared")["well"]


def test_a_node_with_an_old_protocol_version_is_named(own_testbed: Testbed) -> None:
    limit_version(own_testbed.environment, 1)
    said = told(own_testbed.client, "status", "mycl", code=1)
    assert {kind for kind, _ in problems_of(said)} == {"old-protocol"}


def test_status_with_no_node_answering_exits_as_unreachable(own_testbed: Testbed) -> None:
    with own_testbed.cluster.gateway.unplugged():
        said = told(own_testbed.client, "status", "mycl", code=3)
    assert problems_of(said) == [("gateway-unreachable", None)]
    assert said["clusters"][0]["keys"] == 0


def test_a_silent_server_times_out(own_testbed: Testbed) -> None:
    path = own_testbed.environment.directory / "stalled"
    with ScriptedPeer([Stall()], unix=path):
        scripted_shell(own_testbed.environment, path)
        said = told(own_testbed.client, "status", "mycl", "--timeout", "0.5", code=3)
    errors = [node["contact"]["error"] for node in nodes_of(said).values()]
    assert "no answer within 0.5 seconds" in said["clusters"][0]["gateway"]["contact"]["error"]
    assert len(errors) == 3
    assert all(errors)


def test_a_remote_that_counts_as_one_copy_is_shown_as_one_node(own_testbed: Testbed) -> None:
    initremote(
        own_testbed.client, "crypt", f"url={own_testbed.url}", "encryption=shared", "tracking=remote",
        f"cluster={own_testbed.cluster.uuid}", private=False,
    )  # fmt: skip
    own_testbed.client.add("one", b"one")
    own_testbed.client.annex("copy", "--to", "crypt", "one")
    said = told(own_testbed.client, "status", "crypt")
    (cluster,) = said["clusters"]
    assert cluster["tracking"] == "remote"
    assert [(node["name"], node["keys"]) for node in cluster["nodes"]] == [("crypt", 1)]
    assert len(told(own_testbed.client, "status")["clusters"]) == 2


def test_without_a_server_the_nodes_are_asked_directly(own_testbed: Testbed) -> None:
    gateway = own_testbed.cluster.gateway
    initremote(gateway, "own", sameas=own_testbed.cluster.uuid)
    key = gateway.add("one", b"one")
    gateway.annex("copy", "--to", "own", "one")
    own_testbed.cluster.nodes[0].lose_object(key)
    said = told(gateway, "status", "own", code=1)
    assert said["clusters"][0]["gateway"] is None
    assert problems_of(said) == [("content-missing", own_testbed.cluster.nodes[0].uuid)]
    nodes = nodes_of(said)
    assert nodes["node2"]["path"] == str(own_testbed.cluster.nodes[1].path)
    assert nodes["node2"]["free"] > 0


def test_colour_is_used_only_on_terminals_and_respects_no_color(stocked: Testbed) -> None:
    assert "\x1b" not in cluster_remote(stocked.client, "status", "mycl").out
    argv = ("cluster-remote", "status", "mycl")
    assert "\x1b[" in on_a_terminal(stocked.environment, stocked.client.path, *argv)
    plain = on_a_terminal(stocked.environment, stocked.client.path, *argv, env={"NO_COLOR": "1"})
    assert "\x1b" not in plain
    assert "All is well." in plain


def test_control_characters_in_names_are_escaped(own_testbed: Testbed) -> None:
    first = own_testbed.cluster.nodes[0]
    own_testbed.client.annex("describe", first.uuid, "red\x1b[31m [bold]disk")
    shown = cluster_remote(own_testbed.client, "status", "mycl").out
    assert "\x1b" not in shown
    assert r"red\x1b[31m [bold]disk" in shown


def test_an_unusable_remote_does_not_hide_the_others(own_testbed: Testbed) -> None:
    # Without a server, in a repository that has none of the nodes as its remotes.
    initremote(own_testbed.client, "nodeless", sameas=own_testbed.cluster.uuid, check=False)
    assert own_testbed.client.config("remote.nodeless.annex-uuid") is None
    own_testbed.client.git("config", "remote.mycl2.annex-externaltype", "cluster")
    own_testbed.client.git("config", "remote.mycl2.annex-uuid", own_testbed.cluster.uuid)
    said = told(own_testbed.client, "status", code=1)
    assert [(cluster["name"], len(cluster["nodes"])) for cluster in said["clusters"]] == [("mycl", 3), ("mycl2", 0)]
    (problem,) = said["clusters"][1]["problems"]
    assert problem["kind"] == "unusable"
    assert "cluster-remote doctor mycl2" in cluster_remote(own_testbed.client, "status", code=1).out


def test_a_repository_without_a_cluster_remote_is_told_how_to_make_one(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "alone", "alone")
    assert "cluster-remote setup" in cluster_remote(repository, "status", code=2).err


def test_status_does_not_initialise_git_annex_in_a_git_repository(environment: Environment) -> None:
    directory = environment.directory / "plain"
    environment.run("git", "init", "--quiet", directory)
    assert "git annex init" in cluster_remote(environment, "status", code=4, cwd=directory).err
    assert "git annex init" in cluster_remote(environment, "status", "mycl", code=4, cwd=directory).err
    assert b"uuid" not in environment.run("git", "config", "--list", "--local", cwd=directory).stdout


def test_uncommitted_locations_are_counted(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    client = own_testbed.client
    client.git("-c", "annex.alwayscommit=false", "annex", "setpresentkey", keys["one"], client.uuid, "0")
    node = own_testbed.cluster.nodes[0]
    client.git("-c", "annex.alwayscommit=false", "annex", "setpresentkey", keys["one"], node.uuid, "0")
    assert any((client.path / ".git/annex/journal").iterdir())
    assert nodes_of(told(client, "status", "mycl", "--sample", "0", code=1))["node1"]["lacking"] == 1


@pytest.mark.slow
def test_the_nodes_of_an_encrypted_serverless_cluster_are_shown(cluster: Cluster) -> None:
    gateway, (_, second, _) = cluster.gateway, cluster.nodes
    initremote(gateway, "vault", "encryption=shared", "tracking=remote", f"cluster={cluster.uuid}", private=False)
    key = gateway.add("one", b"one")
    with second.unplugged():
        said = told(gateway, "status", "vault", code=1)
    assert problems_of(said) == [("node-unreachable", second.uuid)]
    assert set(nodes_of(said)) == {"vault", "node1", "node2", "node3"}
    assert told(gateway, "status", "vault")["well"]
    finding = next(
        each for each in told(gateway, "doctor", "vault", code=1)["findings"] if each["kind"] == "clear-text"
    )
    carry_out(gateway, finding["commands"])
    assert told(gateway, "doctor", "vault")["healthy"]
    for command in (("present",), ("drop", "--force")):
        assert "encrypted" in cluster_remote(gateway, command[0], "vault", key, *command[1:], code=2).err
