"""git-annex's own client through our gateway, over p2p-annex::cluster:."""

from __future__ import annotations

import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from cluster_remote.gateway.tokens import for_node
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from tests.cli.command import cluster_remote
from tests.gateway.gateways import Gateway, add_native_remote, native_client
from tests.support.repositories import Repository
from tests.support.sockets import serve_p2p


def stored(client: Repository, name: str, content: bytes) -> str:
    """Copies a new file to the cluster; its key."""
    key = client.add(name, content)
    client.annex("copy", "--quiet", "--to", "gw", name)
    return key


def test_copy_stores_on_every_node_and_the_log_names_them(gateway: Gateway, native: Repository) -> None:
    key = stored(native, "copied", b"to all of them\n")
    assert gateway.cluster.holders(key) == [True, True, True]
    nodes = {node.uuid for node in gateway.cluster.nodes}
    assert native.locations(key) == {native.uuid, *nodes}
    assert nodes <= gateway.cluster.gateway.locations(key)


def test_get_returns_the_stored_bytes(gateway: Gateway, native: Repository) -> None:
    content = bytes(range(256)) * 5000
    key = stored(native, "fetched", content)
    native.annex("drop", "--force", "fetched")
    assert not native.has_object(key)
    native.annex("get", "--from", "gw", "fetched")
    assert native.object_bytes(key) == content


def test_an_interrupted_get_resumes(gateway: Gateway, native: Repository) -> None:
    content = bytes(range(256)) * 5000
    key = stored(native, "resumed", content)
    native.annex("drop", "--force", "resumed")
    native.leave_partial(key, content[:700_000])
    said = native.annex("get", "--debug", "--from", "gw", "resumed").stderr.decode()
    assert re.search(r"\] \[?.*GET 700000 resumed", said) or "GET 700000" in said
    assert native.object_bytes(key) == content


def test_drop_from_the_cluster_removes_from_every_node(gateway: Gateway, native: Repository) -> None:
    key = stored(native, "dropped", b"off again\n")
    native.annex("drop", "--from", "gw", "dropped")
    assert gateway.cluster.holders(key) == [False, False, False]
    assert native.locations(key) == {native.uuid}


def test_fsck_finds_missing_content(gateway: Gateway, native: Repository) -> None:
    key = stored(native, "checked", b"looked after\n")
    native.annex("fsck", "--from", "gw", "checked")
    for node in gateway.cluster.nodes:
        node.annex("drop", "--force", "--key", key)
        gateway.cluster.gateway.annex("setpresentkey", key, node.uuid, "0")
    assert native.annex("fsck", "--from", "gw", "checked", check=False).returncode == 1


def test_move_to_and_from_the_cluster(gateway: Gateway, native: Repository) -> None:
    key = native.add("moved", b"there and back\n")
    native.annex("move", "--to", "gw", "moved")
    assert gateway.cluster.holders(key) == [True, True, True]
    assert not native.has_object(key)
    native.annex("move", "--from", "gw", "moved")
    assert gateway.cluster.holders(key) == [False, False, False]
    assert native.has_object(key)


@pytest.fixture(scope="module")
def with_nodes(gateway: Gateway) -> Repository:
    """A clone that has the first two nodes as remotes too, by the same gateway and the same token."""
    client = native_client(gateway, "withnodes")
    for number, node in enumerate(gateway.cluster.nodes[:2], 1):
        token = for_node(gateway.tokens[Mode.READ_WRITE], UUID(node.uuid))
        add_native_remote(client, f"gw-node{number}", f"{gateway.unix}?node={node.uuid}", node.uuid, token)
    return client


def test_a_local_drop_relies_on_a_nodes_lock(gateway: Gateway, with_nodes: Repository) -> None:
    key = stored(with_nodes, "counted", b"somewhere else too\n")
    said = with_nodes.annex("drop", "--debug", "--numcopies=2", "counted").stderr.decode()
    assert not with_nodes.has_object(key)
    assert f"LOCKCONTENT {key}" in said
    assert "UNLOCKCONTENT" in said
    # The locks have been given up: the nodes can remove it again.
    with_nodes.annex("drop", "--force", "--from", "gw", "counted")
    assert gateway.cluster.holders(key) == [False, False, False]


def test_a_local_drop_is_refused_if_the_node_has_lost_the_content(gateway: Gateway, with_nodes: Repository) -> None:
    key = stored(with_nodes, "lost", b"nowhere else\n")
    for node in gateway.cluster.nodes:
        node.annex("drop", "--force", "--key", key)
    assert with_nodes.annex("drop", "lost", check=False).returncode == 1
    assert with_nodes.has_object(key)


def test_one_node_can_be_stored_to_and_removed_from_alone(gateway: Gateway, with_nodes: Repository) -> None:
    key = with_nodes.add("alone", b"on one node\n")
    with_nodes.annex("copy", "--to", "gw-node2", "alone")
    assert gateway.cluster.holders(key) == [False, True, False]
    with_nodes.annex("drop", "--from", "gw-node2", "alone")
    assert gateway.cluster.holders(key) == [False, False, False]
    assert with_nodes.locations(key) == {with_nodes.uuid}


def test_git_fetches_and_pushes_through_the_gateway(gateway: Gateway, native: Repository) -> None:
    here = gateway.cluster.gateway
    here.git("commit", "--quiet", "--allow-empty", "--message", "news")
    native.git("fetch", "--quiet", "gw")
    assert native.git("rev-parse", "gw/main").stdout == here.git("rev-parse", "main").stdout
    native.write("pushed", bytes(range(256)) * 8000)
    native.git("-c", "annex.largefiles=nothing", "add", "pushed")
    native.git("commit", "--quiet", "--message", "to be pushed")
    native.git("push", "--quiet", "gw", "HEAD:refs/heads/pushed")
    assert here.git("rev-parse", "pushed").stdout == native.git("rev-parse", "HEAD").stdout


def test_git_clones_through_the_gateway(gateway: Gateway, native: Repository) -> None:
    environment = gateway.cluster.gateway.environment
    path = environment.directory / "cloned"
    environment.run(
        "git",
        "clone",
        "--quiet",
        f"p2p-annex::cluster:{gateway.tcp}",
        path,
        env={"GIT_ANNEX_P2P_AUTHTOKEN": gateway.tokens[Mode.READ_ONLY]},
    )
    cloned = Repository(path, environment)
    assert cloned.git("rev-parse", "HEAD").stdout == gateway.cluster.gateway.git("rev-parse", "main").stdout


def test_sync_carries_branches_and_content(gateway: Gateway, native: Repository) -> None:
    key = native.add("synced", b"by sync\n")
    native.git("commit", "--quiet", "--message", "synced")
    native.annex("sync", "--quiet", "--content", "gw", timeout=120)
    assert gateway.cluster.holders(key) == [True, True, True]
    there = gateway.cluster.gateway.git("log", "--format=%s", "synced/main").stdout.decode()
    assert "synced" in there.splitlines()


def test_testremote_refuses_p2p_transports_whatever_the_server(gateway: Gateway, native: Repository) -> None:
    node = gateway.cluster.nodes[0]
    with serve_p2p(node) as (path, token):
        add_native_remote(native, "theirs", f"unix:{path}", node.uuid, token)
        for remote in ("gw", "theirs"):
            refused = native.annex("testremote", "--fast", remote, check=False)
            assert refused.returncode != 0
            assert b"failed disabling exportree" in refused.stdout + refused.stderr


def test_a_link_is_all_a_client_needs(gateway: Gateway) -> None:
    client = gateway.cluster.clone("linked")
    link = cluster_remote(
        gateway.cluster.gateway, "token", "create", "--link", "--address", gateway.tcp, "--note", "by link"
    ).out
    assert link.startswith(f"p2p-annex::cluster:{gateway.tcp}:")
    client.annex("p2p", "--link", "--name", "gw", input=link.encode())
    assert client.config("remote.gw.annex-uuid") == gateway.cluster.uuid
    key = stored(client, "by link", b"linked\n")
    assert gateway.cluster.holders(key) == [True, True, True]


def test_a_link_can_be_to_a_node(gateway: Gateway) -> None:
    client = gateway.cluster.clone("linked-node")
    node = gateway.cluster.nodes[2]
    link = cluster_remote(
        gateway.cluster.gateway, "token", "create", "--link", "--address", gateway.unix, "--node", "node3"
    ).out
    client.annex("p2p", "--link", "--name", "node3", input=link.encode())
    assert client.config("remote.node3.annex-uuid") == node.uuid
    key = client.add("to node3", b"to node3\n")
    client.annex("copy", "--to", "node3", "to node3")
    assert gateway.cluster.holders(key) == [False, False, True]


# What each token allows


def test_a_read_only_token_allows_only_get(gateway: Gateway, native: Repository) -> None:
    key = stored(native, "read only", b"only to be read\n")
    reader = native_client(gateway, "reader", mode=Mode.READ_ONLY)
    reader.git("fetch", "--quiet", "gw")
    reader.annex("merge", "--quiet")
    reader.annex("get", "--from", "gw", "--key", key)
    assert reader.has_object(key)
    other = reader.add("written", b"not to be written\n")
    for command in (("copy", "--to", "gw", "written"), ("drop", "--from", "gw", "--key", key)):
        assert reader.annex(*command, check=False).returncode == 1
    pushed = reader.git("push", "gw", "HEAD:refs/heads/written", check=False)
    assert pushed.returncode != 0
    assert b"remote error: this repository is read-only; write access denied" in pushed.stderr
    assert gateway.cluster.gateway.git("rev-parse", "--verify", "written", check=False).returncode != 0
    assert gateway.cluster.holders(key) == [True, True, True]
    assert gateway.cluster.holders(other) == [False, False, False]


def test_an_append_only_token_allows_storing_but_not_removing(gateway: Gateway) -> None:
    writer = native_client(gateway, "writer", mode=Mode.APPEND_ONLY)
    key = stored(writer, "appended", b"to stay\n")
    assert gateway.cluster.holders(key) == [True, True, True]
    assert writer.annex("drop", "--from", "gw", "appended", check=False).returncode == 1
    assert gateway.cluster.holders(key) == [True, True, True]
    pushed = writer.git("push", "gw", "HEAD:refs/heads/appended", check=False)
    assert pushed.returncode != 0
    assert b"remote error: this repository is append-only; git push denied" in pushed.stderr
    assert gateway.cluster.gateway.git("rev-parse", "--verify", "appended", check=False).returncode != 0


def test_a_wrong_token_allows_nothing(gateway: Gateway) -> None:
    stranger = native_client(gateway, "stranger")
    stranger.git("remote", "remove", "gw")
    add_native_remote(stranger, "gw", gateway.unix, gateway.cluster.uuid, "a" * 52)
    key = stranger.add("strange", b"from a stranger\n")
    assert stranger.annex("copy", "--to", "gw", "strange", check=False).returncode == 1
    assert stranger.git("fetch", "gw", check=False).returncode != 0
    assert gateway.cluster.holders(key) == [False, False, False]


# Many at once


@pytest.mark.slow
def test_ten_clients_store_and_fetch_at_the_same_time(gateway: Gateway, native: Repository) -> None:
    contents = {f"many {number}": b"%d" % number * 200_000 for number in range(10)}
    keys = {name: native.add(name, content) for name, content in contents.items()}
    done = native.annex("copy", "-J10", "--to", "gw", *contents, timeout=120)
    assert done.returncode == 0
    assert all(gateway.cluster.holders(key) == [True, True, True] for key in keys.values())
    first = native_client(gateway, "one", mode=Mode.READ_ONLY)
    add_native_remote(first, "gw-tcp", gateway.tcp, gateway.cluster.uuid, gateway.tokens[Mode.READ_ONLY])
    first.git("fetch", "--quiet", "gw")
    first.annex("merge", "--quiet")
    clients = [
        Repository(shutil.copytree(first.path, first.path.with_name(f"one{number}"), symlinks=True), first.environment)
        for number in range(10)
    ]

    def fetch(number: int) -> bytes:
        key = keys[f"many {number}"]
        clients[number].annex("get", "--from", "gw-tcp" if number % 2 else "gw", "--key", key, timeout=120)
        return clients[number].object_bytes(key)

    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(fetch, range(10))) == list(contents.values())
