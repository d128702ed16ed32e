"""An append-only client replaces nothing, also on nodes that would let it: special remotes keep what arrives last."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster_remote.gateway.gateway import Limits
from cluster_remote.p2p.server import Mode
from tests.gateway.test_gateway import answer
from tests.security.test_clients import gateway, greeting, off, put
from tests.security.test_web_clients import api, connected, told
from tests.support.repositories import Cluster

pytestmark = pytest.mark.anyio


@pytest.fixture
def bucket(cluster: Cluster) -> Path:
    """A directory special remote, which is one more node of the cluster."""
    where = cluster.gateway.environment.directory / "bucket"
    where.mkdir()
    cluster.gateway.annex("initremote", "bucket", "type=directory", f"directory={where}", "encryption=none")
    cluster.gateway.git("config", "remote.bucket.annex-cluster-node", cluster.name)
    cluster.gateway.annex("updatecluster")
    return where


def contents(bucket: Path, key: str) -> list[bytes]:
    return [path.read_bytes() for path in bucket.rglob(key) if path.is_file()]


@pytest.mark.parametrize("way", ["socket", "http"])
async def test_nothing_is_replaced_that_the_log_does_not_list(
    cluster: Cluster, bucket: Path, tmp_path: Path, way: str
) -> None:
    key, uuid = "WORM-s5--unlisted", cluster.gateway.config("remote.bucket.annex-uuid")
    cluster.gateway.set_key(key, b"hello")
    cluster.gateway.annex("copy", f"--key={key}", "--to", "bucket")
    cluster.gateway.annex("drop", f"--key={key}", "--force")
    cluster.gateway.annex("setpresentkey", key, uuid or "", "0")
    async with gateway(cluster, tmp_path, Limits()) as endpoint:
        text = endpoint.tokens.create(Mode.APPEND_ONLY)[1]
        if way == "socket":
            with endpoint.connect(text) as client:
                await greeting(client)
                await off(answer, client, "VERSION 4")
                assert (await put(client, key, "EVIL!")).startswith("ALREADY-HAVE")
        else:
            web = connected(endpoint)
            with web.socket:
                length = {"Content-Length": 5, "X-git-annex-data-length": 5}
                web.begin("POST", api(cluster.uuid, f"put?key={key}"), text, **length)
                web.socket.sendall(b"EVIL!")
                await told(web.answer)
    assert contents(bucket, key) == [b"hello"]
    assert cluster.holders(key) == [False, False, False]


@pytest.mark.parametrize("to", ["node", "cluster"])
async def test_nothing_is_replaced_that_arrives_during_an_upload(
    cluster: Cluster, bucket: Path, tmp_path: Path, to: str
) -> None:
    key, node = "WORM-s5--meanwhile", cluster.gateway.config("remote.bucket.annex-uuid")
    uuid = node if to == "node" else cluster.uuid
    async with gateway(cluster, tmp_path, Limits()) as endpoint:
        appender, writer = (endpoint.tokens.create(mode)[1] for mode in (Mode.APPEND_ONLY, Mode.READ_WRITE))
        with endpoint.connect(f"{appender}/{uuid}") as slow, endpoint.connect(f"{writer}/{node}") as fast:
            for client in (slow, fast):
                await greeting(client)
                await off(answer, client, "VERSION 4")
            assert await off(answer, slow, f"PUT  {key}") == "PUT-FROM 0"
            assert (await put(fast, key, "hello")).startswith("SUCCESS")
            slow.sendall(b"DATA 5\nEVIL!VALID\n")
            assert await off(answer, slow) == "FAILURE"
            assert any("another client uploaded" in line for line in endpoint.log)
            # It can go on.
            assert (await put(slow, key, "EVIL!")).startswith("ALREADY-HAVE")
    assert contents(bucket, key) == [b"hello"]
