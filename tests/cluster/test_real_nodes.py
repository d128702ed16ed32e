"""The cluster as one session, with real repositories behind real git-annex-shell."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.messages import Data, Message, PutFrom
from cluster_remote.p2p.session import Present, Removal, Source, SourceReading, Stored, Upload
from tests.cluster.real import (
    FILE,
    content,
    key_of,
    opened,
    serving,
    stopped,
    uuids,
    write,
)
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, locked
from tests.support.shells import limit_version
from tests.support.slow import only_in_all
from tests.support.ssh import SshServer

pytestmark = pytest.mark.anyio

SMALL = content(3000)
SMALL_KEY = key_of(SMALL)
# Of encrypted content no log knows, so every node is asked whether it has it.
ENCRYPTED = Key("GPGHMACSHA1--0123456789abcdef")
MEGABYTES = content(6 * 2**20)
MEGABYTES_KEY = key_of(MEGABYTES)


class Stream(Source):
    """A content that can be read only once, as a gateway gets it from its client."""

    repeatable = False

    def __init__(self, data: bytes, pace: float = 0.0, valid: bool = True) -> None:
        self._data = data
        self._pace = pace
        self._valid = valid

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        yield _StreamReading(self._data[offset:], self._pace, self._valid)


class _StreamReading(SourceReading):
    def __init__(self, data: bytes, pace: float, valid: bool) -> None:
        self.length = len(data)
        self._data = data
        self._pace = pace
        self._valid = valid

    async def chunks(self) -> AsyncIterator[bytes]:
        for start in range(0, len(self._data), 100_000):
            await anyio.sleep(self._pace)
            yield self._data[start : start + 100_000]

    async def valid(self) -> bool:
        return self._valid


def source(environment: Environment, data: bytes, kind: str) -> Source:
    return FileSource(os.fsencode(write(environment, data))) if kind == "file" else Stream(data)


async def fetch(session: ClusterSession, key: Key, offset: int = 0) -> bytes:
    async with session.download(key, FILE, offset) as download:
        received = b"".join([bytes(chunk) async for chunk in download.chunks()])
        assert len(received) == download.length
        assert await download.valid()
        return received


async def put(session: ClusterSession, environment: Environment, data: bytes = SMALL) -> Present | Stored:
    return await session.store(key_of(data), FILE, source(environment, data, "file"))


both_kinds = pytest.mark.parametrize("kind", ["file", "stream"])
either_kind = pytest.mark.parametrize("kind", ["stream", *only_in_all("file")])


@both_kinds
async def test_content_is_stored_on_all_nodes_recorded_read_back_and_removed(cluster: Cluster, kind: str) -> None:
    async with opened(cluster.gateway) as session:
        told: list[int] = []
        stored = await session.store(
            MEGABYTES_KEY, FILE, source(cluster.gateway.environment, MEGABYTES, kind), told.append
        )
        assert stored == Stored(True, uuids(*cluster.nodes))
        assert told[-1] == len(MEGABYTES)
        assert cluster.holders(MEGABYTES_KEY.text) == [True] * 3
        assert cluster.gateway.locations(MEGABYTES_KEY.text) == {node.uuid for node in cluster.nodes}
        again = await session.store(MEGABYTES_KEY, FILE, source(cluster.gateway.environment, MEGABYTES, kind))
        assert again == Present(uuids(*cluster.nodes))
        assert await session.check_present(MEGABYTES_KEY)
        assert await fetch(session, MEGABYTES_KEY) == MEGABYTES
        assert await fetch(session, MEGABYTES_KEY, 6_000_000) == MEGABYTES[6_000_000:]
        assert await session.remove(MEGABYTES_KEY) == Removal(True, uuids(*cluster.nodes))
        assert cluster.holders(MEGABYTES_KEY.text) == [False] * 3
        assert cluster.gateway.locations(MEGABYTES_KEY.text) == set()
        assert await session.check_present(MEGABYTES_KEY) is False


@either_kind
async def test_empty_content_can_be_stored(cluster: Cluster, kind: str) -> None:
    empty = key_of(b"")
    async with opened(cluster.gateway) as session:
        stored = await session.store(empty, FILE, source(cluster.gateway.environment, b"", kind))
        assert stored == Stored(True, uuids(*cluster.nodes))
        assert await fetch(session, empty) == b""


async def test_an_upload_finds_and_records_unrecorded_content(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        for node in cluster.nodes:
            cluster.gateway.annex("setpresentkey", SMALL_KEY.text, node.uuid, "0")
        assert cluster.gateway.locations(SMALL_KEY.text) == set()
        assert not await session.check_present(SMALL_KEY)
        assert await put(session, cluster.gateway.environment) == Present(uuids(*cluster.nodes))
        assert cluster.gateway.locations(SMALL_KEY.text) == {node.uuid for node in cluster.nodes}


@either_kind
async def test_each_node_gets_only_the_bytes_it_lacks(cluster: Cluster, kind: str) -> None:
    have = [0, 1_000_000, len(MEGABYTES)]
    for node, part in zip(cluster.nodes, have, strict=True):
        node.leave_partial(MEGABYTES_KEY.text, MEGABYTES[:part])
    said: list[tuple[bool, Message]] = []
    async with opened(cluster.gateway, said=said) as session:
        stored = await session.store(MEGABYTES_KEY, FILE, source(cluster.gateway.environment, MEGABYTES, kind))
    assert stored == Stored(True, uuids(*cluster.nodes))
    offsets = sorted(message.offset for _, message in said if isinstance(message, PutFrom))
    lengths = sorted((message.length for _, message in said if isinstance(message, Data)), reverse=True)
    assert offsets == have
    assert lengths == [len(MEGABYTES) - part for part in have]
    assert [node.object_bytes(MEGABYTES_KEY.text) for node in cluster.nodes] == [MEGABYTES] * 3


async def test_a_stream_starts_at_the_nodes_lowest_offset(cluster: Cluster) -> None:
    for node, part in zip(cluster.nodes, (2_000_000, 1_000_000, 3_000_000), strict=True):
        node.leave_partial(MEGABYTES_KEY.text, MEGABYTES[:part])
    async with opened(cluster.gateway) as session:
        async with session.upload(MEGABYTES_KEY, FILE) as offer:
            assert isinstance(offer, Upload)
            assert offer.offset == 1_000_000
            stored = await offer.send(Stream(MEGABYTES))
        assert stored == Stored(True, uuids(*cluster.nodes))
        # The upload is over for every node: the same sessions serve the next request.
        assert await session.check_present(MEGABYTES_KEY)
    assert [node.object_bytes(MEGABYTES_KEY.text) for node in cluster.nodes] == [MEGABYTES] * 3


async def test_a_node_with_a_wrong_partial_file_does_not_store_and_is_named(cluster: Cluster) -> None:
    cluster.nodes[1].leave_partial(SMALL_KEY.text, b"X" * 1000)
    async with opened(cluster.gateway) as session:
        stored = await put(session, cluster.gateway.environment)
        assert isinstance(stored, Stored)
        assert stored.uuids == uuids(cluster.nodes[0], cluster.nodes[2])
        assert stored.reasons[0].startswith("second disk (cellar) [node2]")
        # git-annex has thrown the wrong part away.
        assert await put(session, cluster.gateway.environment) == Stored(True, uuids(cluster.nodes[1]))


@either_kind
async def test_wrong_bytes_are_stored_nowhere(cluster: Cluster, kind: str) -> None:
    wrong = b"?" + SMALL[1:]
    async with opened(cluster.gateway) as session:
        stored = await session.store(SMALL_KEY, FILE, source(cluster.gateway.environment, wrong, kind))
    assert isinstance(stored, Stored)
    assert not stored.stored
    assert len(stored.reasons) == 3
    assert cluster.holders(SMALL_KEY.text) == [False] * 3
    assert cluster.gateway.locations(SMALL_KEY.text) == set()


async def test_a_node_whose_content_is_locked_makes_a_removal_partial(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        with locked(cluster.nodes[1], SMALL_KEY.text):
            removal = await session.remove(SMALL_KEY)
        assert not removal.removed
        assert removal.uuids == uuids(cluster.nodes[0], cluster.nodes[2])
        (reason,) = removal.reasons
        assert reason.startswith("second disk (cellar) [node2]")
        assert cluster.gateway.locations(SMALL_KEY.text) == {cluster.nodes[1].uuid}
        assert cluster.holders(SMALL_KEY.text) == [False, True, False]
        assert (await session.remove(SMALL_KEY)).removed


async def test_a_removal_is_done_before_its_deadline_and_refused_after(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        now = await session.timestamp()
        late = await session.remove(SMALL_KEY, before=now - 100)
        assert (late.removed, late.uuids) == (False, frozenset())
        assert len(late.reasons) == 3
        assert cluster.holders(SMALL_KEY.text) == [True] * 3
        assert (await session.remove(SMALL_KEY, before=now + 100)).removed


# A node that is away


async def test_an_upload_skips_an_unavailable_node_which_is_filled_when_it_returns(cluster: Cluster) -> None:
    away = cluster.nodes[1]
    environment = cluster.gateway.environment
    present = uuids(cluster.nodes[0], cluster.nodes[2])
    async with opened(cluster.gateway) as session:
        away_uuid = uuids(away)
        with away.unplugged():
            stored = await put(session, environment)
            assert isinstance(stored, Stored)
            assert (stored.stored, stored.uuids) == (True, present)
            (reason,) = stored.reasons
            assert reason.startswith("second disk (cellar) [node2]")
            assert str(environment.directory) in reason
            assert cluster.gateway.locations(SMALL_KEY.text) == {uuid.text for uuid in present}
            assert await session.check_present(SMALL_KEY)
            assert await fetch(session, SMALL_KEY) == SMALL
        # It was found missing at once, so it is tried again at once, too: well within these seconds.
        with anyio.fail_after(20):
            while await put(session, environment) != Stored(True, away_uuid):
                await anyio.sleep(0.1)
        assert cluster.holders(SMALL_KEY.text) == [True] * 3


async def test_a_removal_with_a_node_unavailable_removes_from_the_others_and_fails(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    async with opened(cluster.gateway) as session:
        await put(session, environment)
        present = uuids(cluster.nodes[1], cluster.nodes[2])
        left = cluster.nodes[0].uuid
        with cluster.nodes[0].unplugged():
            removal = await session.remove(SMALL_KEY)
            assert (removal.removed, removal.uuids) == (False, present)
            assert removal.reasons[0].startswith("first disk (attic) [node1]")
            assert cluster.gateway.locations(SMALL_KEY.text) == {left}
            with pytest.raises(SessionError, match=r"cannot tell whether it has .*: first disk \(attic\) \[node1\]"):
                await session.check_present(SMALL_KEY)
            with pytest.raises(SessionError, match="no node sent"):
                await fetch(session, SMALL_KEY)
        assert await session.remove(SMALL_KEY) == Removal(True, uuids(*cluster.nodes))
        assert cluster.gateway.locations(SMALL_KEY.text) == set()


async def test_a_disk_unplugged_between_requests_is_not_mistaken_for_an_empty_one(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        left = cluster.nodes[2].uuid
        with cluster.nodes[2].unplugged():
            cluster.nodes[2].path.mkdir()
            removal = await session.remove(SMALL_KEY)
            with pytest.raises(SessionError, match="cannot tell"):
                await session.check_present(SMALL_KEY)
            cluster.nodes[2].path.rmdir()
        assert removal.uuids == uuids(cluster.nodes[0], cluster.nodes[1])
        assert cluster.gateway.locations(SMALL_KEY.text) == {left}
        assert cluster.holders(SMALL_KEY.text) == [False, False, True]
        assert await session.check_present(SMALL_KEY)


async def test_with_every_node_unavailable_requests_fail_with_each_reason(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        with cluster.nodes[0].unplugged(), cluster.nodes[1].unplugged(), cluster.nodes[2].unplugged():
            stored = await put(session, cluster.gateway.environment)
            assert isinstance(stored, Stored)
            assert (stored.stored, len(stored.reasons)) == (False, 3)
            with pytest.raises(SessionError, match=r"node1\].*node2\].*node3\]"):
                async with session.upload(SMALL_KEY, FILE):
                    pytest.fail("there is nothing to send to")
            with pytest.raises(SessionError, match="cannot tell"):
                await session.check_present(ENCRYPTED)


@either_kind
async def test_a_node_that_stalls_before_an_upload_is_skipped(cluster: Cluster, kind: str) -> None:
    async with opened(cluster.gateway, timeout=2.0) as session:
        assert await session.check_present(ENCRYPTED) is False
        with stopped(serving(cluster.nodes[2])):
            stored = await session.store(SMALL_KEY, FILE, source(cluster.gateway.environment, SMALL, kind))
            assert isinstance(stored, Stored)
            assert stored.uuids == uuids(cluster.nodes[0], cluster.nodes[1])
            assert stored.reasons[0].startswith("NAS: shelf 3 [node3]: ")
            assert "2 seconds" in stored.reasons[0]


@either_kind
async def test_a_node_that_stalls_during_an_upload_is_dropped(cluster: Cluster, kind: str) -> None:
    environment = cluster.gateway.environment
    said: list[tuple[bool, Message]] = []
    async with opened(cluster.gateway, timeout=2.0, said=said) as session:
        outcome: list[Present | Stored] = []

        async def store() -> None:
            slow = FileSource(os.fsencode(write(environment, MEGABYTES))) if kind == "file" else Stream(MEGABYTES, 0.01)
            outcome.append(await session.store(MEGABYTES_KEY, FILE, slow))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(store)
            # Looked at once only: while a program becomes another one (exec) it cannot be told whose it is.
            while not (node := serving(cluster.nodes[0])):
                await anyio.sleep(0.001)
            # From here on it takes what fits into the pipe, and no more.
            with stopped(node):
                while not outcome:
                    await anyio.sleep(0.05)
    (stored,) = outcome
    assert isinstance(stored, Stored)
    assert stored.uuids == uuids(cluster.nodes[1], cluster.nodes[2])
    assert stored.reasons[0].startswith("first disk (attic) [node1]: ")
    assert cluster.holders(MEGABYTES_KEY.text) == [False, True, True]


async def test_a_node_killed_during_an_upload_is_dropped_and_resumes_next_time(
    cluster: Cluster,
) -> None:
    said: list[tuple[bool, Message]] = []
    async with opened(cluster.gateway, said=said) as session:

        def kill_midway(position: int) -> None:
            if position > 2_000_000:
                for process in serving(cluster.nodes[1]):
                    os.kill(process.pid, signal.SIGKILL)

        stored = await session.store(MEGABYTES_KEY, FILE, Stream(MEGABYTES, 0.01), kill_midway)
        assert isinstance(stored, Stored)
        assert stored.uuids == uuids(cluster.nodes[0], cluster.nodes[2])
        assert stored.reasons[0].startswith("second disk (cellar) [node2]: ")
        said.clear()
        assert await put(session, cluster.gateway.environment, MEGABYTES) == Stored(True, uuids(cluster.nodes[1]))
    (offset,) = (message.offset for _, message in said if isinstance(message, PutFrom))
    assert 1_000_000 < offset < len(MEGABYTES)
    assert cluster.holders(MEGABYTES_KEY.text) == [True] * 3


async def test_a_node_that_stalls_makes_a_removal_partial(cluster: Cluster) -> None:
    async with opened(cluster.gateway, timeout=2.0) as session:
        await put(session, cluster.gateway.environment)
        with stopped(serving(cluster.nodes[0])):
            removal = await session.remove(SMALL_KEY)
            assert removal.uuids == uuids(cluster.nodes[1], cluster.nodes[2])
            assert removal.reasons[0].startswith("first disk (attic) [node1]: ")


async def test_a_download_resumes_from_another_node_at_the_same_byte_when_its_node_is_killed(cluster: Cluster) -> None:
    cluster.gateway.git("config", "remote.node2.annex-cost", "50")
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment, MEGABYTES)
        received = bytearray()
        killed = False
        async with session.download(MEGABYTES_KEY, FILE, 1000) as download:
            async for chunk in download.chunks():
                received += chunk
                if len(received) > 1_000_000 and not killed:
                    killed = True
                    for process in serving(cluster.nodes[1]):
                        os.kill(process.pid, signal.SIGKILL)
            assert killed
            assert await download.valid()
            assert download.length == len(MEGABYTES) - 1000
        assert bytes(received) == MEGABYTES[1000:]
        # And the node is used again as soon as it answers.
        assert await fetch(session, MEGABYTES_KEY) == MEGABYTES


async def test_a_download_continues_from_another_node_when_its_node_stalls(cluster: Cluster) -> None:
    cluster.gateway.git("config", "remote.node3.annex-cost", "50")
    async with opened(cluster.gateway, timeout=2.0) as session:
        await put(session, cluster.gateway.environment, MEGABYTES)
        received = bytearray()
        async with session.download(MEGABYTES_KEY, FILE) as download:
            chunks = download.chunks()
            received += await anext(chunks)
            with stopped(serving(cluster.nodes[2])):
                async for chunk in chunks:
                    received += chunk
            assert await download.valid()
        assert bytes(received) == MEGABYTES


async def test_a_node_that_has_lost_its_content_is_skipped(cluster: Cluster) -> None:
    cluster.gateway.git("config", "remote.node1.annex-cost", "50")
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        cluster.nodes[0].annex("drop", "--force", "--key", SMALL_KEY.text)
        assert await session.check_present(SMALL_KEY)
        assert await fetch(session, SMALL_KEY) == SMALL


async def test_an_abandoned_upload_leaves_no_waiting_process(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        with anyio.move_on_after(0.5):
            await session.store(MEGABYTES_KEY, FILE, Stream(MEGABYTES, pace=0.2))
        assert wait_until(lambda: not any(serving(node) for node in cluster.nodes))
        assert (await put(session, cluster.gateway.environment)) == Stored(True, uuids(*cluster.nodes))


# Nodes of all kinds


async def test_nodes_by_path_over_ssh_and_behind_git_annex_work_together(
    cluster: Cluster, ssh_server: SshServer
) -> None:
    gateway, environment = cluster.gateway, cluster.gateway.environment
    gateway.git("remote", "set-url", "node2", ssh_server.url(cluster.nodes[1].path))
    bucket = environment.directory / "bucket"
    bucket.mkdir()
    gateway.annex("initremote", "bucket", "type=directory", f"directory={bucket}", "encryption=none")
    gateway.git("config", "remote.bucket.annex-cluster-node", cluster.name)
    gateway.annex("updatecluster")
    bucket_uuid = gateway.config("remote.bucket.annex-uuid")
    assert bucket_uuid is not None
    everywhere = {*(node.uuid for node in cluster.nodes), bucket_uuid}
    async with opened(gateway) as session:
        assert [node.kind for node in session.nodes] == ["local", "ssh", "local", "proxied"]
        stored = await put(session, environment, MEGABYTES)
        assert isinstance(stored, Stored)
        assert {uuid.text for uuid in stored.uuids} == everywhere
        assert stored.reasons == ()
        assert cluster.holders(MEGABYTES_KEY.text) == [True] * 3
        assert [path.stat().st_size for path in bucket.rglob("SHA256*") if path.is_file()] == [len(MEGABYTES)]
        assert gateway.locations(MEGABYTES_KEY.text) == everywhere
        for name in ("node2", "bucket"):
            gateway.git("config", f"remote.{name}.annex-cost", "1")
            async with opened(gateway) as near:
                assert await fetch(near, MEGABYTES_KEY) == MEGABYTES
            gateway.git("config", f"remote.{name}.annex-cost", "500")
        removal = await session.remove(MEGABYTES_KEY)
        assert removal.removed
        assert {uuid.text for uuid in removal.uuids} == everywhere
        assert list(bucket.rglob("SHA256*")) == []
        assert gateway.locations(MEGABYTES_KEY.text) == set()


async def test_an_ssh_server_refusing_connections_counts_as_unavailable(
    cluster: Cluster, ssh_server: SshServer
) -> None:
    cluster.gateway.git("remote", "set-url", "node1", ssh_server.url(cluster.nodes[0].path))
    async with opened(cluster.gateway) as session:
        ssh_server.stop()
        stored = await put(session, cluster.gateway.environment)
        assert isinstance(stored, Stored)
        assert stored.uuids == uuids(cluster.nodes[1], cluster.nodes[2])
        assert "Connection refused" in stored.reasons[0]


@pytest.mark.parametrize("version", [2, *only_in_all(0, 1)])
async def test_nodes_with_old_protocol_versions_take_part_but_get_no_timed_removals(
    cluster: Cluster, version: int
) -> None:
    limit_version(cluster.gateway.environment, version)
    async with opened(cluster.gateway) as session:
        assert await put(session, cluster.gateway.environment) == Stored(True, uuids(*cluster.nodes))
        assert await fetch(session, SMALL_KEY) == SMALL
        removal = await session.remove(SMALL_KEY, before=await session.timestamp() + 60)
        assert removal.uuids == frozenset()
        assert all("needs version 3" in reason for reason in removal.reasons)
        assert cluster.holders(SMALL_KEY.text) == [True] * 3
        assert (await session.remove(SMALL_KEY)).removed


@either_kind
async def test_a_nodes_preferred_content_decides_what_it_stores(cluster: Cluster, kind: str) -> None:
    gateway = cluster.gateway
    gateway.annex("wanted", "node2", "exclude=*")
    async with opened(gateway) as session:
        stored = await session.store(SMALL_KEY, FILE, source(gateway.environment, SMALL, kind))
        assert isinstance(stored, Stored)
        assert {uuid for uuid in stored.uuids if not uuid.is_cluster} == uuids(cluster.nodes[0], cluster.nodes[2])
        assert cluster.holders(SMALL_KEY.text) == [True, False, True]
        assert gateway.locations(SMALL_KEY.text) == {cluster.nodes[0].uuid, cluster.nodes[2].uuid}
        # Everything else is asked of the nodes themselves.
        assert await fetch(session, SMALL_KEY) == SMALL
        assert (await session.remove(SMALL_KEY)).removed


@either_kind
async def test_an_encrypted_upload_never_resumes_an_interrupted_one(cluster: Cluster, kind: str) -> None:
    key = Key(f"GPGHMACSHA1--{kind.encode().hex():0>40}")
    for node, have in zip(cluster.nodes, (0, 70_000, 200_000), strict=True):
        node.leave_partial(key.text, b"x" * have)
    data = content(150_000)
    async with opened(cluster.gateway) as session:
        stored = await session.store(key, FILE, source(cluster.gateway.environment, data, kind))
        assert stored == Stored(True, uuids(*cluster.nodes))
    assert [node.object_bytes(key.text) for node in cluster.nodes] == [data] * 3


async def test_recorded_content_that_no_node_has_is_stored_again(cluster: Cluster) -> None:
    async with opened(cluster.gateway) as session:
        await put(session, cluster.gateway.environment)
        for node in cluster.nodes[:2]:
            node.lose_object(SMALL_KEY.text)
        stored = await put(session, cluster.gateway.environment)
        assert stored == Stored(True, uuids(*cluster.nodes[:2]), present=uuids(cluster.nodes[2]))
        assert cluster.holders(SMALL_KEY.text) == [True] * 3


async def test_a_node_without_a_known_uuid_is_used_and_a_dead_one_is_not(cluster: Cluster) -> None:
    for node in cluster.nodes:
        node.set_key(SMALL_KEY.text, SMALL)
    gateway, first = cluster.gateway, cluster.nodes[0]
    gateway.git("remote", "remove", "node1")
    gateway.git("remote", "add", "node1", first.path)
    gateway.git("config", "remote.node1.annex-cluster-node", cluster.name)
    gateway.annex("dead", "--quiet", "node2")
    async with opened(gateway) as session:
        outcome = await session.remove(SMALL_KEY)
    assert outcome.removed
    # The dead node is not waited for; nothing is known of it.
    assert cluster.holders(SMALL_KEY.text) == [False, True, False]
    assert outcome.uuids == uuids(first, cluster.nodes[2])
