"""Storing to a cluster, and how git-annex counts what is there: copy, whereis, drop, get, move, fsck."""

from __future__ import annotations

import pytest

from tests.remote.testbed import Testbed, messages, text, whereis


def test_copy_stores_on_every_node_and_whereis_lists_them_and_the_cluster(testbed: Testbed) -> None:
    key = testbed.client.add("copied", b"for every node")
    testbed.client.annex("copy", "--to", "mycl", "copied")
    assert [node.object_bytes(key) for node in testbed.cluster.nodes] == [b"for every node"] * 3
    assert testbed.client.locations(key) == {testbed.client.uuid, *testbed.nodes}
    assert whereis(testbed.client, "copied") == {testbed.client.uuid, testbed.cluster.uuid, *testbed.nodes}


def test_locations_are_shared_by_the_git_annex_branch(testbed: Testbed) -> None:
    key = testbed.client.add("shared", b"for whoever pulls")
    testbed.client.annex("copy", "--to", "mycl", "shared")
    assert not list((testbed.client.path / ".git/annex/journal-private").glob(f"*{key}.log"))
    testbed.client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    testbed.cluster.gateway.annex("merge", "--quiet")
    assert testbed.cluster.gateway.locations(key) == {testbed.client.uuid, *testbed.nodes}


@pytest.mark.parametrize("command", [("copy", "--fast"), ("transferkey",)])
def test_an_upload_restores_lost_locations_of_content_on_every_node(testbed: Testbed, command: tuple[str, ...]) -> None:
    name = "lost " + " ".join(command)
    key = testbed.client.add(name, name.encode())
    testbed.client.annex("copy", "--to", "mycl", name)
    # A fast copy asks nobody about content that it knows to be on any node.
    lost = testbed.cluster.nodes if "--fast" in command else testbed.cluster.nodes[1:]
    for node in lost:
        testbed.client.annex("setpresentkey", key, node.uuid, "0")
    assert testbed.present(key) == testbed.nodes - {node.uuid for node in lost}
    done = testbed.client.annex(*command, "--to", "mycl", key if command == ("transferkey",) else name, "--debug")
    assert any(said.startswith("< ALREADY-HAVE-PLUS") for said in messages(done))
    assert not any(said.startswith("> DATA") for said in messages(done))
    assert testbed.present(key) == testbed.nodes


@pytest.mark.parametrize("command", [("copy", "--to"), ("fsck", "--fast", "--from")])
def test_content_on_one_node_is_present_and_not_sent_to_the_others(testbed: Testbed, command: tuple[str, ...]) -> None:
    name = "partly " + command[0]
    key = testbed.client.add(name, name.encode())
    testbed.client.annex("copy", "--to", "n3", name)
    testbed.client.annex(*command, "mycl", name)
    assert testbed.cluster.holders(key) == [False, False, True]
    assert testbed.present(key) == {testbed.cluster.nodes[2].uuid}


def test_content_present_on_one_node_gets_no_invented_locations(testbed: Testbed) -> None:
    key = testbed.client.add("elsewhere", b"on the second node only")
    testbed.client.annex("copy", "--to", "n2", "elsewhere")
    testbed.client.annex("drop", "--force", "elsewhere")
    testbed.client.annex("fsck", "--fast", "--from", "mycl", "elsewhere")
    assert testbed.cluster.holders(key) == [False, True, False]
    assert testbed.present(key) == {testbed.cluster.nodes[1].uuid}


@pytest.mark.slow
def test_drop_counts_the_nodes_as_copies_and_get_restores_the_content(testbed: Testbed) -> None:
    content = bytes(range(256)) * 5000
    key = testbed.client.add("counted", content)
    testbed.client.annex("copy", "--to", "mycl", "counted")
    refused = testbed.client.annex("drop", "-N4", "counted", check=False)
    assert refused.returncode != 0
    assert "Could only verify the existence of 3 out of 4 necessary copies" in text(refused)
    assert testbed.client.has_object(key)
    testbed.client.annex("drop", "-N3", "counted")
    assert not testbed.client.has_object(key)
    assert testbed.present(key) == testbed.nodes
    testbed.client.annex("get", "--from", "mycl", "counted")
    assert testbed.client.object_bytes(key) == content


def test_a_cluster_without_node_remotes_does_not_count_as_a_copy(testbed: Testbed) -> None:
    key = testbed.client.add("alone", b"the cluster alone")
    testbed.client.annex("copy", "--to", "mycl", "alone")
    without = [argument for n in "123" for argument in ("-c", f"remote.n{n}.annex-ignore=true")]
    refused = testbed.client.git(*without, "annex", "drop", "alone", check=False)
    assert refused.returncode != 0
    assert testbed.client.has_object(key)


def test_move_to_the_cluster_leaves_the_content_only_there(testbed: Testbed) -> None:
    key = testbed.client.add("moved", b"there and back")
    testbed.client.annex("move", "--to", "mycl", "moved")
    assert not testbed.client.has_object(key)
    assert testbed.cluster.holders(key) == [True] * 3
    assert testbed.client.locations(key) == testbed.nodes
    testbed.client.annex("get", "moved")
    assert testbed.client.object_bytes(key) == b"there and back"
    assert testbed.cluster.holders(key) == [True] * 3


def test_drop_from_the_cluster_leaves_no_content_and_no_location(testbed: Testbed) -> None:
    key = testbed.client.add("dropped", b"gone from every node")
    testbed.client.annex("copy", "--to", "mycl", "dropped")
    testbed.client.annex("drop", "--from", "mycl", "dropped")
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.client.locations(key) == {testbed.client.uuid}
    assert whereis(testbed.client, "dropped") == {testbed.client.uuid}


def test_drop_from_the_cluster_reaches_unrecorded_nodes(testbed: Testbed) -> None:
    key = testbed.client.add("unknown", b"on a node without anybody knowing")
    testbed.cluster.nodes[1].set_key(key, b"on a node without anybody knowing")
    testbed.client.annex("copy", "--to", "n1", "unknown")
    assert testbed.present(key) == {testbed.cluster.nodes[0].uuid}
    testbed.client.annex("drop", "--from", "mycl", "unknown")
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.present(key) == set()


def test_drop_of_the_last_copy_from_the_cluster_is_refused(testbed: Testbed) -> None:
    key = testbed.client.add("last", b"nowhere else")
    testbed.client.annex("move", "--to", "mycl", "last")
    refused = testbed.client.annex("drop", "--from", "mycl", "last", check=False)
    assert refused.returncode != 0
    assert testbed.cluster.holders(key) == [True] * 3
    assert testbed.client.locations(key) == testbed.nodes


def test_node_remotes_store_check_and_drop_on_one_node_only(testbed: Testbed) -> None:
    key = testbed.client.add("one", b"on the second disk")
    testbed.client.annex("copy", "--to", "n2", "one")
    second = testbed.cluster.nodes[1].uuid
    assert testbed.cluster.holders(key) == [False, True, False]
    assert testbed.present(key) == {second}
    assert whereis(testbed.client, "one") == {testbed.client.uuid, testbed.cluster.uuid, second}
    testbed.client.annex("fsck", "--from", "n2", "one")
    testbed.client.annex("drop", "--from", "n2", "one")
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.present(key) == set()


def test_fsck_from_the_cluster_verifies_the_content(testbed: Testbed) -> None:
    key = testbed.client.add("checked", b"as it should be")
    testbed.client.annex("copy", "--to", "mycl", "checked")
    done = testbed.client.annex("fsck", "--from", "mycl", "checked")
    assert "(checksum...) ok" in text(done)
    assert testbed.present(key) == testbed.nodes


def test_fsck_finds_content_a_node_has_damaged(testbed: Testbed) -> None:
    key = testbed.client.add("damaged", b"in order, at first")
    testbed.client.annex("copy", "--to", "n1", "damaged")
    testbed.cluster.nodes[0].damage_object(key, b"in order no longer")
    done = testbed.client.annex("fsck", "--from", "n1", "damaged", check=False)
    assert done.returncode != 0
    assert "Bad file content" in text(done)
    assert testbed.present(key) == set()


def test_fsck_finds_content_the_nodes_have_lost(testbed: Testbed) -> None:
    key = testbed.client.add("vanished", b"here today")
    testbed.client.annex("copy", "--to", "n3", "vanished")
    testbed.cluster.nodes[2].annex("drop", "--force", "--key", key)
    done = testbed.client.annex("fsck", "--from", "n3", "vanished", check=False)
    assert testbed.present(key) == set()
    assert "fixing location log" in text(done)


def test_jobs_share_the_work_without_losing_a_location(testbed: Testbed) -> None:
    contents = {f"many/{number}": b"one of many: %d" % number for number in range(6)}
    for name, content in contents.items():
        testbed.client.write(name, content)
    testbed.client.annex("add", "--quiet", "many")
    keys = {name: testbed.client.key(name) for name in contents}
    testbed.client.annex("copy", "-J3", "--to", "mycl", "many")
    for key in keys.values():
        assert testbed.cluster.holders(key) == [True] * 3
        assert testbed.present(key) == testbed.nodes
    testbed.client.annex("drop", "-J3", "--force", "many")
    testbed.client.annex("get", "-J3", "--from", "mycl", "many")
    for name, content in contents.items():
        assert testbed.client.object_bytes(keys[name]) == content
    testbed.client.annex("drop", "-J3", "--from", "mycl", "many")
    assert [testbed.present(key) for key in keys.values()] == [set()] * 6
