"""git-annex's own acceptance test for special remotes, over every transport and with every kind of content."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.remote.testbed import Testbed, initremote, text
from tests.support.repositories import Repository, make_repository
from tests.support.sockets import serve_p2p, tcp_bridge
from tests.support.ssh import SshServer

TOKEN = "CLUSTER_REMOTE_TOKEN"


def passes(client: Repository, name: str, *options: str, timeout: float = 120) -> int:
    """Run `git annex testremote`; return how many of its tests passed.

    Raises:
        AssertionError: any of them failed.
    """
    said = text(client.annex("testremote", name, *options, timeout=timeout))
    found = re.search(r"All (\d+) tests passed", said)
    assert found, said
    return int(found[1])


@pytest.fixture(autouse=True)
def _patience(own_testbed: Testbed) -> Iterator[None]:
    """Nodes may have much to commit when their client has gone, so their processes are given more time to end."""
    yield
    own_testbed.environment.assert_no_process_left(within=30)


def test_testremote_of_the_cluster_by_its_gateways_directory(own_testbed: Testbed) -> None:
    assert passes(own_testbed.client, "mycl", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_a_node_by_its_gateways_directory(own_testbed: Testbed) -> None:
    initremote(own_testbed.client, "node", f"url=file://{own_testbed.url}", sameas=own_testbed.cluster.nodes[0].uuid)
    assert passes(own_testbed.client, "node", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_the_cluster_over_ssh(own_testbed: Testbed, ssh_server: SshServer) -> None:
    url = ssh_server.url(own_testbed.cluster.gateway.path)
    initremote(own_testbed.client, "far", f"url={url}", sameas=own_testbed.cluster.uuid)
    assert passes(own_testbed.client, "far", "--fast") >= 125
    assert ssh_server.connections > 0


@pytest.mark.slow
def test_testremote_of_a_repository_on_a_unix_socket(own_testbed: Testbed) -> None:
    node = own_testbed.cluster.nodes[1]
    with serve_p2p(node) as (path, token):
        initremote(own_testbed.client, "socket", f"url=unix:{path}", sameas=node.uuid, env={TOKEN: token})
        assert passes(own_testbed.client, "socket", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_a_repository_over_tcp(own_testbed: Testbed) -> None:
    node = own_testbed.cluster.nodes[2]
    with serve_p2p(node) as (path, token), tcp_bridge(path) as (host, port):
        initremote(own_testbed.client, "tcp", f"url=tcp://{host}:{port}", sameas=node.uuid, env={TOKEN: token})
        assert passes(own_testbed.client, "tcp", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_an_encrypted_cluster_in_a_repository_that_does_not_know_it(own_testbed: Testbed) -> None:
    stranger = make_repository(own_testbed.environment, own_testbed.environment.directory / "stranger", "stranger")
    parameters = (f"url={own_testbed.url}", f"cluster={own_testbed.cluster.uuid}", "tracking=remote")
    initremote(stranger, "vault", *parameters, "encryption=shared", "chunk=1MiB")
    assert passes(stranger, "vault", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_an_encrypted_cluster_in_a_repository_that_knows_it(own_testbed: Testbed) -> None:
    parameters = (f"url={own_testbed.url}", f"cluster={own_testbed.cluster.name}", "tracking=remote")
    initremote(own_testbed.client, "vault", *parameters, "encryption=shared", "chunk=1MiB")
    assert passes(own_testbed.client, "vault", "--fast") >= 125


@pytest.mark.slow
def test_testremote_of_an_unknown_encrypted_repository_on_a_socket(own_testbed: Testbed) -> None:
    stranger = make_repository(own_testbed.environment, own_testbed.environment.directory / "stranger", "stranger")
    with serve_p2p(own_testbed.cluster.nodes[0]) as (path, token):
        parameters = (f"url=unix:{path}", "tracking=remote", "encryption=shared", "chunk=1MiB")
        initremote(stranger, "vault", *parameters, env={TOKEN: token})
        assert passes(stranger, "vault", "--fast") >= 125


@pytest.mark.slow
def test_full_testremote_by_directory(own_testbed: Testbed) -> None:
    """Also files of more than one chunk. Those of the usual size would be cut into a thousand, which takes minutes."""
    node = own_testbed.cluster.nodes[0]
    initremote(own_testbed.client, "node", f"url={node.path}", sameas=node.uuid)
    assert passes(own_testbed.client, "node", "--size", "99", timeout=280) >= 500
