"""How the fault of one key or node affects the others."""

from __future__ import annotations

import anyio
import pytest

from cluster_remote.cluster.asking import NodeSessions
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p.errors import (
    ConnectionLost,
    NotReached,
    NotTheProtocol,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import UUID
from tests.cluster.fakes import CLUSTER, FILE, Log, Peer, key_of

pytestmark = pytest.mark.anyio

CONTENT = b"twenty bytes of text"
KEY = key_of(CONTENT)
NODE_UUID = UUID("11111111-1111-1111-1111-111111111111")
NODE = Node(NODE_UUID, "node1", "", 100.0, session=lambda: pytest.fail("not asked"))


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (Refused, False),
        (ProtocolError, False),
        (ConnectionLost, False),
        (NotReached, True),
        (NotTheProtocol, True),
        (TimedOut, True),
        (Unreachable, True),
    ],
)
def test_only_connection_errors_make_a_node_count_as_unavailable(error: type[SessionError], is_away: bool) -> None:
    now = [0.0]
    reachability = Reachability(lambda: now[0])
    asking = NodeSessions(5.0, reachability)

    def ask() -> None:
        with asking.observed(NODE):
            now[0] += 1.0
            raise error("it could not")

    with pytest.raises(error):
        ask()
    assert (reachability.resting("node1") is not None) is is_away


# Silent nodes


def _of(peers: list[Peer], timeout: float, reachability: Reachability | None = None) -> ClusterSession:
    log = Log({KEY: [peer.number for peer in peers]})
    nodes = [peer.node(cost) for cost, peer in enumerate(peers)]
    return ClusterSession(CLUSTER, nodes, log, name="mycluster", timeout=timeout, reachability=reachability)


async def _read(session: ClusterSession) -> bytes:
    received = b""
    async with session.download(KEY, FILE) as download:
        async for chunk in download.chunks():
            received += chunk
        assert await download.valid()
    return received


async def test_several_silent_nodes_delay_a_read_by_less_than_one_timeout() -> None:
    for ask in (_read, lambda session: session.check_present(KEY)):
        peers = [*(Peer(n, silent=True) for n in (1, 2, 3)), Peer(4, contents={KEY: CONTENT})]
        session = _of(peers, timeout=2.0)
        with anyio.fail_after(1.9):
            assert await ask(session)
        assert [peer.under_way for peer in peers] == [0, 0, 0, 0]


async def test_reads_avoid_a_node_that_was_silent_but_uploads_do_not() -> None:
    now = [0.0]
    reachability = Reachability(lambda: now[0])
    peers = [Peer(1, silent=True), Peer(2, contents={KEY: CONTENT})]
    session = _of(peers, 0.2, reachability)
    assert await session.check_present(KEY)
    assert await _read(session) == CONTENT
    assert peers[0].requests == ["check"]
    assert reachability.resting("node1") is None
    now[0] += 120.0
    assert await _read(session) == CONTENT
    assert peers[0].requests == ["check", "download 0"]


async def test_a_repeated_download_comes_from_the_least_recently_used_node() -> None:
    peers = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2)]
    session = _of(peers, 30.0)
    for times in ((1, 0), (1, 1), (2, 1), (2, 2)):
        assert await _read(session) == CONTENT
        assert tuple(len(peer.requests) for peer in peers) == times


async def test_a_node_that_answers_at_once_is_the_only_one_asked() -> None:
    peers = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2)]
    session = _of(peers, 30.0)
    assert await _read(session) == CONTENT
    assert await session.check_present(KEY)
    assert peers[1].requests == []


async def test_a_silent_node_is_asked_again_when_the_one_that_gave_breaks_off() -> None:
    class Slow(Peer):
        async def enter(self, request: str) -> None:
            await super().enter(request)
            await anyio.sleep(0.2 if len(self.requests) == 1 else 0)

    peers = [Slow(1, contents={KEY: CONTENT}), Peer(2, contents={KEY: CONTENT}, break_after=7)]
    assert await _read(_of(peers, 0.5)) == CONTENT
    assert peers[0].requests == ["download 0", "download 7"]


async def test_a_read_with_every_node_silent_fails_with_the_reason_of_each() -> None:
    peers = [Peer(n, silent=True) for n in (1, 2, 3)]
    for ask in (_read, lambda session: session.check_present(KEY)):
        with anyio.fail_after(2), pytest.raises(SessionError) as raised:
            await ask(_of(peers, 0.2))
        assert str(raised.value).count("no answer within") == 3
