"""A drop that fails on some nodes: the removed copies are gone from the log, and the others are named."""

from __future__ import annotations

import pytest

from tests.remote.testbed import Testbed, messages, text
from tests.support.repositories import DESCRIPTIONS, locked


@pytest.mark.parametrize("held", [0, 2])
def test_drop_names_a_node_with_locked_content_by_its_description(testbed: Testbed, held: int) -> None:
    name = f"locked{held}"
    key = testbed.client.add(name, b"held by somebody %d" % held)
    testbed.client.annex("copy", "--to", "mycl", name)
    holder = testbed.cluster.nodes[held]
    with locked(holder, key):
        done = testbed.client.annex("drop", "--from", "mycl", name, check=False)
        assert done.returncode != 0
        assert testbed.cluster.holders(key) == [node is holder for node in testbed.cluster.nodes]
        assert testbed.present(key) == {holder.uuid}
    said = text(done)
    removed = ", ".join(sorted(DESCRIPTIONS[n] for n in range(3) if n != held))
    assert f"removed from {removed}; {DESCRIPTIONS[held]} still has it" in said
    assert "locked" in said
    # Once it is given up, the same command does the rest.
    testbed.client.annex("drop", "--from", "mycl", name)
    assert testbed.cluster.holders(key) == [False] * 3
    assert testbed.present(key) == set()


def test_drop_with_all_nodes_locked_changes_nothing_and_names_all(testbed: Testbed) -> None:
    key = testbed.client.add("all", b"held everywhere")
    testbed.client.annex("copy", "--to", "mycl", "all")
    one, two, three = testbed.cluster.nodes
    with locked(one, key), locked(two, key), locked(three, key):
        done = testbed.client.annex("drop", "--from", "mycl", "all", "--debug", check=False)
    assert done.returncode != 0
    assert "< FAILURE" in messages(done)
    assert testbed.present(key) == testbed.nodes
    assert "removed from no node" in text(done)
    for description in DESCRIPTIONS[:3]:
        assert f"{description} still has it" in text(done)


def test_an_unrecorded_node_is_found_and_named(testbed: Testbed) -> None:
    """The log did not list it; the gateway names the nodes it removed from, not those where it failed."""
    content = b"held by a node that nobody suspects"
    key = testbed.client.add("suspect", content)
    testbed.cluster.nodes[1].set_key(key, content)
    testbed.client.annex("copy", "--to", "n1", "suspect")
    with locked(testbed.cluster.nodes[1], key):
        done = testbed.client.annex("drop", "--from", "mycl", "suspect", check=False)
    assert done.returncode != 0
    assert testbed.cluster.holders(key) == [False, True, False]
    assert f"{DESCRIPTIONS[1]} still has it" in text(done)
    # It is known now, so the content is counted, and can be dropped.
    assert testbed.present(key) == {testbed.cluster.nodes[1].uuid}


def test_drop_from_one_locked_node_fails_and_keeps_its_location(testbed: Testbed) -> None:
    key = testbed.client.add("single", b"held by the first")
    testbed.client.annex("copy", "--to", "mycl", "single")
    with locked(testbed.cluster.nodes[0], key):
        done = testbed.client.annex("drop", "--from", "n1", "single", check=False)
    assert done.returncode != 0
    assert testbed.present(key) == testbed.nodes
    assert testbed.cluster.holders(key) == [True] * 3


def test_move_from_the_cluster_fails_if_a_node_keeps_the_content(testbed: Testbed) -> None:
    key = testbed.client.add("moving", b"held while it moves")
    testbed.client.annex("move", "--to", "mycl", "moving")
    with locked(testbed.cluster.nodes[2], key):
        done = testbed.client.annex("move", "--from", "mycl", "moving", check=False)
    assert done.returncode != 0
    assert DESCRIPTIONS[2] in text(done)
    assert testbed.client.object_bytes(key) == b"held while it moves"
    assert testbed.client.locations(key) == {testbed.client.uuid, testbed.cluster.nodes[2].uuid}


def test_a_node_that_may_have_lost_unrecorded_content_is_named(own_testbed: Testbed) -> None:
    """git-annex's gateway gives no answer with a node away; what it has removed by then is found out."""
    lost = 0
    for away in own_testbed.cluster.nodes:
        content = f"while {away.path.name} is away".encode()
        key = own_testbed.client.add(away.path.name, content)
        for node in own_testbed.cluster.nodes:
            node.set_key(key, content)
            own_testbed.cluster.gateway.annex("setpresentkey", key, node.uuid, "1")
        own_testbed.client.annex("setpresentkey", key, away.uuid, "1")
        with away.unplugged():
            done = own_testbed.client.annex("drop", "--from", "mycl", away.path.name, check=False)
        assert done.returncode != 0
        assert "from no node" not in text(done)
        for node, description in zip(own_testbed.cluster.nodes, DESCRIPTIONS, strict=False):
            if not node.has_object(key):
                lost += 1
                assert description in text(done)
    assert lost
