"""If the node chosen by git-annex's own gateway lacks the content, the others are asked through the gateway."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.testbed import initremote, make_testbed, objects
from tests.support.environment import Environment
from tests.support.repositories import Repository


def _lose(node: Repository, path: Path) -> None:
    path.parent.chmod(0o755)
    path.unlink()


def _cut(node: Repository, path: Path) -> None:
    path.parent.chmod(0o755)
    path.chmod(0o644)
    os.truncate(path, path.stat().st_size // 2)


def _unmount(node: Repository, path: Path) -> None:
    node.path.rename(node.path.with_name("unmounted"))


@pytest.mark.parametrize("fault", [_lose, _cut, _unmount])
@pytest.mark.parametrize("backend", ["SHA256", "WORM"])
def test_content_is_found_on_another_node(
    environment: Environment, backend: str, fault: Callable[[Repository, Path], None]
) -> None:
    testbed = make_testbed(environment)
    client, content = testbed.client, os.urandom(20_000)
    client.git("config", "annex.security.allow-unverified-downloads", "ACKTHPPT")
    testbed.cluster.gateway.git("config", "remote.node1.annex-cost", "50")
    client.write("photo", content)
    client.annex("add", "--quiet", f"--backend={backend}", "photo")
    key = client.key("photo")
    client.annex("move", "--quiet", "--to", "mycl", "photo")
    path = testbed.cluster.nodes[0].object_path(key)
    assert path is not None
    fault(testbed.cluster.nodes[0], path)
    client.annex("checkpresentkey", key, "mycl")
    client.annex("get", "--from", "mycl", "photo")
    assert client.object_bytes(key) == content


def test_content_is_absent_only_if_every_recorded_node_lacks_it(environment: Environment) -> None:
    testbed = make_testbed(environment)
    client, nodes = testbed.client, testbed.cluster.nodes
    key = client.add("photo", b"x" * 1000)
    client.annex("copy", "--quiet", "--to", "mycl", "photo")
    for node in nodes[:2]:
        node.lose_object(key)
    assert client.annex("checkpresentkey", key, "mycl", check=False).returncode == 0
    with nodes[2].unplugged():
        assert client.annex("checkpresentkey", key, "mycl", check=False).returncode == 100
    nodes[2].lose_object(key)
    assert client.annex("checkpresentkey", key, "mycl", check=False).returncode == 1


@pytest.mark.parametrize("chunks", [(), ("chunk=8KiB",)], ids=["whole", "chunks"])
def test_encrypted_content_is_found_on_another_node(environment: Environment, chunks: tuple[str, ...]) -> None:
    testbed = make_testbed(environment)
    client = testbed.client
    testbed.cluster.gateway.git("config", "remote.node1.annex-cost", "50")
    initremote(
        client,
        "vault",
        f"url={testbed.cluster.gateway.path}",
        f"cluster={testbed.cluster.uuid}",
        "tracking=remote",
        "encryption=shared",
        *chunks,
    )
    content = os.urandom(20_000)
    key = client.add("photo", content)
    client.annex("move", "--quiet", "--to", "vault", "photo")
    annex = testbed.cluster.nodes[0].path / ".git/annex"
    (annex / "objects").rename(annex / "elsewhere")
    client.annex("checkpresentkey", key, "vault")
    client.annex("fsck", "--from", "vault", "photo")
    client.annex("get", "--from", "vault", "photo")
    assert client.object_bytes(key) == content


@pytest.mark.parametrize("way", ["without a server", "through git-annex's gateway"])
@pytest.mark.parametrize("bad", [1, 2], ids=["one damaged node", "two damaged nodes"])
def test_a_damaged_chunk_is_replaced_from_other_nodes(environment: Environment, way: str, bad: int) -> None:
    """Nothing but the whole file shows the damage. Each node has it in a chunk of its own."""
    testbed = make_testbed(environment)
    gateway = testbed.cluster.gateway
    client = gateway if way == "without a server" else testbed.client
    url = [] if client is gateway else [f"url={gateway.path}"]
    gateway.git("config", "remote.node1.annex-cost", "50")
    initremote(
        client, "vault", *url, f"cluster={testbed.cluster.uuid}", "tracking=remote", "encryption=shared", "chunk=8KiB"
    )
    content = os.urandom(20_000)
    key = client.add("photo", content)
    client.annex("move", "--quiet", "--to", "vault", "photo")
    for number, node in enumerate(testbed.cluster.nodes[:bad]):
        path = sorted(objects(node).values())[number]
        path.chmod(0o644)
        damaged = bytearray(path.read_bytes())
        damaged[1000] ^= 0xFF
        path.write_bytes(damaged)
    for _ in range(2):
        client.annex("get", "--from", "vault", "photo", check=False)
    assert client.object_bytes(key) == content
