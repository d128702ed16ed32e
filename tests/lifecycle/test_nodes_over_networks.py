"""A cluster whose nodes are behind HTTP, a P2P network, and a socket of another gateway, by the commands."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cluster_remote.gateway.tokens import for_node
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import add_native_remote, gateway_of
from tests.gateway.test_web import cloned, web_of
from tests.lifecycle.conftest import cluster_remote, members
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository, make_cluster, make_repository
from tests.support.sockets import serve_p2p, serve_p2phttp

pytestmark = pytest.mark.slow


@dataclass
class Far:
    """A repository whose remotes web, peer, behind and disk are over HTTP, a P2P network, a gateway and a path."""

    work: Repository
    nodes: dict[str, Repository]

    @property
    def uuids(self) -> set[str]:
        return {node.uuid for node in self.nodes.values()}

    def holders(self, key: str) -> list[str]:
        return [name for name, node in self.nodes.items() if node.has_object(key)]


@pytest.fixture
def far(environment: Environment) -> Iterator[Far]:
    other = make_cluster(environment, environment.directory / "other")
    work = make_repository(environment, environment.directory / "work", "work")
    nodes = {"behind": other.nodes[0]}
    for name in ("web", "peer", "disk"):
        environment.run("git", "clone", "--quiet", work.path, environment.directory / name)
        nodes[name] = Repository(environment.directory / name, environment)
        nodes[name].annex("init", "--quiet", name)
    for name in ("web", "disk"):
        work.git("remote", "add", name, nodes[name].path)
    with serve_p2phttp(nodes["web"]) as port, serve_p2p(nodes["peer"]) as (path, token), gateway_of(other) as gateway:
        work.git("config", "remote.web.annexUrl", f"annex+http://localhost:{port}/git-annex/")
        add_native_remote(work, "peer", f"unix:{path}", nodes["peer"].uuid, token)
        uuid = nodes["behind"].uuid
        token = for_node(gateway.tokens[Mode.READ_WRITE], UUID(uuid))
        add_native_remote(work, "behind", f"{gateway.unix}?node={uuid}", uuid, token)
        work.git("fetch", "--quiet", "web")
        work.git("fetch", "--quiet", "disk")
        yield Far(work, nodes)


def test_a_cluster_of_nodes_behind_networks_does_all_that_one_of_disks_does(far: Far) -> None:
    work = far.work
    cluster_remote(work, "setup", "all", "--node", "web", "--node", "peer", "--node", "disk")
    cluster_remote(work, "node", "add", "all", "behind")
    uuid = work.config("annex.cluster.all")
    assert members(work, uuid) == far.uuids
    contents = {name: os.urandom(300_000) for name in far.nodes}
    keys = {name: work.add(f"for {name}", content) for name, content in contents.items()}
    work.annex("copy", "--quiet", "--to", "all", ".")
    for key in keys.values():
        assert sorted(far.holders(key)) == ["behind", "disk", "peer", "web"]
        assert far.uuids <= work.locations(key)
    said = cluster_remote(work, "status", "all")
    assert all(name in said for name in far.nodes)
    assert "unreachable" not in said
    cluster_remote(work, "check", "all")
    # On a P2P network, too, a repository is asked for its UUID, with the token that git-annex has for it.
    work.git("config", "--unset", "remote.peer.annex-uuid")
    cluster_remote(work, "status", "all")
    work.git("config", "remote.peer.annex-uuid", far.nodes["peer"].uuid)
    work.annex("drop", "--quiet", "--force", ".")
    for name, key in keys.items():
        # Each of them can give it alone.
        for other in far.nodes.keys() - {name}:
            far.nodes[other].annex("drop", "--quiet", "--force", "--key", key)
            work.annex("setpresentkey", key, far.nodes[other].uuid, "0")
        work.annex("get", "--quiet", "--from", "all", f"for {name}")
        assert work.object_bytes(key) == contents[name]
    work.annex("drop", "--quiet", "--from", "all", ".")
    assert all(far.holders(key) == [] for key in keys.values())
    cluster_remote(work, "node", "remove", "all", "behind")
    assert members(work, uuid) == far.uuids - {far.nodes["behind"].uuid}


def test_a_gateway_in_front_of_them_serves_git_annex_s_own_client(far: Far) -> None:
    work = far.work
    cluster_remote(work, "setup", "all", "--node", "web", "--node", "peer", "--node", "behind")
    uuid = work.config("annex.cluster.all")
    assert uuid
    with web_of(Cluster(work, [far.nodes[name] for name in ("web", "peer", "behind")], uuid, "all")) as web:
        alice = cloned(web)
        content = os.urandom(300_000)
        key = alice.add("photo", content)
        alice.annex("copy", "--quiet", "--to", "origin-all", "photo")
        assert sorted(far.holders(key)) == ["behind", "peer", "web"]
        # Relies on the lock of a node.
        alice.annex("drop", "--quiet", "photo")
        alice.annex("get", "--quiet", "--from", "origin-all", "photo")
        assert alice.object_bytes(key) == content
        alice.annex("drop", "--quiet", "--from", "origin-all", "photo")
        assert far.holders(key) == []


def test_a_node_on_a_network_that_is_away_is_named_and_the_others_go_on(far: Far) -> None:
    work = far.work
    cluster_remote(work, "setup", "all", "--node", "web", "--node", "peer", "--node", "disk")
    work.git("config", "remote.web.annexUrl", "annex+http://localhost:1/git-annex/")
    key = work.add("photo", b"photo")
    work.annex("copy", "--quiet", "--to", "all", "photo")
    assert sorted(far.holders(key)) == ["disk", "peer"]
    said = cluster_remote(work, "status", "all", code=1)
    assert "localhost:1" in said
    # A token that is lost leaves the node to git-annex, which says what it lacks.
    for file in (work.path / ".git/annex/creds").iterdir():
        file.unlink()
    other = work.add("other", b"other")
    work.annex("copy", "--quiet", "--to", "all", "other")
    assert far.holders(other) == ["disk"]
