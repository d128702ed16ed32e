"""A drop that not every node can do: what is removed is gone from the log, and the rest is named."""

from __future__ import annotations

import pytest

from tests.cluster.real import gone
from tests.remote.sites import Site, messages, text
from tests.support.repositories import DESCRIPTIONS, locked


@pytest.mark.parametrize("held", [0, 2])
def test_drop_names_the_node_that_has_the_content_locked_by_its_description(site: Site, held: int) -> None:
    name = f"locked{held}"
    key = site.client.add(name, b"held by somebody %d" % held)
    site.client.annex("copy", "--to", "mycl", name)
    holder = site.cluster.nodes[held]
    with locked(holder, key):
        done = site.client.annex("drop", "--from", "mycl", name, check=False)
        assert done.returncode != 0
        assert site.cluster.holders(key) == [node is holder for node in site.cluster.nodes]
        assert site.present(key) == {holder.uuid}
    said = text(done)
    removed = ", ".join(sorted(DESCRIPTIONS[n] for n in range(3) if n != held))
    assert f"removed from {removed}; {DESCRIPTIONS[held]} still has it" in said
    assert "locked" in said
    # Once it is given up, the same command does the rest.
    site.client.annex("drop", "--from", "mycl", name)
    assert site.cluster.holders(key) == [False] * 3
    assert site.present(key) == set()


def test_drop_that_no_node_can_do_changes_nothing_and_names_all(site: Site) -> None:
    key = site.client.add("all", b"held everywhere")
    site.client.annex("copy", "--to", "mycl", "all")
    one, two, three = site.cluster.nodes
    with locked(one, key), locked(two, key), locked(three, key):
        done = site.client.annex("drop", "--from", "mycl", "all", "--debug", check=False)
    assert done.returncode != 0
    assert "< FAILURE" in messages(done)
    assert site.present(key) == site.nodes
    assert "removed from no node" in text(done)
    for description in DESCRIPTIONS[:3]:
        assert f"{description} still has it" in text(done)


def test_a_node_that_the_log_does_not_name_is_found_and_named(site: Site) -> None:
    """Nobody knew that it has the content; the gateway tells those it removed from, not those it failed at."""
    content = b"held by a node that nobody suspects"
    key = site.client.add("suspect", content)
    site.cluster.nodes[1].set_key(key, content)
    site.client.annex("copy", "--to", "n1", "suspect")
    with locked(site.cluster.nodes[1], key):
        done = site.client.annex("drop", "--from", "mycl", "suspect", check=False)
    assert done.returncode != 0
    assert site.cluster.holders(key) == [False, True, False]
    assert f"{DESCRIPTIONS[1]} still has it" in text(done)
    # It is known now, so the content is counted, and can be dropped.
    assert site.present(key) == {site.cluster.nodes[1].uuid}


def test_drop_from_one_locked_node_fails_and_keeps_its_location(site: Site) -> None:
    key = site.client.add("single", b"held by the first")
    site.client.annex("copy", "--to", "mycl", "single")
    with locked(site.cluster.nodes[0], key):
        done = site.client.annex("drop", "--from", "n1", "single", check=False)
    assert done.returncode != 0
    assert site.present(key) == site.nodes
    assert site.cluster.holders(key) == [True] * 3


def test_move_from_the_cluster_fails_where_a_node_keeps_the_content(site: Site) -> None:
    key = site.client.add("moving", b"held while it moves")
    site.client.annex("move", "--to", "mycl", "moving")
    with locked(site.cluster.nodes[2], key):
        done = site.client.annex("move", "--from", "mycl", "moving", check=False)
    assert done.returncode != 0
    assert DESCRIPTIONS[2] in text(done)
    assert site.client.object_bytes(key) == b"held while it moves"
    assert site.client.locations(key) == {site.client.uuid, site.cluster.nodes[2].uuid}


def test_a_node_that_may_have_lost_what_this_log_did_not_know_of_is_named(own_site: Site) -> None:
    """git-annex's gateway gives no answer with a node away; what it has removed by then is found out."""
    lost = 0
    for away in own_site.cluster.nodes:
        content = f"while {away.path.name} is away".encode()
        key = own_site.client.add(away.path.name, content)
        for node in own_site.cluster.nodes:
            node.set_key(key, content)
            own_site.cluster.gateway.annex("setpresentkey", key, node.uuid, "1")
        own_site.client.annex("setpresentkey", key, away.uuid, "1")
        with gone(away):
            done = own_site.client.annex("drop", "--from", "mycl", away.path.name, check=False)
        assert done.returncode != 0
        assert "from no node" not in text(done)
        for node, description in zip(own_site.cluster.nodes, DESCRIPTIONS, strict=False):
            if not node.has_object(key):
                lost += 1
                assert description in text(done)
    assert lost
