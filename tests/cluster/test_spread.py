"""One content from several slow nodes at once: correct, in order, and unharmed by a node that dies or stalls."""

from __future__ import annotations

import errno
import hashlib
import os
from pathlib import Path

import anyio
import pytest

from cluster_remote.cluster import download as cluster_download
from cluster_remote.cluster import spread, stretches
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p import session as p2p_session
from cluster_remote.p2p.errors import Damaged, SessionError
from cluster_remote.p2p.key import Key
from cluster_remote.p2p.session import write_at
from tests.cluster.fakes import CLUSTER, FILE, Log, Peer, key_of

pytestmark = pytest.mark.anyio

CONTENT = b"".join(number.to_bytes(4, "big") for number in range(25_000))
KEY = key_of(CONTENT, hashlib.sha256(CONTENT).hexdigest())
CHUNK, PACE = 1000, 0.005


@pytest.fixture(autouse=True)
def in_a_small_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scale sizes and times down from mebibytes and seconds to kilobytes and milliseconds."""
    for name, value in (("_MEASURED_SECONDS", 0.03), ("_WORTH_IT", 0.1), ("_TICK", 0.01), ("AHEAD", 30_500)):
        monkeypatch.setattr(spread, name, value)
    for name, value in (("AHEAD", 30_500), ("LEAST", 4000), ("_LEAST_SECONDS", 0.03), ("_STUCK", 0.2)):
        monkeypatch.setattr(stretches, name, value)


def _peers(count: int) -> list[Peer]:
    return [Peer(number, contents={KEY: CONTENT}, chunk=CHUNK, pace=PACE) for number in range(1, count + 1)]


def _session(
    peers: list[Peer], costs: list[float] | None = None, key: Key = KEY, reachability: Reachability | None = None
) -> ClusterSession:
    nodes = [peer.node(cost) for peer, cost in zip(peers, costs or [100.0] * len(peers), strict=True)]
    log = Log({key: [peer.number for peer in peers]})
    return ClusterSession(
        CLUSTER, nodes, log, name="mycluster", timeout=5.0, pick=lambda _: 0, reachability=reachability
    )


class _File:
    """The file being written; at every moment it is a prefix of the content."""

    def __init__(self, directory: Path, start: bytes = b"") -> None:
        self.path = directory / "content"
        self.path.write_bytes(start)
        self.directory = directory
        self.told: list[int] = []
        self.looks = True

    def moved(self, position: int) -> None:
        self.told.append(position)
        assert not self.looks or CONTENT.startswith(self.path.read_bytes())

    async def fetch(self, session: ClusterSession, key: Key = KEY, may_spread: bool = True) -> bool:
        descriptor = os.open(self.path, os.O_RDWR)
        offset = os.fstat(descriptor).st_size
        try:
            async with session.download(key, FILE, offset) as download:
                if may_spread:
                    download.may_spread(os.fsencode(self.directory))
                await download.save(descriptor, offset, self.moved)
                self.origin, self.verified = download.origin, download.verified
                return await download.valid()
        finally:
            os.close(descriptor)

    def is_right(self) -> bool:
        return self.path.read_bytes() == CONTENT and list(self.directory.iterdir()) == [self.path]


@pytest.fixture
def file(tmp_path: Path) -> _File:
    return _File(tmp_path)


def _downloads(peer: Peer) -> list[int]:
    return [int(request.split()[1]) for request in peer.requests if request.startswith("download")]


async def test_three_nodes_send_a_content_faster_than_one(file: _File) -> None:
    peers = _peers(3)
    began = anyio.current_time()
    assert await file.fetch(_session(peers))
    assert anyio.current_time() - began < PACE * len(CONTENT) / CHUNK * 0.75
    assert file.is_right()
    assert all(_downloads(peer) for peer in peers)
    assert file.told == sorted(file.told)
    assert file.told[-1] == len(CONTENT)
    assert file.origin is None
    assert file.verified
    assert [peer.under_way for peer in peers] == [0, 0, 0]


async def test_bytes_already_here_are_not_fetched_again(tmp_path: Path) -> None:
    peers = _peers(3)
    file = _File(tmp_path, CONTENT[:20_001])
    assert await file.fetch(_session(peers))
    assert file.is_right()
    assert min(start for peer in peers for start in _downloads(peer)) == 20_001


@pytest.mark.parametrize("dying", [1, 2, 3])
async def test_a_dying_nodes_stretch_is_fetched_from_the_others(file: _File, dying: int) -> None:
    peers = _peers(3)
    peers[dying - 1].break_after = 12_345
    assert await file.fetch(_session(peers))
    assert file.is_right()


@pytest.mark.parametrize("stuck", [1, 2, 3])
async def test_a_stalled_nodes_stretch_is_fetched_from_the_others(file: _File, stuck: int) -> None:
    peers = _peers(3)
    peers[stuck - 1].stuck_after = 15_000
    with anyio.fail_after(4.0):
        assert await file.fetch(_session(peers))
    assert file.is_right()


async def test_the_last_remaining_node_sends_all_the_rest(file: _File) -> None:
    peers = _peers(3)
    peers[0].break_after = 30_000
    peers[2].break_after = 2_000
    assert await file.fetch(_session(peers))
    assert file.is_right()


async def test_when_all_nodes_die_a_contiguous_prefix_remains_and_each_is_named(file: _File) -> None:
    peers = _peers(3)
    for number, peer in enumerate(peers):
        peer.break_after = 11_000 + number * 1000
    with pytest.raises(SessionError) as raised:
        await file.fetch(_session(peers))
    assert all(f"[node{peer.number}]" in str(raised.value) for peer in peers)
    assert CONTENT.startswith(file.path.read_bytes())
    assert file.path.stat().st_size > 10_000


async def test_a_node_with_content_of_another_length_contributes_nothing(file: _File) -> None:
    peers = _peers(3)
    peers[1].contents[KEY] = b"X" * (len(CONTENT) - 1)
    peers[2].contents[KEY] = b""
    assert await file.fetch(_session(peers))
    assert file.is_right()
    assert file.origin == peers[0].uuid


@pytest.mark.parametrize("dying", [False, True], ids=["all there", "only one left"])
async def test_a_damaged_part_is_detected_and_nothing_is_kept(tmp_path: Path, dying: bool) -> None:
    peers = _peers(3)
    peers[1].contents[KEY] = CONTENT[:40_000] + b"X" * 40_000 + CONTENT[80_000:]
    if dying:
        peers[0].break_after = peers[2].break_after = 20_000
    file = _File(tmp_path, CONTENT[:5000])
    file.looks = False
    with pytest.raises(Damaged, match=r"node1.*node2"):
        await file.fetch(_session(peers))
    assert file.path.read_bytes() == CONTENT[:5000]


async def test_content_the_last_node_calls_invalid_is_invalid(file: _File) -> None:
    peers = _peers(3)
    for peer in peers:
        peer.verdict = False
    assert not await file.fetch(_session(peers))


async def test_losing_the_last_node_before_its_verdict_does_not_matter(file: _File) -> None:
    peers = _peers(3)
    for peer in peers:
        peer.verdict_lost = True
    assert await file.fetch(_session(peers))
    assert file.is_right()


async def test_a_fast_node_sends_everything_alone(file: _File) -> None:
    peers = _peers(3)
    for peer in peers:
        peer.pace = 0.0
    assert await file.fetch(_session(peers))
    assert file.is_right()
    assert [_downloads(peer) for peer in peers] == [[0], [], []]
    assert file.origin == peers[0].uuid
    assert not file.verified


async def test_a_download_that_must_name_its_origin_comes_from_one_node(file: _File) -> None:
    peers = _peers(3)
    assert await file.fetch(_session(peers), may_spread=False)
    assert file.origin == peers[0].uuid
    assert file.is_right()


async def test_content_without_a_checksum_comes_from_one_node(file: _File) -> None:
    key = Key(f"WORM-s{len(CONTENT)}-m1--content")
    peers = [Peer(number, contents={key: CONTENT}, chunk=CHUNK, pace=PACE) for number in (1, 2)]
    assert await file.fetch(_session(peers, key=key), key)
    assert [_downloads(peer) for peer in peers] == [[0], []]


async def test_costlier_nodes_do_not_help(file: _File) -> None:
    peers = _peers(2)
    assert await file.fetch(_session(peers, [100.0, 200.0]))
    assert _downloads(peers[1]) == []


async def test_a_node_busy_with_another_download_does_not_help(file: _File) -> None:
    peers = _peers(2)
    reachability = Reachability()
    with reachability.traffic.reading("node2"):
        assert await file.fetch(_session(peers, reachability=reachability))
    assert _downloads(peers[1]) == []


async def test_a_helping_node_is_released_to_another_download_that_starts_there(file: _File) -> None:
    peers = _peers(2)
    reachability = Reachability()

    async def another_one() -> None:
        while not peers[1].under_way:
            await anyio.sleep(0.001)
        with reachability.traffic.reading("node2"):
            await anyio.sleep(0.05)
            assert not peers[1].under_way

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(another_one)
        assert await file.fetch(_session(peers, reachability=reachability))
    assert file.is_right()


def _no_room(descriptor: int, data: bytes, position: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_without_room_to_buffer_early_bytes_one_node_sends_everything(
    file: _File, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = file.path.stat().st_ino

    def limited(descriptor: int, data: bytes, position: int) -> None:
        (write_at if os.fstat(descriptor).st_ino == target else _no_room)(descriptor, data, position)

    monkeypatch.setattr(spread, "write_at", limited)
    peers = _peers(3)
    assert await file.fetch(_session(peers))
    assert file.is_right()


async def test_an_unwritable_directory_leaves_the_download_to_one_node(file: _File) -> None:
    peers = _peers(2)
    session = _session(peers)
    descriptor = os.open(file.path, os.O_RDWR)
    async with session.download(KEY, FILE) as download:
        download.may_spread(os.fsencode(file.directory / "missing"))
        await download.save(descriptor, 0, file.moved)
        assert await download.valid()
    os.close(descriptor)
    assert file.is_right()
    assert _downloads(peers[1]) == []


async def test_early_bytes_give_way_if_they_take_the_room_that_the_file_needs(
    file: _File, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, written = file.path.stat().st_ino, 0

    def limited(descriptor: int, data: bytes, position: int) -> None:
        nonlocal written
        written += len(data)
        (_no_room if written > 40_000 and os.fstat(descriptor).st_ino == target else write_at)(
            descriptor, data, position
        )

    monkeypatch.setattr(spread, "write_at", limited)
    peers = _peers(3)
    assert await file.fetch(_session(peers))
    assert file.is_right()
    assert file.verified
    assert all(_downloads(peer) for peer in peers)


async def test_nobody_helps_if_the_disk_has_no_room_for_early_bytes(
    file: _File, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = _peers(3)
    monkeypatch.setattr(cluster_download, "free_bytes", lambda disk: len(CONTENT) + 10_000)
    assert await file.fetch(_session(peers))
    assert file.is_right()
    assert [_downloads(peer) for peer in peers] == [[0], [], []]


async def test_a_full_disk_ends_the_download(file: _File, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spread, "write_at", _no_room)
    monkeypatch.setattr(p2p_session, "write_at", _no_room)
    with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
        await file.fetch(_session(_peers(3)))


async def test_a_cancelled_download_keeps_its_prefix_and_leaves_no_request_open(file: _File) -> None:
    peers = _peers(3)
    with anyio.move_on_after(0.15):
        await file.fetch(_session(peers))
    assert CONTENT.startswith(file.path.read_bytes())
    assert file.path.stat().st_size > CHUNK
    assert [peer.under_way for peer in peers] == [0, 0, 0]
    assert list(file.directory.iterdir()) == [file.path]
