"""Preferred content: each node gets what its rules ask for, by git-annex's own judgement, whatever way leads there."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.served import gateway_of
from tests.remote.sites import initremote, messages
from tests.support.repositories import Cluster, Repository

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


@pytest.mark.parametrize("way", WAYS)
def test_rules_that_name_files_see_the_file(cluster: Cluster, way: str) -> None:
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


def test_the_name_is_told_to_a_gateway_only_where_a_rule_may_ask_for_it(cluster: Cluster) -> None:
    initremote(cluster.gateway, "all", sameas=cluster.uuid)
    initremote(cluster.gateway, "vault", f"cluster={cluster.uuid}", "tracking=remote", "encryption=shared")
    cluster.gateway.add("secret", b"content")
    puts = [m for m in messages(cluster.gateway.annex("copy", "--debug", "--to", "all", "secret")) if "PUT " in m]
    assert puts
    cluster.gateway.annex("wanted", "node2", "include=*")
    puts += [m for m in messages(cluster.gateway.annex("copy", "--debug", "--to", "vault", "secret")) if "PUT " in m]
    assert not any("secret" in put for put in puts)
