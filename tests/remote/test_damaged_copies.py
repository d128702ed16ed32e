"""A damaged copy on one node does not hide the good ones: git-annex gets the content from another node."""

from __future__ import annotations

import os

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import gateway_of
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_cluster
from tests.support.slow import only_in_all


def _get(client: Repository, name: str, content: bytes, key: str) -> bytes:
    done = client.annex("get", "--from", name, "photo.jpg")
    assert client.object_bytes(key) == content
    return done.stdout + done.stderr


@pytest.mark.parametrize("size", [300_000, *only_in_all(1000)])
def test_get_through_git_annexs_gateway_finds_a_good_copy(environment: Environment, size: int) -> None:
    testbed = make_testbed(environment)
    content = os.urandom(size)
    key = testbed.client.add("photo.jpg", content)
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    testbed.client.annex("drop", "--quiet", "--force", "photo.jpg")
    for node in testbed.cluster.nodes[:2]:
        node.damage_object(key)
    _get(testbed.client, "mycl", content, key)


def test_serverless_get_finds_a_good_copy_and_names_the_node_with_the_damaged_one(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory)
    initremote(cluster.gateway, "own", sameas=cluster.uuid)
    content = os.urandom(2000)
    key = cluster.gateway.add("photo.jpg", content)
    cluster.gateway.annex("copy", "--quiet", "--to", "own", "photo.jpg")
    cluster.gateway.annex("drop", "--quiet", "--force", "photo.jpg")
    cluster.gateway.git("config", "remote.node2.annex-cost", "50")
    cluster.nodes[1].damage_object(key)
    said = _get(cluster.gateway, "own", content, key)
    assert b"second disk (cellar) sent a damaged copy" in said
    assert b"cluster-remote check own --content" in said


def test_get_through_our_gateway_finds_a_good_copy(environment: Environment) -> None:
    cluster = make_cluster(environment, environment.directory)
    client = cluster.clone()
    with gateway_of(cluster) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        initremote(client, "mycl", f"url={gateway.unix}", sameas=cluster.uuid, env=token)
        content = os.urandom(2000)
        key = client.add("photo.jpg", content)
        client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
        client.annex("drop", "--quiet", "--force", "photo.jpg")
        for node in cluster.nodes[:2]:
            node.damage_object(key)
        _get(client, "mycl", content, key)


def test_with_every_copy_damaged_get_fails_and_names_each(environment: Environment) -> None:
    testbed = make_testbed(environment)
    key = testbed.client.add("photo.jpg", os.urandom(1000))
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    testbed.client.annex("drop", "--quiet", "--force", "photo.jpg")
    for node in testbed.cluster.nodes:
        node.damage_object(key)
    done = testbed.client.annex("get", "--from", "mycl", "photo.jpg", check=False)
    assert done.returncode == 1
    assert (done.stdout + done.stderr).count(b"sent a damaged copy") >= 3
    assert not testbed.client.has_object(key)


def test_a_wrong_partial_file_here_is_not_blamed_on_a_node(environment: Environment) -> None:
    testbed: Testbed = make_testbed(environment)
    content = os.urandom(5000)
    key = testbed.client.add("photo.jpg", content)
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    testbed.client.annex("drop", "--quiet", "--force", "photo.jpg")
    testbed.client.leave_partial(key, b"x" * 2000)
    assert b"damaged" not in _get(testbed.client, "mycl", content, key)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["without a server", *only_in_all("through git-annex's gateway")])
def test_large_content_that_failed_verification_comes_from_a_good_node_next_time(
    environment: Environment, way: str
) -> None:
    testbed = make_testbed(environment)
    client = testbed.client if way != "without a server" else testbed.cluster.gateway
    if client is not testbed.client:
        initremote(client, "mycl", sameas=testbed.cluster.uuid)
    content = os.urandom(9_000_000)
    key = client.add("film", content)
    client.annex("move", "--quiet", "--to", "mycl", "film")
    for number in (1, 2):
        testbed.cluster.gateway.git("config", f"remote.node{number}.annex-cost", "50")
        testbed.cluster.nodes[number - 1].damage_object(key)
    client.annex("get", "--from", "mycl", "film", check=False)
    client.annex("get", "--from", "mycl", "film")
    assert client.object_bytes(key) == content
    assert testbed.cluster.holders(key) == [True] * 3
