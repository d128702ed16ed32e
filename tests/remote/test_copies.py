"""Storing to a cluster, and how git-annex counts what is there: copy, whereis, drop, get, move, fsck."""

from __future__ import annotations

import pytest

from tests.remote.sites import Site, messages, text, whereis


def test_copy_stores_on_every_node_and_whereis_lists_them_and_the_cluster(site: Site) -> None:
    key = site.client.add("copied", b"for every node")
    site.client.annex("copy", "--to", "mycl", "copied")
    assert [node.object_bytes(key) for node in site.cluster.nodes] == [b"for every node"] * 3
    assert site.client.locations(key) == {site.client.uuid, *site.nodes}
    assert whereis(site.client, "copied") == {site.client.uuid, site.cluster.uuid, *site.nodes}


def test_locations_are_shared_by_the_git_annex_branch(site: Site) -> None:
    key = site.client.add("shared", b"for whoever pulls")
    site.client.annex("copy", "--to", "mycl", "shared")
    assert not list((site.client.path / ".git/annex/journal-private").glob(f"*{key}.log"))
    site.client.git("push", "--quiet", "origin", "git-annex:refs/heads/synced/git-annex")
    site.cluster.gateway.annex("merge", "--quiet")
    assert site.cluster.gateway.locations(key) == {site.client.uuid, *site.nodes}


@pytest.mark.parametrize("command", [("copy", "--fast"), ("transferkey",)])
def test_an_upload_restores_lost_locations_of_what_every_node_has(site: Site, command: tuple[str, ...]) -> None:
    name = "lost " + " ".join(command)
    key = site.client.add(name, name.encode())
    site.client.annex("copy", "--to", "mycl", name)
    # A fast copy asks nobody about content that it knows to be on any node.
    lost = site.cluster.nodes if "--fast" in command else site.cluster.nodes[1:]
    for node in lost:
        site.client.annex("setpresentkey", key, node.uuid, "0")
    assert site.present(key) == site.nodes - {node.uuid for node in lost}
    done = site.client.annex(*command, "--to", "mycl", key if command == ("transferkey",) else name, "--debug")
    assert any(said.startswith("< ALREADY-HAVE-PLUS") for said in messages(done))
    assert not any(said.startswith("> DATA") for said in messages(done))
    assert site.present(key) == site.nodes


@pytest.mark.parametrize("command", [("copy", "--to"), ("fsck", "--fast", "--from")])
def test_content_on_one_node_is_present_and_nothing_is_sent_to_the_others(site: Site, command: tuple[str, ...]) -> None:
    name = "partly " + command[0]
    key = site.client.add(name, name.encode())
    site.client.annex("copy", "--to", "n3", name)
    site.client.annex(*command, "mycl", name)
    assert site.cluster.holders(key) == [False, False, True]
    assert site.present(key) == {site.cluster.nodes[2].uuid}


def test_what_is_not_here_is_present_on_one_node_and_no_location_is_invented(site: Site) -> None:
    key = site.client.add("elsewhere", b"on the second node only")
    site.client.annex("copy", "--to", "n2", "elsewhere")
    site.client.annex("drop", "--force", "elsewhere")
    site.client.annex("fsck", "--fast", "--from", "mycl", "elsewhere")
    assert site.cluster.holders(key) == [False, True, False]
    assert site.present(key) == {site.cluster.nodes[1].uuid}


@pytest.mark.slow
def test_drop_counts_the_nodes_as_copies_and_get_brings_the_content_back(site: Site) -> None:
    content = bytes(range(256)) * 5000
    key = site.client.add("counted", content)
    site.client.annex("copy", "--to", "mycl", "counted")
    refused = site.client.annex("drop", "-N4", "counted", check=False)
    assert refused.returncode != 0
    assert "Could only verify the existence of 3 out of 4 necessary copies" in text(refused)
    assert site.client.has_object(key)
    site.client.annex("drop", "-N3", "counted")
    assert not site.client.has_object(key)
    assert site.present(key) == site.nodes
    site.client.annex("get", "--from", "mycl", "counted")
    assert site.client.object_bytes(key) == content


def test_a_cluster_without_node_remotes_is_no_copy(site: Site) -> None:
    key = site.client.add("alone", b"the cluster alone")
    site.client.annex("copy", "--to", "mycl", "alone")
    without = [argument for n in "123" for argument in ("-c", f"remote.n{n}.annex-ignore=true")]
    refused = site.client.git(*without, "annex", "drop", "alone", check=False)
    assert refused.returncode != 0
    assert site.client.has_object(key)


def test_move_to_the_cluster_leaves_the_content_there_only(site: Site) -> None:
    key = site.client.add("moved", b"there and back")
    site.client.annex("move", "--to", "mycl", "moved")
    assert not site.client.has_object(key)
    assert site.cluster.holders(key) == [True] * 3
    assert site.client.locations(key) == site.nodes
    site.client.annex("get", "moved")
    assert site.client.object_bytes(key) == b"there and back"
    assert site.cluster.holders(key) == [True] * 3


def test_drop_from_the_cluster_leaves_no_content_and_no_location(site: Site) -> None:
    key = site.client.add("dropped", b"gone from every node")
    site.client.annex("copy", "--to", "mycl", "dropped")
    site.client.annex("drop", "--from", "mycl", "dropped")
    assert site.cluster.holders(key) == [False] * 3
    assert site.client.locations(key) == {site.client.uuid}
    assert whereis(site.client, "dropped") == {site.client.uuid}


def test_drop_from_the_cluster_reaches_nodes_that_the_log_does_not_name(site: Site) -> None:
    key = site.client.add("unknown", b"on a node without anybody knowing")
    site.cluster.nodes[1].set_key(key, b"on a node without anybody knowing")
    site.client.annex("copy", "--to", "n1", "unknown")
    assert site.present(key) == {site.cluster.nodes[0].uuid}
    site.client.annex("drop", "--from", "mycl", "unknown")
    assert site.cluster.holders(key) == [False] * 3
    assert site.present(key) == set()


def test_drop_of_the_last_copy_from_the_cluster_is_refused(site: Site) -> None:
    key = site.client.add("last", b"nowhere else")
    site.client.annex("move", "--to", "mycl", "last")
    refused = site.client.annex("drop", "--from", "mycl", "last", check=False)
    assert refused.returncode != 0
    assert site.cluster.holders(key) == [True] * 3
    assert site.client.locations(key) == site.nodes


def test_node_remotes_store_check_and_drop_one_node_alone(site: Site) -> None:
    key = site.client.add("one", b"on the second disk")
    site.client.annex("copy", "--to", "n2", "one")
    second = site.cluster.nodes[1].uuid
    assert site.cluster.holders(key) == [False, True, False]
    assert site.present(key) == {second}
    assert whereis(site.client, "one") == {site.client.uuid, site.cluster.uuid, second}
    site.client.annex("fsck", "--from", "n2", "one")
    site.client.annex("drop", "--from", "n2", "one")
    assert site.cluster.holders(key) == [False] * 3
    assert site.present(key) == set()


def test_fsck_from_the_cluster_verifies_the_content(site: Site) -> None:
    key = site.client.add("checked", b"as it should be")
    site.client.annex("copy", "--to", "mycl", "checked")
    done = site.client.annex("fsck", "--from", "mycl", "checked")
    assert "(checksum...) ok" in text(done)
    assert site.present(key) == site.nodes


def test_fsck_finds_what_a_node_has_damaged(site: Site) -> None:
    key = site.client.add("damaged", b"in order, at first")
    site.client.annex("copy", "--to", "n1", "damaged")
    object_path = site.cluster.nodes[0].object_path(key)
    assert object_path is not None
    object_path.chmod(0o644)
    object_path.write_bytes(b"in order no longer")
    done = site.client.annex("fsck", "--from", "n1", "damaged", check=False)
    assert done.returncode != 0
    assert "Bad file content" in text(done)
    assert site.present(key) == set()


def test_fsck_finds_what_the_nodes_have_lost(site: Site) -> None:
    key = site.client.add("vanished", b"here today")
    site.client.annex("copy", "--to", "n3", "vanished")
    site.cluster.nodes[2].annex("drop", "--force", "--key", key)
    done = site.client.annex("fsck", "--from", "n3", "vanished", check=False)
    assert site.present(key) == set()
    assert "fixing location log" in text(done)


def test_jobs_share_the_work_without_losing_a_location(site: Site) -> None:
    contents = {f"many/{number}": b"one of many: %d" % number for number in range(6)}
    for name, content in contents.items():
        site.client.write(name, content)
    site.client.annex("add", "--quiet", "many")
    keys = {name: site.client.key(name) for name in contents}
    site.client.annex("copy", "-J3", "--to", "mycl", "many")
    for key in keys.values():
        assert site.cluster.holders(key) == [True] * 3
        assert site.present(key) == site.nodes
    site.client.annex("drop", "-J3", "--force", "many")
    site.client.annex("get", "-J3", "--from", "mycl", "many")
    for name, content in contents.items():
        assert site.client.object_bytes(keys[name]) == content
    site.client.annex("drop", "-J3", "--from", "mycl", "many")
    assert [site.present(key) for key in keys.values()] == [set()] * 6
