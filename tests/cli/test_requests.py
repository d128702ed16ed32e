"""One request to one server or node: what is asked, what comes of it, and that nothing else is done."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.cli.command import cluster_remote, told
from tests.remote.testbed import Testbed, initremote
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.peers import Expect, ScriptedPeer, Send, Step, opening
from tests.support.processes import wait_until
from tests.support.repositories import DESCRIPTIONS, Repository, locked
from tests.support.shells import scripted_shell
from tests.support.slow import only_in_all
from tests.support.sockets import serve_p2p

NOBODYS = "SHA256E-s5--0000000000000000000000000000000000000000000000000000000000000000"


def log(testbed: Testbed, key: str) -> set[str]:
    """The nodes that the client's location log names."""
    return testbed.present(key)


# present


def test_present_answers_by_its_exit_code_and_its_json(testbed: Testbed) -> None:
    key = testbed.client.add("asked for", b"asked for\n")
    assert told(testbed.client, "present", "mycl", "asked for", code=1)["present"] is False
    testbed.client.annex("copy", "--to", "mycl", "asked for")
    said = told(testbed.client, "present", "mycl", "asked for")
    assert (said["present"], said["key"], said["server"]) == (True, key, testbed.cluster.uuid)
    assert f"has {key}" in cluster_remote(testbed.client, "present", "mycl", key).out


def test_present_asks_one_node_by_uuid_description_or_name(testbed: Testbed) -> None:
    key = testbed.client.add("on the second", b"on the second node only\n")
    second = testbed.cluster.nodes[1]
    second.set_key(key, b"on the second node only\n")
    for name in (second.uuid, DESCRIPTIONS[1], "node2", "n2"):
        said = told(testbed.client, "present", "mycl", key, "--node", name)
        assert said["server"] == second.uuid, name
    cluster_remote(testbed.client, "present", "mycl", key, "--node", "node1", code=1)
    # A gateway believes its own log, which knows nothing of it.
    cluster_remote(testbed.client, "present", "mycl", key, code=1)
    # An address leads to the same places as the remote that has it.
    cluster_remote(testbed.client, "present", testbed.url, key, "--node", "node2")


def test_an_unknown_node_is_wrong_usage_and_the_known_ones_are_named(testbed: Testbed) -> None:
    done = cluster_remote(testbed.client, "present", "mycl", NOBODYS, "--node", "node9", code=2)
    assert "node9" in done.err
    assert "node1, node2, node3" in done.err


def test_one_nodes_answer_can_be_recorded_but_a_clusters_cannot(testbed: Testbed) -> None:
    key = testbed.client.add("unrecorded", b"unrecorded\n")
    first = testbed.cluster.nodes[0]
    first.set_key(key, b"unrecorded\n")
    cluster_remote(testbed.client, "present", "mycl", key, "--node", "node1")
    assert log(testbed, key) == set()
    said = told(testbed.client, "present", "mycl", key, "--node", "node1", "--record")
    assert said["recorded"] == [first.uuid]
    assert log(testbed, key) == {first.uuid}
    first.annex("drop", "--force", "--key", key)
    cluster_remote(testbed.client, "present", "mycl", key, "--node", "node1", "--record", code=1)
    assert log(testbed, key) == set()
    done = cluster_remote(testbed.client, "present", "mycl", key, "--record", code=2)
    assert "--node" in done.err


def test_a_word_that_is_neither_a_file_nor_a_key_is_wrong_usage(testbed: Testbed) -> None:
    assert "there is no file 'nothing'" in cluster_remote(testbed.client, "present", "mycl", "nothing", code=2).err
    testbed.client.write("plain", b"not annexed\n")
    assert "not an annexed file" in cluster_remote(testbed.client, "present", "mycl", "plain", code=1).err


# put


def test_put_stores_on_every_node_and_records_nothing_unless_told(testbed: Testbed) -> None:
    key = testbed.client.add("folder/put here", b"put here\n")
    done = cluster_remote(testbed.client, "put", "mycl", "put here", cwd=testbed.client.path / "folder")
    assert all(description in done.out for description in DESCRIPTIONS[:3])
    assert testbed.cluster.holders(key) == [True] * 3
    assert log(testbed, key) == set()
    said = told(testbed.client, "put", "mycl", "folder/put here", "--record")
    assert (said["stored"], said["already_present"], set(said["uuids"])) == (True, True, testbed.nodes)
    assert set(said["recorded"]) == testbed.nodes
    assert log(testbed, key) == testbed.nodes


def test_put_to_one_node_reaches_only_that_node(testbed: Testbed) -> None:
    key = testbed.client.add("one of them", b"one of them\n")
    said = told(testbed.client, "put", "mycl", "one of them", "--node", "node3", "--record")
    assert testbed.cluster.holders(key) == [False, False, True]
    assert said["recorded"] == [testbed.cluster.nodes[2].uuid]


def test_put_sends_any_file_for_a_key_to_a_bare_address_outside_a_repository(testbed: Testbed) -> None:
    environment = testbed.environment
    file = environment.directory / "content"
    file.write_bytes(b"hello")
    key = "WORM-s5-m1--outside"
    node = str(testbed.cluster.nodes[0].path)
    said = told(environment, "put", node, "--key", key, "--from", file)
    assert (said["stored"], said["uuids"], said["size"]) == (True, [], 5)
    assert testbed.cluster.nodes[0].object_bytes(key) == b"hello"
    cluster_remote(environment, "present", node, key)
    done = cluster_remote(environment, "put", node, "--key", key, "--from", file, "--record", code=4)
    assert "--record" in done.err


def test_put_of_a_file_not_matching_its_key_fails_and_says_so(testbed: Testbed) -> None:
    file = testbed.client.write("too long", b"longer than the key says")
    done = cluster_remote(testbed.client, "put", "mycl", "--key", NOBODYS, "--from", file, code=1)
    assert "its key says 5" in done.err
    file.write_bytes(b"12345")
    done = cluster_remote(testbed.client, "put", "mycl", "--key", NOBODYS, "--from", file, code=1)
    assert "did not store" in done.out
    missing = cluster_remote(testbed.client, "put", "mycl", "--key", NOBODYS, "--from", "no such file", code=1)
    assert "cannot read 'no such file'" in missing.err


def test_put_of_content_not_here_says_how_to_get_it(testbed: Testbed) -> None:
    testbed.client.add("elsewhere", b"elsewhere\n")
    testbed.client.annex("drop", "--force", "elsewhere")
    done = cluster_remote(testbed.client, "put", "mycl", "elsewhere", code=1)
    assert "git annex get" in done.err


@pytest.mark.parametrize("arguments", [(), ("file", "--key", NOBODYS), ("file", "--from", "other")])
def test_put_requires_a_file_or_a_key(testbed: Testbed, arguments: tuple[str, ...]) -> None:
    cluster_remote(testbed.client, "put", "mycl", *arguments, code=2)


def test_put_to_an_encrypted_remote_is_refused_as_it_would_store_unencrypted(own_testbed: Testbed) -> None:
    client = own_testbed.client
    initremote(
        client, "secret", f"url={own_testbed.url}", "encryption=shared", "tracking=remote",
        f"cluster={own_testbed.cluster.uuid}", private=False,
    )  # fmt: skip
    key = client.add("private", b"private\n")
    done = cluster_remote(client, "put", "secret", "private", code=2)
    assert "git annex copy --to secret" in done.err
    assert own_testbed.cluster.holders(key) == [False] * 3
    done = cluster_remote(client, "present", "secret", "private", "--record", code=2)
    assert "git annex fsck" in done.err


# get


def test_get_writes_a_file_and_verifies_its_checksum(testbed: Testbed, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    testbed.client.add("fetched.jpg", content)
    testbed.client.annex("copy", "--to", "mycl", "fetched.jpg")
    said = told(testbed.client, "get", "mycl", "fetched.jpg", "--to", tmp_path / "here")
    assert (tmp_path / "here").read_bytes() == content
    assert (said["verified"], said["offset"], said["size"]) == (True, 0, len(content))
    done = cluster_remote(testbed.client, "get", "mycl", "fetched.jpg", "--to", tmp_path / "here", code=2)
    assert "--continue" in done.err


def test_get_resumes_at_the_end_of_the_file(testbed: Testbed, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    testbed.client.add("resumed", content)
    testbed.client.annex("copy", "--to", "mycl", "resumed")
    (tmp_path / "part").write_bytes(content[:1000])
    said = told(testbed.client, "get", "mycl", "resumed", "--to", tmp_path / "part", "--continue")
    assert (tmp_path / "part").read_bytes() == content
    assert (said["offset"], said["size"], said["verified"]) == (1000, len(content), True)


def test_get_reports_a_checksum_mismatch(testbed: Testbed, tmp_path: Path) -> None:
    key = testbed.client.add("rotten", b"as it was at first")
    testbed.client.annex("copy", "--to", "mycl", "rotten")
    testbed.cluster.nodes[0].damage_object(key, b"as it is by now...")
    done = cluster_remote(
        testbed.client, "get", "mycl", "rotten", "--node", "node1", "--to", tmp_path / "rotten", code=1
    )
    assert f"NOT the content of {key}" in done.out


def test_get_of_missing_content_fails_and_leaves_no_file(testbed: Testbed, tmp_path: Path) -> None:
    done = cluster_remote(testbed.client, "get", "mycl", NOBODYS, cwd=tmp_path, code=4)
    assert "repository" in done.err
    done = cluster_remote(testbed.client, "get", testbed.url, NOBODYS, cwd=tmp_path, code=1)
    assert "does not have" in done.err
    assert list(tmp_path.iterdir()) == []


def test_get_names_the_file_after_the_key(testbed: Testbed, tmp_path: Path) -> None:
    key = testbed.client.add("named", b"named\n", backend="WORM")
    testbed.client.annex("copy", "--to", "n1", "named")
    cluster_remote(testbed.client, "get", testbed.cluster.nodes[0].path, key, cwd=tmp_path)
    assert (tmp_path / key).read_bytes() == b"named\n"


# drop


def test_drop_without_force_removes_nothing_and_says_why(testbed: Testbed) -> None:
    key = testbed.client.add("precious", b"precious\n")
    testbed.client.annex("copy", "--to", "mycl", "precious")
    done = cluster_remote(testbed.client, "drop", "mycl", "precious", code=2)
    assert "git annex drop --from" in done.err
    assert testbed.cluster.holders(key) == [True] * 3


def test_drop_removes_and_records_only_when_told(testbed: Testbed) -> None:
    key = testbed.client.add("dropped at once", b"dropped at once\n")
    testbed.client.annex("copy", "--to", "mycl", key_file := "dropped at once")
    said = told(testbed.client, "drop", "mycl", key_file, "--node", "node1", "--force")
    assert (said["removed"], said["recorded"]) == (True, [])
    assert testbed.cluster.holders(key) == [False, True, True]
    assert log(testbed, key) == testbed.nodes
    said = told(testbed.client, "drop", "mycl", key_file, "--force", "--record")
    assert testbed.cluster.holders(key) == [False] * 3
    assert log(testbed, key) == set()


def test_a_partial_drop_fails_and_names_the_nodes_that_dropped(testbed: Testbed) -> None:
    key = testbed.client.add("held", b"held\n")
    testbed.client.annex("copy", "--to", "mycl", "held")
    first, *others = testbed.cluster.nodes
    with locked(first, key):
        said = told(testbed.client, "drop", "mycl", "held", "--force", "--record", code=1)
    assert set(said["uuids"]) == {node.uuid for node in others}
    assert set(said["recorded"]) == set(said["uuids"])
    assert log(testbed, key) == {first.uuid}


@pytest.mark.parametrize("command", ["put", *only_in_all("drop")])
def test_only_nodes_of_the_cluster_are_recorded_whatever_the_gateway_claims(own_testbed: Testbed, command: str) -> None:
    client, (first, *_) = own_testbed.client, own_testbed.cluster.nodes
    key = client.add("claimed", b"claimed\n")
    path = own_testbed.environment.directory / "liar"
    stranger = "12345678-1234-4234-8234-123456789abc"
    client.annex("setpresentkey", key, stranger, "1")
    client.annex("setpresentkey", key, first.uuid, "1" if command == "drop" else "0")
    names = f"{stranger} {client.uuid} {first.uuid}"
    answer: list[Step] = (
        [Expect(re.compile(rb"PUT claimed \S+")), Send(f"ALREADY-HAVE-PLUS {names}\n".encode())]
        if command == "put"
        else [Expect(re.compile(rb"REMOVE \S+")), Send(f"SUCCESS-PLUS {names}\n".encode())]
    )
    before = client.locations(key)
    with ScriptedPeer([*opening(own_testbed.cluster.uuid), *answer], unix=path):
        scripted_shell(own_testbed.environment, path)
        force = ["--force"] if command == "drop" else []
        done = cluster_remote(client, command, "mycl", "claimed", *force, "--record")
    assert client.locations(key) == (before | {first.uuid} if command == "put" else before - {first.uuid})
    assert stranger in done.err
    assert client.uuid in done.err


def test_nothing_is_recorded_for_a_bare_address(testbed: Testbed) -> None:
    key = testbed.client.add("said at an address", b"said at an address\n")
    node = testbed.cluster.nodes[0]
    done = cluster_remote(testbed.client, "put", str(node.path), "said at an address", "--record", code=2)
    assert "remote" in done.err
    assert not node.has_object(key)


# lock


def test_a_cluster_cannot_lock_and_the_message_says_what_can(testbed: Testbed) -> None:
    testbed.client.add("unlockable", b"unlockable\n")
    testbed.client.annex("copy", "--to", "mycl", "unlockable")
    done = cluster_remote(testbed.client, "lock", "mycl", "unlockable", code=1)
    assert "--node" in done.out


def test_lock_holds_while_the_command_runs_and_returns_its_exit_code(testbed: Testbed) -> None:
    key = testbed.client.add("kept", b"kept\n")
    testbed.client.annex("copy", "--to", "mycl", "kept")
    drop = "cluster-remote drop mycl kept --node node1 --force; test $? = 1 && exit 9"
    said = told(
        testbed.client, "lock", "mycl", "kept", "--node", "node1", "--", "sh", "-c", f"{{ {drop}; }} >&2", code=9
    )
    assert (said["locked"], said["exit_code"]) == (True, 9)
    assert said["held"] > 0
    cluster_remote(testbed.client, "drop", "mycl", "kept", "--node", "node1", "--force")
    assert not testbed.cluster.nodes[0].has_object(key)


def test_lock_of_missing_content_fails_and_runs_nothing(testbed: Testbed) -> None:
    done = cluster_remote(testbed.client, "lock", "n1", NOBODYS, "--", "touch", "must-not-be", code=1)
    assert "not locked" in done.out
    assert not (testbed.client.path / "must-not-be").exists()


def test_lock_with_a_command_that_cannot_be_run_exits_as_shells_do(testbed: Testbed) -> None:
    testbed.client.add("kept for nothing", b"kept for nothing\n")
    testbed.client.annex("copy", "--to", "n1", "kept for nothing")
    done = cluster_remote(testbed.client, "lock", "n1", "kept for nothing", "--", "no-such-command", code=127)
    assert "no-such-command" in done.err


@pytest.mark.parametrize("number", [signal.SIGINT, *only_in_all(signal.SIGTERM)])
def test_lock_without_a_command_holds_until_interrupted(testbed: Testbed, number: signal.Signals) -> None:
    name = f"until {number.name}"
    key = testbed.client.add(name, name.encode())
    testbed.client.annex("copy", "--to", "n1", name)
    with popen_forked(
        testbed.environment, "cluster-remote", "lock", "n1", name, cwd=testbed.client.path, stderr=-1
    ) as process:
        assert process.stderr is not None
        assert b"is locked" in process.stderr.readline()
        cluster_remote(testbed.client, "drop", "n1", name, "--force", code=1)
        assert testbed.cluster.nodes[0].has_object(key)
        process.send_signal(number)
        assert process.wait(20) == 130
        assert process.stdout is not None
        assert b"was locked" in process.stdout.read()
    cluster_remote(testbed.client, "drop", "n1", name, "--force")
    assert not testbed.cluster.nodes[0].has_object(key)


def test_a_signal_to_lock_is_passed_to_the_running_command(testbed: Testbed) -> None:
    testbed.client.add("handed on", b"handed on\n")
    testbed.client.annex("copy", "--to", "n1", "handed on")
    started = testbed.environment.directory / "started"
    script = f"trap 'exit 5' TERM; touch {started}; while :; do sleep 0.05; done"
    arguments = ("lock", "n1", "handed on", "--", "sh", "-c", script)
    with popen_forked(testbed.environment, "cluster-remote", *arguments, cwd=testbed.client.path, stderr=-1) as process:
        assert wait_until(started.exists, 20)
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 5


# a socket


def test_requests_go_over_a_socket_with_the_token_from_the_environment(environment: Environment) -> None:
    environment.run("git", "init", "--quiet", "served")
    repository = Repository(environment.directory / "served", environment)
    repository.annex("init", "--quiet", "served")
    key = repository.add("file", b"over a socket\n")
    with serve_p2p(repository) as (path, token):
        env = {"CLUSTER_REMOTE_TOKEN": token}
        assert told(environment, "present", f"unix:{path}", key, env=env)["server"] == repository.uuid
        without = cluster_remote(environment, "present", f"unix:{path}", key, code=2)
        assert "CLUSTER_REMOTE_TOKEN" in without.err
        wrong = cluster_remote(
            environment, "present", f"unix:{path}", key, code=3, env={"CLUSTER_REMOTE_TOKEN": "x" * 52}
        )
        assert "x" * 52 not in wrong.err + wrong.out
        deadline = time.monotonic() + 30
    gone = cluster_remote(environment, "present", f"unix:{path}", key, code=3, env=env)
    assert "cannot connect" in gone.err
    assert time.monotonic() < deadline
