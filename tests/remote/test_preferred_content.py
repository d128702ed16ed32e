"""Preferred content: each node gets what its rules ask for, by git-annex's own judgement, whatever way leads there."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import gateway_of
from tests.remote.driver import Driver
from tests.remote.testbed import initremote, messages, text
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.slow import only_in_all, representatives
from tests.support.ssh import SshServer

WAYS = ["serverless", "served", "native"]


@contextlib.contextmanager
def client_of(cluster: Cluster, way: str) -> Iterator[Repository]:
    """A repository with the cluster as its remote `all`, by each way that there is; rules are set before."""
    if way == "serverless":
        initremote(cluster.gateway, "all", sameas=cluster.uuid)
        yield cluster.gateway
        return
    client = cluster.clone()
    if way == "native":
        initremote(client, "all", f"url={cluster.gateway.path}", sameas=cluster.uuid)
        yield client
        return
    with gateway_of(cluster) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        initremote(client, "all", f"url={gateway.unix}", sameas=cluster.uuid, env=token)
        yield client


@pytest.mark.parametrize("way", representatives(WAYS, "served"))
def test_preferred_content_naming_files_sees_the_file_name(cluster: Cluster, way: str) -> None:
    cluster.gateway.annex("wanted", "node2", "include=Fotos/M*")
    cluster.gateway.annex("required", "node3", "exclude=*/tmp/* and exclude=tmp/*")
    cluster.gateway.annex("wanted", "node3", "not anything")
    with client_of(cluster, way) as client:
        keys = {name: client.add(name, name.encode()) for name in ("Fotos/Müller", "Fotos/Ott", "tmp/x")}
        client.annex("copy", "--quiet", "--to", "all", ".")
    assert {name: cluster.holders(key) for name, key in keys.items()} == {
        "Fotos/Müller": [True, True, True],
        "Fotos/Ott": [True, False, True],
        "tmp/x": [True, False, False],
    }


def test_the_file_name_is_sent_to_a_gateway_only_if_preferred_content_may_need_it(cluster: Cluster) -> None:
    initremote(cluster.gateway, "all", sameas=cluster.uuid)
    initremote(cluster.gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    cluster.gateway.add("secret", b"content")
    puts = [m for m in messages(cluster.gateway.annex("copy", "--debug", "--to", "all", "secret")) if "PUT " in m]
    assert puts
    cluster.gateway.annex("wanted", "node2", "include=*")
    puts += [m for m in messages(cluster.gateway.annex("copy", "--debug", "--to", "vault", "secret")) if "PUT " in m]
    assert not any("secret" in put for put in puts)


@pytest.mark.parametrize("way", ["serverless", *only_in_all("served")])
def test_with_a_node_unavailable_preferred_content_decides_among_the_others(cluster: Cluster, way: str) -> None:
    cluster.gateway.annex("wanted", "node2", "include=*.jpg")
    with client_of(cluster, way) as client:
        keys = {name: client.add(name, name.encode()) for name in ("a.jpg", "b.jpg", "c.txt", "d.txt")}
        client.annex("copy", "--quiet", "--to", "all", "a.jpg")
        with cluster.nodes[0].unplugged():
            said = text(client.annex("copy", "--to", "all", "b.jpg", "c.txt"))
        away = f"first disk (attic) [node1] is not there ({cluster.nodes[0].path}): left out"
        # A gateway of ours says so in its own log: the protocol has no words for it.
        assert said.count(away) == (way == "serverless")
        client.annex("copy", "--quiet", "--to", "all", "d.txt")
        present = {name: client.locations(key) for name, key in keys.items()}
    expected = {"a.jpg": [True, True, True], "b.jpg": [False, True, True], "c.txt": [False, False, True],
                "d.txt": [True, False, True]}  # fmt: skip
    assert {name: cluster.holders(key) for name, key in keys.items()} == expected
    for name, holds in expected.items():
        assert [node.uuid in present[name] for node in cluster.nodes] == holds


def test_a_node_lost_between_two_files_of_a_run_is_skipped(cluster: Cluster) -> None:
    cluster.gateway.annex("wanted", "node2", "include=*")
    initremote(cluster.gateway, "all", sameas=cluster.uuid)
    with Driver(cluster.gateway, cluster.uuid, {"encryption": "none", "sameas-uuid": cluster.uuid}) as program:
        program.prepare()
        numbers = itertools.count()

        def stored_on() -> list[bool]:
            key = cluster.gateway.add(f"f{next(numbers)}", os.urandom(1000))
            file = cluster.gateway.object_path(key)
            assert program.ask(f"TRANSFER STORE {key} {file}") == f"TRANSFER-SUCCESS STORE {key}"
            return cluster.holders(key)

        assert stored_on() == [True, True, True]
        with cluster.nodes[1].unplugged():
            assert stored_on() == [True, False, True]
        # It is skipped for ten times as long as it took to notice.
        assert wait_until(lambda: stored_on() == [True, True, True], 20)


def test_a_nodes_settings_apply_with_preferred_content_too(cluster: Cluster) -> None:
    gateway, (first, second, third) = cluster.gateway, cluster.nodes
    gateway.annex("wanted", "node1", "include=*")
    initremote(gateway, "all", sameas=cluster.uuid)
    # node1 is read-only. node2's cheapest remote is away, and its other remote is not configured as a node. node3 is
    # listed in cluster.log only: others can write to that, so it gets nothing.
    gateway.git("config", "remote.node1.annex-readonly", "true")
    gateway.git("remote", "add", "second", str(second.path))
    gateway.git("config", "remote.second.annex-uuid", second.uuid)
    gateway.git("config", "remote.node2.url", str(second.path.with_name("nowhere")))
    gateway.git("config", "remote.node2.annex-cost", "10")
    gateway.git("config", "--unset", "remote.node3.annex-cluster-node")
    key = gateway.add("f", b"content")
    gateway.annex("copy", "--quiet", "--to", "all", "f")
    assert cluster.holders(key) == [False, True, False]
    assert gateway.locations(key) & {first.uuid, second.uuid, third.uuid} == {second.uuid}


@pytest.mark.slow
def test_a_clone_without_the_cluster_says_how_to_apply_preferred_content(cluster: Cluster) -> None:
    client = cluster.clone()
    for number, node in enumerate(cluster.nodes, 1):
        client.git("remote", "add", f"node{number}", str(node.path))
    client.annex("info", "--fast", "--quiet")
    client.annex("wanted", cluster.nodes[1].uuid, "include=*.jpg")
    client.git("config", "annex.cluster.here", cluster.uuid)
    initremote(client, "all", sameas=cluster.uuid)
    client.git("config", "--unset", "annex.cluster.here")
    key = client.add("f", b"content")
    done = client.annex("copy", "--to", "all", "f", check=False)
    assert done.returncode == 1
    remedy = f"cluster-remote setup NAME --cluster {cluster.uuid} --node node1 --node node2 --node node3"
    assert remedy in text(done)
    client.environment.run(*remedy.replace("NAME", "mycluster").split(), cwd=client.path)
    client.annex("copy", "--quiet", "--to", "all", "f")
    assert cluster.holders(key) == [True, False, True]


RULES = {
    "node1": ("backup", "standard"),
    "node2": ("client", "standard"),
    "node3": ("shelf", "(include=*.jpg and balanced=shelf:1) or (exclude=*.jpg and sizebalanced=shelf:1)"),
    "node4": ("shelf", "(include=*.jpg and balanced=shelf:1) or (exclude=*.jpg and sizebalanced=shelf:1)"),
    "node5": ("papers", "groupwanted"),
}
"""For each of five nodes the group and the preferred content."""


def _with_rules(environment: Environment) -> Cluster:
    cluster = make_cluster(environment, environment.directory, nodes=5)
    for node, (group, wanted) in RULES.items():
        cluster.gateway.annex("group", node, group)
        cluster.gateway.annex("wanted", node, wanted)
        cluster.gateway.annex("maxsize", node, "1 GB")
    cluster.gateway.annex("groupwanted", "papers", "include=papers/* or smallerthan=1kb")
    return cluster


def _fifty_files(client: Repository) -> dict[str, str]:
    """Fifty files of several kinds and sizes, the same in each run, and their keys."""
    names = [f"{folder}/{number}.{kind}" for folder, kind, count in FILES for number in range(count)]
    for number, name in enumerate(names):
        client.write(name, name.encode() * (number * 29 % 97 + 1))
    client.annex("add", "--quiet", ".")
    return {name: client.key(name) for name in names}


FILES = (("photos", "jpg", 20), ("papers", "pdf", 10), ("archive/old", "txt", 10), ("music", "ogg", 10))


@pytest.mark.slow
def test_fifty_files_reach_the_same_nodes_as_with_git_annex_alone(
    make_environment: Callable[[], Environment],
) -> None:
    reached: dict[str, dict[str, list[bool]]] = {}
    environment = make_environment()
    with SshServer(environment) as server:
        environment.env |= server.variables
        cluster = _with_rules(environment)
        client = cluster.clone(source=server.url(cluster.gateway.path))
        client.annex("info", "--fast", "--quiet")
        keys = _fifty_files(client)
        client.annex("copy", "--quiet", "--to", "origin-mycluster", ".", timeout=250)
        expected = {name: cluster.holders(key) for name, key in keys.items()}
    for way in WAYS:
        cluster = _with_rules(make_environment())
        with client_of(cluster, way) as client:
            keys = _fifty_files(client)
            client.annex("copy", "--quiet", "--to", "all", ".", timeout=250)
            reached[way] = {name: cluster.holders(key) for name, key in keys.items()}
    for way in WAYS:
        assert reached[way] == expected, way
    # The rules that are to keep something from a node do.
    counts = [sum(column) for column in zip(*expected.values(), strict=True)]
    assert counts[:2] == [50, 50]
    assert all(0 < count < 50 for count in counts[2:])
