"""repair copies content to the nodes that lack it, from any source, and changes nothing else."""

from __future__ import annotations

import json
import os
import re
from typing import Any

import pytest

from tests.cli.ailing import carry_out, empty, stock, store, unverified
from tests.cli.command import cluster_remote, told
from tests.remote.testbed import Testbed, initremote
from tests.support.repositories import DESCRIPTIONS, Cluster, Repository
from tests.support.slow import only_in_all


def brought(said: dict[str, Any]) -> dict[str, tuple[str | None, list[str], list[str]]]:
    """Return for each content its source, the nodes that lacked it, and those that have it now."""
    return {each["key"]: (each["source"], each["lacking"], each["stored"]) for each in said["deliveries"]}


def read_only(node: Repository) -> None:
    """Make a node refuse every write, with git-annex's own message."""
    real = node.environment.which("git-annex-shell")
    # The gateway runs it for the node with the node's directory as an argument.
    node.environment.program(
        "git-annex-shell",
        f'#!/bin/sh\ncase "$*" in *{node.path}*) export GIT_ANNEX_SHELL_READONLY=1;; esac\nexec {real} "$@"\n',
    )


def test_an_emptied_node_is_refilled_from_this_repository(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one", "two"])
    third = own_testbed.cluster.nodes[2]
    empty(third)
    said = told(own_testbed.client, "repair", "mycl")
    assert said["well"]
    assert brought(said) == {key: ("here", [third.uuid], [third.uuid]) for key in keys.values()}
    for name, key in keys.items():
        assert third.object_bytes(key) == f"the content of {name}\n".encode()
        assert own_testbed.present(key) == own_testbed.nodes
    assert told(own_testbed.client, "repair", "mycl")["deliveries"] == []
    assert "No node lacks anything." in cluster_remote(own_testbed.client, "repair", "mycl").out


def test_content_not_here_is_copied_from_nodes_that_have_it(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one", "two"], keep=False)
    first, second, third = own_testbed.cluster.nodes
    empty(first)
    second.lose_object(keys["one"])
    said = told(own_testbed.client, "repair", "mycl")
    assert brought(said) == {
        keys["one"]: ("nodes", sorted([first.uuid, second.uuid]), sorted([first.uuid, second.uuid])),
        keys["two"]: ("nodes", [first.uuid], [first.uuid]),
    }
    for node in (first, second, third):
        assert node.object_bytes(keys["one"]) == b"the content of one\n"
        assert node.object_bytes(keys["two"]) == b"the content of two\n"
    assert not own_testbed.client.has_object(keys["one"])
    # Nothing of what went through here has stayed.
    assert not list((own_testbed.client.path / ".git/annex").glob("tmp/*"))


def test_several_nodes_lacking_content_get_it_by_one_upload_to_the_gateway(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    gateway = own_testbed.cluster.gateway
    for node in own_testbed.cluster.nodes[:2]:
        node.annex("drop", "--quiet", "--force", "--key", keys["one"])
        for repository in (own_testbed.client, gateway):
            repository.annex("setpresentkey", keys["one"], node.uuid, "0")
    # Who puts to the gateway itself names the cluster; each session is a process with these arguments.
    trace = own_testbed.environment.directory / "asked"
    real = own_testbed.environment.which("git-annex-shell")
    own_testbed.environment.program("git-annex-shell", f'#!/bin/sh\nprintf "%s\\n" "$*" >> {trace}\nexec {real} "$@"\n')
    said = told(own_testbed.client, "repair", "mycl", "one")
    assert len(said["deliveries"][0]["stored"]) == 2
    assert any(own_testbed.cluster.uuid in line for line in trace.read_text().splitlines())
    assert own_testbed.cluster.holders(keys["one"]) == [True] * 3


def test_content_the_gateway_wrongly_believes_present_is_copied_anyway(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    first, second, _ = own_testbed.cluster.nodes
    first.lose_object(keys["one"])
    second.lose_object(keys["one"])
    assert {first.uuid, second.uuid} <= own_testbed.cluster.gateway.locations(keys["one"])
    assert told(own_testbed.client, "repair", "mycl")["well"]
    assert own_testbed.cluster.holders(keys["one"]) == [True] * 3


def test_a_dry_run_reports_and_changes_nothing(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    first, second, _ = own_testbed.cluster.nodes
    first.lose_object(keys["one"])
    own_testbed.client.annex("setpresentkey", keys["one"], second.uuid, "0")
    said = told(own_testbed.client, "repair", "mycl", "--dry-run", code=1)
    assert said["dry_run"]
    assert brought(said) == {keys["one"]: ("here", [first.uuid], [])}
    assert said["recorded"] == 0
    done = cluster_remote(own_testbed.client, "repair", "mycl", "one", "-n", code=1)
    assert f"one: 19 B would go from here to {DESCRIPTIONS[0]}" in done.out
    assert "Nothing has been done" in done.out
    assert own_testbed.cluster.holders(keys["one"]) == [False, True, True]
    assert own_testbed.present(keys["one"]) == own_testbed.nodes - {second.uuid}


def test_with_trust_log_nodes_are_not_asked_about_recorded_content(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["lost", "lagging"])
    first = own_testbed.cluster.nodes[0]
    first.lose_object(keys["lost"])
    first.annex("drop", "--quiet", "--force", "--key", keys["lagging"])
    own_testbed.client.annex("setpresentkey", keys["lagging"], first.uuid, "0")
    said = told(own_testbed.client, "repair", "mycl", "--trust-log")
    assert brought(said) == {keys["lagging"]: ("here", [first.uuid], [first.uuid])}
    assert own_testbed.cluster.holders(keys["lost"]) == [False, True, True]
    assert own_testbed.cluster.holders(keys["lagging"]) == [True] * 3


def test_unrecorded_content_found_on_nodes_is_recorded(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    own_testbed.client.annex("setpresentkey", keys["one"], own_testbed.cluster.nodes[1].uuid, "0")
    said = told(own_testbed.client, "repair", "mycl")
    assert (said["well"], said["recorded"], said["deliveries"]) == (True, 1, [])
    assert own_testbed.present(keys["one"]) == own_testbed.nodes


@pytest.mark.slow
def test_content_on_no_node_is_left_alone_unless_named(own_testbed: Testbed) -> None:
    key = own_testbed.client.add("only here", b"only here")
    assert told(own_testbed.client, "repair", "mycl")["deliveries"] == []
    assert own_testbed.cluster.holders(key) == [False] * 3
    said = told(own_testbed.client, "repair", "mycl", "only here")
    assert len(said["deliveries"][0]["stored"]) == 3
    assert own_testbed.cluster.holders(key) == [True] * 3
    assert own_testbed.present(key) == own_testbed.nodes
    other = own_testbed.client.add("another", b"another")
    assert told(own_testbed.client, "repair", "mycl", "--key", other)["well"]
    assert own_testbed.cluster.holders(other) == [True] * 3


@pytest.mark.slow
def test_content_without_a_reachable_copy_is_named(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["lost", "kept"], keep=False)
    for node in own_testbed.cluster.nodes:
        node.lose_object(keys["lost"])
    said = told(own_testbed.client, "repair", "mycl", code=1)
    assert brought(said) == {keys["lost"]: (None, sorted(own_testbed.nodes), [])}
    assert [problem["kind"] for problem in said["problems"]] == ["out-of-reach"]
    done = cluster_remote(own_testbed.client, "repair", "mycl", "lost", code=1)
    assert re.search("lost: still lacking on .*neither this repository nor any reachable node", done.out)
    # Its locations are for check to put right.
    assert own_testbed.present(keys["lost"]) == own_testbed.nodes
    # The exit code of this one is that something is wrong: there is no copy left.
    (command,) = said["problems"][0]["commands"]
    check = own_testbed.environment.run(*command.split(), cwd=own_testbed.client.path, check=False)
    assert "no repository is known to have 1 key" in check.stdout.decode()
    assert own_testbed.present(keys["lost"]) == set()
    assert told(own_testbed.client, "repair", "mycl")["well"]


def test_an_unavailable_node_is_named_and_the_others_are_repaired(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    first, second, third = own_testbed.cluster.nodes
    empty(first)
    empty(third)
    with second.unplugged():
        said = told(own_testbed.client, "repair", "mycl", code=1)
        assert own_testbed.cluster.nodes[0].has_object(keys["one"])
    assert said["deliveries"][0]["stored"] == sorted([first.uuid, third.uuid])
    assert [(problem["kind"], problem["node"]) for problem in said["problems"]] == [("node-unreachable", second.uuid)]
    assert own_testbed.cluster.holders(keys["one"]) == [True] * 3


def test_repair_with_no_node_answering_exits_as_unreachable(own_testbed: Testbed) -> None:
    store(own_testbed, ["one"])
    with own_testbed.cluster.gateway.unplugged():
        assert told(own_testbed.client, "repair", "mycl", code=3)["deliveries"] == []


def test_a_refusing_node_is_named_with_its_reason_and_not_recorded(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    gateway = own_testbed.cluster.gateway
    initremote(gateway, "own", sameas=own_testbed.cluster.uuid)
    gateway.annex("merge", "--quiet")
    own_testbed.client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    first, second, _ = own_testbed.cluster.nodes
    first.lose_object(keys["one"])
    second.lose_object(keys["one"])
    read_only(first)
    said = told(gateway, "repair", "own", code=1)
    assert brought(said) == {keys["one"]: ("nodes", sorted([first.uuid, second.uuid]), [second.uuid])}
    (problem,) = said["problems"]
    assert (problem["kind"], problem["node"]) == ("lagging", first.uuid)
    assert "read-only" in problem["words"]
    assert own_testbed.cluster.holders(keys["one"]) == [False, True, True]


def test_a_node_with_preferred_content_is_left_to_git_annex(own_testbed: Testbed) -> None:
    keys = store(own_testbed, ["one"])
    first, second, _ = own_testbed.cluster.nodes
    first.lose_object(keys["one"])
    second.lose_object(keys["one"])
    own_testbed.client.annex("wanted", first.uuid, "include=*.jpg")
    said = told(own_testbed.client, "repair", "mycl")
    assert brought(said) == {keys["one"]: ("here", [second.uuid], [second.uuid])}
    nodes = sorted(said["nodes"], key=lambda node: node["name"])
    assert [node["has_preferred_content"] for node in nodes] == [True, False, False]
    assert own_testbed.cluster.holders(keys["one"]) == [False, True, True]
    assert "git annex sync --content" in cluster_remote(own_testbed.client, "repair", "mycl").out


def test_an_interrupted_upload_is_resumed(own_testbed: Testbed) -> None:
    content = bytes(range(256)) * 4000
    key = own_testbed.client.add("large", content)
    own_testbed.client.annex("copy", "--quiet", "--to", "mycl", "large")
    first = own_testbed.cluster.nodes[0]
    first.lose_object(key)
    first.leave_partial(key, content[:500_000])
    own_testbed.client.annex("drop", "--quiet", "--force", "large")
    assert told(own_testbed.client, "repair", "mycl")["well"]
    assert first.object_bytes(key) == content


@pytest.mark.slow
def test_many_contents_are_copied_concurrently(own_testbed: Testbed) -> None:
    keys = stock(own_testbed, 40)
    first, second, _ = own_testbed.cluster.nodes
    empty(first)
    for key in keys[::2]:
        second.lose_object(key)
    said = told(own_testbed.client, "repair", "mycl", "--jobs", "4")
    assert said["well"]
    assert len(said["deliveries"]) == 40
    assert all(own_testbed.cluster.holders(key) == [True] * 3 for key in keys[:4])
    assert told(own_testbed.client, "check", "mycl", "--all")["well"]


def test_odd_names_and_keys_are_copied_unchanged(own_testbed: Testbed) -> None:
    client, first = own_testbed.client, own_testbed.cluster.nodes[0]
    names: list[str | bytes] = ["with space", "per%cent", b"not utf-8 \xff", "empty"]
    keys = [client.add(name, b"" if name == "empty" else b"odd " + os.fsencode(name)) for name in names]
    keys.append(client.add("worm", b"worm", backend="WORM"))
    client.annex("copy", "--quiet", "--to", "mycl", ".")
    empty(first)
    assert told(client, "repair", "mycl", ".")["well"]
    assert all(first.has_object(key) for key in keys)


def test_without_a_server_content_is_copied_between_nodes_through_this_repository(own_testbed: Testbed) -> None:
    gateway, (first, second, third) = own_testbed.cluster.gateway, own_testbed.cluster.nodes
    initremote(gateway, "own", sameas=own_testbed.cluster.uuid)
    key = gateway.add("one", b"from node to node")
    gateway.annex("move", "--quiet", "--to", "own", "one")
    first.lose_object(key)
    second.lose_object(key)
    said = told(gateway, "repair", "own")
    assert brought(said) == {key: ("nodes", sorted([first.uuid, second.uuid]), sorted([first.uuid, second.uuid]))}
    assert [node.object_bytes(key) for node in (first, second, third)] == [b"from node to node"] * 3
    assert not gateway.has_object(key)


@pytest.mark.parametrize("serverless", [True, *only_in_all(False)])
def test_a_damaged_copy_is_named_and_the_next_source_is_tried(own_testbed: Testbed, serverless: bool) -> None:
    keys = store(own_testbed, ["one"], keep=False)
    where, name = own_testbed.client, "mycl"
    if serverless:
        where, name = own_testbed.cluster.gateway, "own"
        initremote(where, name, sameas=own_testbed.cluster.uuid)
        where.annex("merge", "--quiet")
    first, second, third = own_testbed.cluster.nodes
    third.lose_object(keys["one"])
    where.annex("setpresentkey", keys["one"], third.uuid, "0")
    content = b"the content of one\n"
    first.damage_object(keys["one"], content[::-1])
    # Whichever is asked first, once it is the damaged one.
    where.git("config", "remote.node1.annex-cost", "1")
    said = told(where, "repair", name, "--key", keys["one"], code=1 if serverless else None)
    assert third.object_bytes(keys["one"]) == content
    assert said["deliveries"][0]["stored"] == [third.uuid]
    if serverless:
        assert [(problem["kind"], problem["node"]) for problem in said["problems"]] == [("damaged", first.uuid)]
    assert second.object_bytes(keys["one"]) == content


def test_content_without_a_checksum_is_never_assembled_from_two_copies(own_testbed: Testbed) -> None:
    gateway, (first, second, third) = own_testbed.cluster.gateway, own_testbed.cluster.nodes
    initremote(gateway, "own", sameas=own_testbed.cluster.uuid)
    key = gateway.add("worm", b"0123456789" * 1000, backend="WORM")
    gateway.annex("move", "--quiet", "--to", "own", "worm")
    for node in (second, third):
        node.lose_object(key)
        gateway.annex("setpresentkey", key, node.uuid, "0")
    partial = third.path / ".git/annex/tmp" / key
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(b"of another copy" * 100)
    said = told(gateway, "repair", "own", "--key", key, code=1)
    assert brought(said)[key][2] == [second.uuid]
    assert "no checksum" in " ".join(said["deliveries"][0]["reasons"])
    assert not third.has_object(key)
    partial.unlink()
    assert told(gateway, "repair", "own", "--key", key)["well"]
    assert [node.object_bytes(key) for node in (first, second, third)] == [b"0123456789" * 1000] * 3


def test_running_the_remedies_makes_status_check_doctor_and_repair_clean(own_testbed: Testbed) -> None:
    """A dead node, an emptied one, a stale location and an unverified remote at once."""
    first, second, third = own_testbed.cluster.nodes
    keys = store(own_testbed, ["one", "two", "three"])
    client = unverified(own_testbed, "shared")
    # What is lost on two nodes and out of reach on the third can only come from here.
    client.set_key(keys["two"], b"the content of two\n")
    first.lose_object(keys["two"])
    empty(third)
    gone = second.uuid
    ailments = {
        ("content-missing", first.uuid),
        ("node-unreachable", second.uuid),
        ("content-missing", third.uuid),
    }
    titles = {description: uuid for uuid, description in client.descriptions().items()}
    with second.unplugged():
        # Nobody is asked anything before the user has accepted the configuration.
        for command in ("doctor", "status"):
            said = told(client, command, "shared", code=1)
            problems = said["findings"] if command == "doctor" else said["clusters"][0]["problems"]
            (waiting,) = (problem for problem in problems if problem["kind"] == "not-verified")
        # The first command is to look at the address.
        carry_out(client, waiting["commands"][1:])
        state = told(client, "status", "shared", code=1)
        check = told(client, "check", "shared", "--all", code=1)
        doctor = told(client, "doctor", "shared", code=1)
        (cluster,) = state["clusters"]
        for problems in (cluster["problems"], check["problems"]):
            assert {(problem["kind"], problem["node"] or "shared") for problem in problems} == ailments
        found = {(finding["kind"], titles.get(finding["about"], finding["about"])) for finding in doctor["findings"]}
        assert found == ailments | {("node-remotes-missing", "shared")}
        for problem in [*cluster["problems"], *check["problems"], *doctor["findings"]]:
            assert problem["words"]
            assert problem["commands"]
        for problem in check["problems"]:
            match problem["kind"]:
                case "node-unreachable":
                    # Which is for when the node is back. This one is gone for good.
                    client.annex("dead", gone)
        for problem in check["problems"]:
            if problem["kind"] == "content-missing":
                carry_out(client, problem["commands"])
        for finding in doctor["findings"]:
            if finding["kind"] == "node-remotes-missing":
                carry_out(client, finding["commands"])
        assert told(client, "status", "shared")["well"]
        assert told(client, "check", "shared", "--all")["well"]
        assert told(client, "doctor", "shared")["healthy"]
        assert told(client, "repair", "shared")["well"]
        assert first.has_object(keys["two"])
        assert third.has_object(keys["two"])
    assert {first.uuid, third.uuid} <= client.locations(keys["one"])


def test_requests_that_cannot_be_repaired_are_refused(own_testbed: Testbed) -> None:
    for arguments, code in ((("nothing",), 1), (("--key", "nonsense"), 2)):
        done = cluster_remote(own_testbed.client, "repair", "mycl", "--json", *arguments, code=code)
        assert arguments[-1] in done.err
        assert json.loads(done.out)["exit_code"] == code


def test_a_node_without_a_remote_is_named_by_status_check_and_repair(cluster: Cluster) -> None:
    gateway = cluster.gateway
    initremote(gateway, "own", sameas=cluster.uuid)
    gateway.add("f", b"content")
    gateway.annex("copy", "--quiet", "--to", "own", "f")
    gateway.git("remote", "remove", "node2")
    for command in ("check", "repair"):
        (problem,) = told(gateway, command, "own", code=1)["problems"]
        assert (problem["kind"], problem["node"]) == ("node-without-remote", cluster.nodes[1].uuid)
    assert told(gateway, "status", "own", code=1)["clusters"][0]["problems"] == [problem]
    # By the log, which is how a new node is filled, the others get what they lack.
    assert told(gateway, "repair", "own", "--trust-log")["healthy"]
