"""The cluster as one session, with nodes that fail at any request and at any byte."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path

import anyio
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p.errors import (
    ConnectionLost,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Present, Removal, Stored, Upload
from cluster_remote.remote.retrieval import retrieve
from tests.cluster.fakes import CLUSTER, FILE, Content, FakeSession, Log, Peer, key_of, uuid

pytestmark = pytest.mark.anyio

CONTENT = b"0123456789abcdefghij"
KEY = key_of(CONTENT)
CHUNK_KEY = Key("GPGHMACSHA1--abcdef")


def first(_: int) -> int:
    return 0


def cluster(
    peers: Sequence[Peer],
    log: Log | None = None,
    *,
    costs: Sequence[float] = (),
    timeout: float = 30.0,
    clock: Callable[[], float] | None = None,
    uploader: FakeSession | None = None,
) -> ClusterSession:
    log = log or Log()
    return ClusterSession(
        CLUSTER,
        [peer.node(cost) for peer, cost in zip(peers, [*costs, *[100.0] * len(peers)], strict=False)],
        log,
        name="mycluster",
        record=log,
        timeout=timeout,
        clock=clock or (lambda: 5000.5),
        # The memory of failures has tests of its own.
        reachability=Reachability(lambda: 0.0) if clock is None else None,
        pick=first,
        uploader=None if uploader is None else lambda _: uploader,
    )


def three() -> list[Peer]:
    return [Peer(1), Peer(2), Peer(3)]


def uuids(*numbers: int) -> frozenset[UUID]:
    return frozenset(map(uuid, numbers))


both_kinds = pytest.mark.parametrize("repeatable", [True, False], ids=["file", "stream"])


# Uploads


@both_kinds
async def test_an_upload_reaches_every_node_and_is_recorded_for_each(repeatable: bool) -> None:
    peers, log = three(), Log()
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(True, uuids(1, 2, 3))
    assert [peer.contents for peer in peers] == [{KEY: CONTENT}] * 3
    assert log.recorded == [("present", KEY, uuids(1, 2, 3))]


@both_kinds
async def test_an_upload_goes_only_to_the_nodes_that_lack_the_key_by_the_log(repeatable: bool) -> None:
    peers, log = three(), Log({KEY: [2]})
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(True, uuids(1, 3))
    assert peers[1].requests == []


@both_kinds
async def test_all_nodes_are_asked_if_the_log_lists_them_all_since_it_may_be_wrong(repeatable: bool) -> None:
    peers, log = three(), Log({KEY: [1, 2, 3, 9]})
    peers[0].contents[KEY] = CONTENT
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(True, uuids(2, 3), present=uuids(1))
    assert [peer.received for peer in peers] == [[], [CONTENT], [CONTENT]]
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Present(uuids(1, 2, 3))


async def test_the_log_alone_does_not_make_an_upload_succeed() -> None:
    peers, log = [Peer(1, refuse=Unreachable("1: no route to it"))], Log({KEY: [1]})
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=True))
    assert stored == Stored(False, frozenset(), ("disk 1 (shelf) [node1]: 1: no route to it",))
    with pytest.raises(SessionError, match="no route to it"):
        await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=False))


@both_kinds
async def test_a_node_that_already_has_the_content_counts_and_is_recorded(repeatable: bool) -> None:
    peers, log = three(), Log()
    peers[0].contents[KEY] = CONTENT
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(True, uuids(2, 3), present=uuids(1))
    assert log.recorded == [("present", KEY, uuids(1, 2, 3))]
    assert peers[0].received == []


@both_kinds
async def test_an_upload_is_already_present_if_every_unrecorded_node_has_it(repeatable: bool) -> None:
    peers, log = three(), Log({KEY: [3]})
    for peer in peers:
        peer.contents[KEY] = CONTENT
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Present(uuids(1, 2))
    assert log.recorded == [("present", KEY, uuids(1, 2))]


FAILURES = {
    "unreachable": lambda: Peer(2, refuse=Unreachable("2: no route to it")),
    "refuses": lambda: Peer(2, refuse=Refused("2: read-only")),
    "garbage": lambda: Peer(2, refuse=ProtocolError("2: expected PUT-FROM")),
    "fails": lambda: Peer(2, fails=True),
    "breaks at once": lambda: Peer(2, break_after=0),
    "breaks inside a chunk": lambda: Peer(2, break_after=5),
    "breaks between chunks": lambda: Peer(2, break_after=8),
    "breaks before the last byte": lambda: Peer(2, break_after=len(CONTENT) - 1),
    "stalls": lambda: Peer(2, stall_after=6),
    "claims too much": lambda: Peer(2, partial={KEY: CONTENT + b"more"}),
}


@both_kinds
@pytest.mark.parametrize("failure", [name for name in FAILURES if name != "claims too much"])
async def test_a_failing_node_is_skipped_and_named_and_the_others_store(failure: str, repeatable: bool) -> None:
    bad = FAILURES[failure]()
    peers, log = [Peer(1), bad, Peer(3, partial={KEY: CONTENT[:7]})], Log()
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert isinstance(stored, Stored)
    assert stored.stored
    assert stored.uuids == uuids(1, 3)
    (reason,) = stored.reasons
    assert reason.startswith("disk 2 (shelf) [node2]: ")
    assert peers[0].contents == peers[2].contents == {KEY: CONTENT}
    assert log.recorded == [("present", KEY, uuids(1, 3))]
    assert [peer.under_way for peer in peers] == [0, 0, 0]


async def test_a_node_claiming_more_bytes_than_exist_is_left_out_of_a_stream() -> None:
    peers, log = [Peer(1), FAILURES["claims too much"]()], Log()
    async with cluster(peers, log).upload(KEY, FILE) as offer:
        assert isinstance(offer, Upload)
        stored = await offer.send(Content(CONTENT, repeatable=False))
    assert stored.uuids == uuids(1)
    (reason,) = stored.reasons
    assert reason.startswith("disk 2 (shelf) [node2]: ")
    assert "24 bytes" in reason


@both_kinds
async def test_an_upload_that_no_node_stores_fails_with_the_reason_of_each(repeatable: bool) -> None:
    peers = [Peer(1, refuse=Unreachable("no route")), Peer(2, fails=True), Peer(3, refuse=Refused("read-only"))]
    log = Log()
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(
        False,
        frozenset(),
        (
            "disk 1 (shelf) [node1]: no route",
            "disk 2 (shelf) [node2]: did not store it",
            "disk 3 (shelf) [node3]: read-only",
        ),
    )
    assert log.recorded == []


async def test_an_offer_no_node_accepts_fails_with_the_reason_of_each() -> None:
    peers = [Peer(1, refuse=Unreachable("no route")), Peer(2, refuse=Refused("read-only"))]
    with pytest.raises(SessionError) as raised:
        async with cluster(peers).upload(KEY, FILE):
            pytest.fail("there is nothing to send to")
    assert str(raised.value) == (
        f"mycluster: no node accepted {KEY}: disk 1 (shelf) [node1]: no route; disk 2 (shelf) [node2]: read-only"
    )


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ([Refused("a"), Refused("b")], Refused),
        ([Unreachable("a"), TimedOut("b")], Unreachable),
        ([Unreachable("a"), Refused("b")], SessionError),
    ],
)
async def test_the_combined_error_has_the_kind_common_to_all_nodes(
    errors: list[SessionError], expected: type[SessionError]
) -> None:
    with pytest.raises(SessionError) as raised:
        async with cluster([Peer(n, refuse=error) for n, error in enumerate(errors)]).upload(KEY, FILE):
            pytest.fail("there is nothing to send to")
    assert type(raised.value) is expected


async def test_a_stream_every_node_abandons_stops_being_read_and_fails() -> None:
    content = bytes(100_000)
    key = key_of(content)
    source = Content(content, repeatable=False, chunks=(1000,))
    peers = [Peer(1, break_after=1500), Peer(2, stall_after=3000)]
    with pytest.raises(SessionError, match=r"no node accepted .*node1\]: 1: broke off; .*node2\]: 2: no progress"):
        await cluster(peers).store(key, FILE, source)


async def test_an_offer_returns_the_lowest_offset_and_each_node_gets_its_own_bytes() -> None:
    peers = [Peer(1, partial={KEY: CONTENT[:8]}), Peer(2, partial={KEY: CONTENT[:3]}), Peer(3, partial={KEY: CONTENT})]
    async with cluster(peers).upload(KEY, FILE) as offer:
        assert isinstance(offer, Upload)
        assert offer.offset == 3
        await offer.send(Content(CONTENT, repeatable=False))
    assert [peer.received for peer in peers] == [[CONTENT[8:]], [CONTENT[3:]], [b""]]
    assert [peer.contents[KEY] for peer in peers] == [CONTENT] * 3


@given(
    content=st.binary(max_size=80),
    nodes=st.lists(st.tuples(st.integers(0, 80), st.none() | st.integers(0, 80)), min_size=1, max_size=5),
    chunks=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    repeatable=st.booleans(),
    two_steps=st.booleans(),
)
@example(content=b"", nodes=[(0, None), (0, 0)], chunks=[1], repeatable=False, two_steps=True)
@example(content=b"abcd", nodes=[(4, None), (2, 1), (0, None)], chunks=[2], repeatable=False, two_steps=True)
def test_the_other_nodes_store_the_content_whatever_fails_on_one(
    content: bytes, nodes: list[tuple[int, int | None]], chunks: list[int], repeatable: bool, two_steps: bool
) -> None:
    key = key_of(content)
    peers = [
        Peer(number, partial={key: content[:offset]}, break_after=limit) for number, (offset, limit) in enumerate(nodes)
    ]
    lacks = [max(len(content) - offset, 0) for offset, _ in nodes]
    survivors = {n for n, (_, limit) in enumerate(nodes) if limit is None or lacks[n] <= limit}
    source = Content(content, repeatable=repeatable, chunks=chunks)
    session = cluster(peers)
    progress: list[int] = []

    async def run() -> Present | Stored | SessionError:
        try:
            if not two_steps:
                return await session.store(key, FILE, source, progress.append)
            async with session.upload(key, FILE) as offer:
                assert isinstance(offer, Upload)
                return await offer.send(source, progress.append)
        except SessionError as error:
            return error

    outcome = anyio.run(run)
    for number, peer in enumerate(peers):
        offset, limit = nodes[number]
        if number in survivors:
            assert peer.contents == {key: content}
        assert peer.received[0] == content[offset:][: limit if limit is not None else None]
    if survivors:
        assert isinstance(outcome, Stored)
        assert outcome.stored
        assert outcome.uuids == uuids(*survivors)
        assert len(outcome.reasons) == len(peers) - len(survivors)
    else:
        assert isinstance(outcome, SessionError) or not (isinstance(outcome, Stored) and outcome.stored)
    assert progress == sorted(set(progress))
    assert repeatable or source.reads == 1


async def test_a_node_that_does_not_answer_the_offer_is_skipped_after_the_timeout() -> None:
    peers, log = [Peer(1), Peer(2, silent=True)], Log()
    async with cluster(peers, log, timeout=0.05).upload(KEY, FILE) as offer:
        assert isinstance(offer, Upload)
        stored = await offer.send(Content(CONTENT, repeatable=False))
    assert stored.uuids == uuids(1)
    (reason,) = stored.reasons
    assert reason.startswith("disk 2 (shelf) [node2]: ")
    assert "0.05 seconds" in reason
    assert peers[1].under_way == 0


async def test_leaving_without_sending_aborts_the_upload_on_every_node() -> None:
    peers, log = three(), Log()
    session = cluster(peers, log)
    async with session.upload(KEY, FILE) as offer:
        assert isinstance(offer, Upload)
        assert [peer.under_way for peer in peers] == [1, 1, 1]
    assert [peer.under_way for peer in peers] == [0, 0, 0]
    assert log.recorded == []
    assert await session.check_present(KEY) is False


async def test_an_error_of_the_uploader_propagates() -> None:
    peers = three()
    with pytest.raises(ZeroDivisionError):
        async with cluster(peers).upload(KEY, FILE):
            raise ZeroDivisionError
    assert [peer.under_way for peer in peers] == [0, 0, 0]


@both_kinds
@pytest.mark.parametrize("two_steps", [True, False])
async def test_a_bad_source_fails_the_upload_and_stores_nothing(repeatable: bool, two_steps: bool) -> None:
    peers, log = three(), Log()
    session = cluster(peers, log)
    source = Content(CONTENT, repeatable=repeatable, break_after=8)

    async def upload() -> None:
        async with session.upload(KEY, FILE) as offer:
            assert isinstance(offer, Upload)
            await offer.send(source)

    with pytest.raises(SourceError, match="the disk is gone"):
        await (upload() if two_steps else session.store(KEY, FILE, source))
    assert [peer.contents for peer in peers] == [{}, {}, {}]
    assert [peer.under_way for peer in peers] == [0, 0, 0]
    assert log.recorded == []


@both_kinds
async def test_a_node_with_the_content_is_recorded_even_if_the_source_fails_for_another(repeatable: bool) -> None:
    peers, log = [Peer(1, contents={KEY: CONTENT}), Peer(2)], Log()
    with pytest.raises(SourceError):
        await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable, break_after=12))
    assert log.recorded == [("present", KEY, uuids(1))]


@both_kinds
async def test_invalid_content_is_relayed_to_every_node(repeatable: bool) -> None:
    peers, log = three(), Log()
    stored = await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable, valid=False))
    assert isinstance(stored, Stored)
    assert not stored.stored
    assert [peer.received for peer in peers] == [[CONTENT]] * 3
    assert log.recorded == []


@both_kinds
async def test_progress_follows_the_slowest_node(repeatable: bool) -> None:
    peers = [Peer(1), Peer(2, partial={KEY: CONTENT[:10]}), Peer(3, break_after=6)]
    told: list[int] = []
    source = Content(CONTENT, repeatable=repeatable, chunks=(2,))
    await cluster(peers).store(KEY, FILE, source, told.append)
    assert told == sorted(set(told))
    assert told[-1] == len(CONTENT)


@both_kinds
async def test_an_upload_is_recorded_before_it_is_answered_and_fails_if_recording_fails(repeatable: bool) -> None:
    peers, log = three(), Log()

    def broken() -> None:
        # Nothing is recorded before it is there.
        assert {KEY: CONTENT} in [peer.contents for peer in peers]
        log.broken = True

    log.before_recording = broken
    with pytest.raises(SessionError, match=r"stored on 0.* but this could not be recorded: the disk is full"):
        await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    # That one could not be recorded keeps no other from getting it.
    assert [peer.contents for peer in peers] == [{KEY: CONTENT}] * 3


async def test_an_unreadable_log_is_a_session_error() -> None:
    log = Log()
    log.broken = True
    with pytest.raises(SessionError, match="mycluster: the log cannot be read"):
        await cluster(three(), log).check_present(KEY)


async def test_repositories_behind_another_gateway_count_as_nodes_but_a_cluster_does_not() -> None:
    far = Peer(7, plus=uuids(4, 5) | {CLUSTER})
    near, log = Peer(1), Log({KEY: [4]})
    session = ClusterSession(
        CLUSTER, [near.node(), far.node(members=uuids(4, 5))], log, name="mycluster", record=log, pick=first
    )
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Stored(True, uuids(1, 4, 5))
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Present(uuids(1, 4, 5))
    assert far.requests == ["upload", "upload"]
    assert await session.remove(KEY) == Removal(True, uuids(1, 4, 5))


async def test_a_gateway_too_old_to_name_nodes_removes_from_all_and_stores_on_none_we_know() -> None:
    far, log = Peer(7), Log()
    session = ClusterSession(CLUSTER, [far.node(members=uuids(4, 5))], log, name="c", record=log, pick=first)
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Stored(True, frozenset())
    assert await session.remove(KEY) == Removal(True, uuids(4, 5))


async def test_a_node_reached_through_another_gateway_is_not_named_as_failed() -> None:
    near, far = Peer(1, fails=True), Peer(7, plus=uuids(1, 4))
    log = Log()
    session = ClusterSession(CLUSTER, [near.node(), far.node(members=uuids(4))], log, name="c", record=log, pick=first)
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Stored(True, uuids(1, 4))


@both_kinds
async def test_nodes_are_not_asked_if_another_session_does_the_uploads(repeatable: bool) -> None:
    native, peers, log = Peer(8, plus=uuids(1, 3)), three(), Log()
    session = cluster(peers, log, uploader=native.session())
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=repeatable)) == Stored(True, uuids(1, 3))
    assert [peer.requests for peer in peers] == [[], [], []]
    await session.aclose()
    assert native.closed == 1


async def test_a_stream_starts_at_the_delegates_offset() -> None:
    native = Peer(8, partial={KEY: CONTENT[:4]})
    async with cluster(three(), uploader=native.session()).upload(KEY, FILE) as offer:
        assert isinstance(offer, Upload)
        assert offer.offset == 4


# Removals


async def test_a_removal_goes_to_every_node_whatever_the_log_says() -> None:
    peers, log = three(), Log({KEY: [2]})
    for peer in peers:
        peer.contents[KEY] = CONTENT
    assert await cluster(peers, log).remove(KEY) == Removal(True, uuids(1, 2, 3))
    assert [peer.contents for peer in peers] == [{}, {}, {}]
    assert log.recorded == [("absent", KEY, uuids(1, 2, 3))]


async def test_a_removal_fails_and_names_the_nodes_that_did_not_remove() -> None:
    peers = [Peer(1, refuse=Unreachable("no route")), Peer(2), Peer(3, fails=True), Peer(4, silent=True)]
    log = Log({KEY: [1, 2, 3]})
    removal = await cluster(peers, log, timeout=0.05).remove(Key("WORM--nosize"))
    assert not removal.removed
    assert removal.uuids == uuids(2)
    assert removal.reasons == (
        "disk 1 (shelf) [node1]: no route",
        "disk 3 (shelf) [node3]: it is locked",
        "disk 4 (shelf) [node4]: no answer within 0.05 seconds",
    )
    assert log.recorded == [("absent", Key("WORM--nosize"), uuids(2))]


async def test_an_unanswered_removal_is_checked_and_recorded() -> None:
    peers, log = [Peer(1, contents={KEY: CONTENT}, answer_lost=True), Peer(2)], Log({KEY: [1]})
    assert await cluster(peers, log).remove(KEY) == Removal(True, uuids(1, 2))
    assert log.recorded == [("absent", KEY, uuids(1, 2))]


async def test_a_removal_from_given_nodes_leaves_the_others_alone() -> None:
    peers, log = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2, 3)], Log()
    assert await cluster(peers, log).remove_from(KEY, uuids(2)) == Removal(True, uuids(2))
    assert [KEY in peer.contents for peer in peers] == [True, False, True]
    assert log.recorded == [("absent", KEY, uuids(2))]


async def test_an_unreachable_node_makes_a_removal_partial() -> None:
    peers, log = three(), Log()
    nodes = [peer.node() for peer in peers]
    session = ClusterSession(CLUSTER, nodes, log, name="c", record=log, missing={uuid(9): "far disk"})
    outcome = await session.remove(KEY)
    assert (outcome.removed, outcome.uuids) == (False, uuids(1, 2, 3))
    assert outcome.reasons[0].startswith("far disk: ")


async def test_an_upload_is_not_recorded_before_the_last_node_has_answered() -> None:
    peers, log = three(), Log()

    def all_have_it() -> None:
        assert all(KEY in peer.contents for peer in peers)

    log.before_recording = all_have_it
    await cluster(peers, log).store(KEY, FILE, Content(CONTENT, repeatable=True))
    assert log.recorded == [("present", KEY, uuids(1, 2, 3))]


async def test_a_removal_that_cannot_be_recorded_is_an_error() -> None:
    log = Log()
    log.broken = True
    with pytest.raises(SessionError, match=r"removed from .* could not be recorded"):
        await cluster(three(), log).remove(KEY)


async def test_an_interrupted_removal_records_what_was_removed() -> None:
    peers, log = [Peer(1), Peer(2, silent=True)], Log()
    with anyio.move_on_after(0.05) as scope:
        await cluster(peers, log).remove(KEY)
    assert scope.cancelled_caught
    assert log.recorded == [("absent", KEY, uuids(1))]


@given(
    seconds=st.integers(0, 10_000),
    ours=st.floats(0, 10_000, allow_nan=False),
    passed=st.floats(0, 100),
    allowed=st.integers(0, 1000),
)
@example(seconds=1000, ours=5000.0, passed=0.0, allowed=0)
def test_a_timed_removal_expires_on_a_nodes_clock_no_later_than_on_ours(
    seconds: int, ours: float, passed: float, allowed: int
) -> None:
    peer = Peer(1, seconds=seconds)
    times = iter([ours, ours + passed])
    session = cluster([peer], clock=lambda: next(times, ours + passed))

    async def run() -> tuple[int, Removal]:
        before = await session.timestamp() + allowed
        return before, await session.remove(KEY, before)

    before, removal = anyio.run(run)
    # When our clock says `before`, the node's says at least `limit`: it was read before ours was.
    limit = seconds + before - (ours + passed)
    if removal.removed:
        (sent,) = peer.removals_before
        assert sent is not None
        assert limit - 2 < sent <= limit
        assert sent >= seconds
    else:
        assert peer.removals_before == []
        assert limit < seconds + 1


async def test_each_node_gets_the_deadline_by_its_own_clock() -> None:
    peers = [Peer(1, seconds=10), Peer(2, seconds=90_000)]
    session = cluster(peers, clock=lambda: 500.0)
    assert await session.timestamp() == 500
    assert (await session.remove(KEY, before=560)).removed
    assert [peer.removals_before for peer in peers] == [[70], [90_060]]


async def test_a_node_whose_clock_cannot_be_asked_does_not_remove() -> None:
    peers = [Peer(1), Peer(2, seconds=None, contents={KEY: CONTENT}), Peer(3, refuse=ConnectionLost("gone"))]
    session = cluster(peers)
    removal = await session.remove(KEY, before=await session.timestamp() + 60)
    assert not removal.removed
    assert removal.uuids == uuids(1)
    assert "needs version 3" in removal.reasons[0]
    assert peers[1].contents == {KEY: CONTENT}


async def test_the_clusters_clock_works_without_some_nodes() -> None:
    peers = [Peer(1, refuse=Unreachable("no route"))]
    assert await cluster(peers).timestamp() == 5000
    assert peers[0].requests == []


# Small contents on a local disk


@pytest.mark.parametrize("answer", [CONTENT, None, "never"])
async def test_small_content_is_read_only_from_the_node_a_download_would_ask_first(
    monkeypatch: pytest.MonkeyPatch, answer: bytes | str | None
) -> None:
    peers, log = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2, 3)], Log({KEY: [1, 2]})
    read: list[int] = []

    async def read_small(session: FakeSession, key: Key) -> bytes | None:
        read.append(session.peer.number)
        if isinstance(answer, str):
            await anyio.sleep_forever()
        return answer if isinstance(answer, bytes) else None

    monkeypatch.setattr(FakeSession, "read_small", read_small)
    session = cluster(peers, log, costs=[200, 100, 50], timeout=0.5)
    assert await fetch(session) == (len(CONTENT), CONTENT, True)
    assert read == [2]
    # Asked again, whoever has read it doubts this copy.
    assert await fetch(session, offset=3) == (len(CONTENT) - 3, CONTENT[3:], True)
    assert read == [2, 1]
    expected = [[], []] if answer == CONTENT else [["download 3"], ["download 0"]]
    assert [peer.requests for peer in peers] == [*expected, []]


# Presence


async def test_the_cheapest_recorded_node_is_asked() -> None:
    peers, log = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2, 3)], Log({KEY: [1, 2]})
    assert await cluster(peers, log, costs=[200, 100, 50]).check_present(KEY)
    assert [peer.requests for peer in peers] == [[], ["check"], []]


async def test_nodes_of_equal_cost_share_the_reads() -> None:
    peers, log = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2, 3)], Log({KEY: [1, 2, 3]})
    turns = count()
    session = ClusterSession(
        CLUSTER, [peer.node() for peer in peers], log, name="c", pick=lambda among: next(turns) % among
    )
    for _ in range(6):
        assert await session.check_present(KEY)
    assert [len(peer.requests) for peer in peers] == [2, 2, 2]


@pytest.mark.parametrize("failing", [Refused("no"), Unreachable("away"), TimedOut("stalls")])
async def test_a_check_falls_through_to_the_next_node(failing: SessionError) -> None:
    peers, log = [Peer(1, refuse=failing), Peer(2), Peer(3, contents={KEY: CONTENT})], Log({KEY: [1, 2, 3]})
    assert await cluster(peers, log).check_present(KEY)


async def test_content_on_no_recorded_node_is_absent_and_no_other_node_is_asked() -> None:
    peers = [Peer(1), Peer(2), Peer(3, contents={KEY: CONTENT})]
    assert await cluster(peers, Log({KEY: [1, 2]})).check_present(KEY) is False
    assert [peer.requests for peer in peers] == [["check"], ["check"], []]


async def test_no_node_is_asked_about_unrecorded_content() -> None:
    peers = [Peer(n, contents={KEY: CONTENT}) for n in (1, 2, 3)]
    assert await cluster(peers, Log()).check_present(KEY) is False
    assert [peer.requests for peer in peers] == [[], [], []]


async def test_a_node_lacking_content_does_not_hide_anothers_copy() -> None:
    peers = [Peer(1, refuse=Unreachable("away")), Peer(2), Peer(3, contents={KEY: CONTENT})]
    assert await cluster(peers, Log({KEY: [1, 2, 3]})).check_present(KEY)


async def test_content_on_an_unavailable_node_is_unknown() -> None:
    peers = [Peer(1), Peer(2, refuse=Unreachable("away"))]
    with pytest.raises(SessionError, match=r"cannot tell whether it has .*: disk 2 \(shelf\) \[node2\]: away"):
        await cluster(peers, Log({KEY: [2]})).check_present(KEY)


async def test_when_no_node_answers_presence_is_unknown() -> None:
    with pytest.raises(Unreachable, match="cannot tell"):
        await cluster([Peer(1, refuse=Unreachable("away"))], Log({KEY: [1]})).check_present(KEY)


async def test_every_node_must_answer_for_encrypted_content_since_the_log_lacks_it() -> None:
    log = Log()
    peers = [Peer(1), Peer(2, contents={CHUNK_KEY: b"x"})]
    assert await cluster(peers, log).check_present(CHUNK_KEY)
    peers[1].refuse = Unreachable("away")
    assert not await cluster(peers, log).check_present(CHUNK_KEY), "an upload reaches every node that is there"
    peers[1].refuse = ConnectionLost("broke")
    with pytest.raises(SessionError, match="cannot tell"):
        await cluster(peers, log).check_present(CHUNK_KEY)
    for peer in peers:
        peer.refuse = Unreachable("away")
    with pytest.raises(SessionError, match="cannot tell"):
        await cluster(peers, log).check_present(CHUNK_KEY)


async def test_without_a_log_every_node_must_answer() -> None:
    peers = [Peer(1), Peer(2, contents={KEY: CONTENT})]
    session = ClusterSession(CLUSTER, [peer.node() for peer in peers], None, name="c", pick=first)
    assert await session.check_present(KEY)
    assert (await fetch(session))[1] == CONTENT
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Stored(True, uuids(1), present=uuids(2))
    peers[0].refuse = ConnectionLost("broke")
    peers[1].contents.clear()
    with pytest.raises(SessionError, match="cannot tell"):
        await session.check_present(KEY)


async def test_a_silent_node_delays_a_check_by_at_most_the_timeout() -> None:
    peers, log = [Peer(1, silent=True), Peer(2, contents={KEY: CONTENT})], Log({KEY: [1, 2]})
    assert await cluster(peers, log, timeout=0.05).check_present(KEY)


# Downloads


async def fetch(session: ClusterSession, key: Key = KEY, offset: int = 0) -> tuple[int, bytes, bool]:
    received = b""
    async with session.download(key, FILE, offset) as download:
        async for chunk in download.chunks():
            received += chunk
        return download.length, received, await download.valid()


def holders(*numbers: int) -> list[Peer]:
    return [Peer(n, contents={KEY: CONTENT}) for n in numbers]


async def test_a_download_comes_from_the_cheapest_recorded_node() -> None:
    peers, log = holders(1, 2, 3), Log({KEY: [1, 2]})
    assert await fetch(cluster(peers, log, costs=[200, 100, 50])) == (20, CONTENT, True)
    assert [peer.requests for peer in peers] == [[], ["download 0"], []]


@given(
    content=st.binary(max_size=60),
    offset=st.integers(0, 60),
    limits=st.lists(st.tuples(st.integers(0, 20), st.integers(1, 9)), max_size=5),
    sized=st.booleans(),
)
@example(content=b"abc", offset=3, limits=[(0, 1)], sized=True)
@example(content=b"", offset=0, limits=[(0, 1)], sized=False)
def test_a_download_resumes_at_the_same_byte_wherever_nodes_disconnect(
    content: bytes, offset: int, limits: list[tuple[int, int]], sized: bool
) -> None:
    offset = min(offset, len(content))
    key = key_of(content) if sized else Key("SHA256--nosize")
    peers = [
        Peer(n, contents={key: content}, break_after=limit, chunk=chunk) for n, (limit, chunk) in enumerate(limits)
    ]
    peers.append(Peer(90, contents={key: content}))
    log = Log({key: [peer.number for peer in peers]})
    session = cluster(peers, log, costs=[*range(1, len(limits) + 1), 99])
    assert anyio.run(fetch, session, key, offset) == (len(content) - offset, content[offset:], True)
    asked = [int(request.split()[1]) for peer in peers for request in peer.requests]
    assert asked == sorted(asked)


@pytest.mark.parametrize(
    "bad",
    [
        Peer(1),
        Peer(1, refuse=Refused("no such key")),
        Peer(1, refuse=Unreachable("away")),
        Peer(1, contents={KEY: CONTENT[:-2]}),
        Peer(1, contents={KEY: CONTENT}, stall_after=7),
        Peer(1, contents={KEY: CONTENT}, verdict_lost=True),
    ],
    ids=["missing", "refuses", "unreachable", "short", "stalls", "lost before its verdict"],
)
async def test_a_download_skips_a_node_that_cannot_send(bad: Peer) -> None:
    log = Log({KEY: [1]})
    assert await fetch(cluster([bad, *holders(2)], log)) == (20, CONTENT, True)
    assert bad.under_way == 0


async def test_unrecorded_nodes_are_asked_last() -> None:
    peers = [Peer(1), Peer(2, contents={KEY: CONTENT})]
    assert await fetch(cluster(peers, Log({KEY: [1]}), costs=[200, 100])) == (20, CONTENT, True)
    assert peers[0].requests == ["download 0"]


async def test_a_download_skips_a_silent_node_after_the_timeout() -> None:
    log = Log({KEY: [1]})
    assert await fetch(cluster([Peer(1, silent=True), *holders(2)], log, timeout=0.05)) == (20, CONTENT, True)


async def test_downloading_content_on_no_node_fails_with_the_reason_of_each() -> None:
    peers = [Peer(1), Peer(2, refuse=Unreachable("away"))]
    with pytest.raises(SessionError) as raised:
        await fetch(cluster(peers))
    assert str(raised.value) == (
        f"mycluster: no node sent {KEY}: disk 1 (shelf) [node1]: does not have the content; "
        "disk 2 (shelf) [node2]: away"
    )


async def test_downloading_content_gone_from_every_node_is_refused() -> None:
    with pytest.raises(Refused):
        await fetch(cluster(three()))


async def test_the_error_names_every_node_when_the_last_one_disconnects() -> None:
    peers = [Peer(n, contents={KEY: CONTENT}, break_after=4) for n in (1, 2)]
    with pytest.raises(SessionError, match=r"node1\]: 1: broke off; .*node2\]: 2: broke off"):
        await fetch(cluster(peers))


async def test_an_encrypted_download_never_resumes_from_another_node() -> None:
    # Where a node got its copy by an upload of its own, that is encrypted in another way.
    key = Key("GPGHMACSHA1--abc")
    peers = [Peer(1, contents={key: b"a" * 20}, break_after=4), Peer(2, contents={key: b"b" * 20})]
    with pytest.raises(SessionError, match="broke off"):
        await fetch(cluster(peers), key)
    peers[0].break_after = 0
    assert await fetch(cluster(peers), key) == (20, b"b" * 20, True)


@pytest.mark.parametrize("name", ["WORM-s20--a", "URL--a", "URL-s20--a", "VURL-s20--a", "XWHAT-s20--a", "NEW-s20--a"])
@pytest.mark.parametrize("into_a_file", [True, False])
async def test_without_a_checksum_two_nodes_bytes_are_never_combined(
    name: str, into_a_file: bool, tmp_path: Path
) -> None:
    key = Key(name)
    peers = [Peer(1, contents={key: b"a" * 20}, break_after=4), Peer(2, contents={key: b"b" * 20})]
    session = cluster(peers, Log({key: [1, 2]}))
    if into_a_file:
        path = tmp_path / "content"
        path.write_bytes(b"c" * 10)
        await retrieve(session, key, bytes(path), lambda position: None)
        assert path.read_bytes() == b"b" * 20
        assert [peer.requests for peer in peers] == [["download 0"], ["download 0"]]
        return
    with pytest.raises(SessionError, match="broke off"):
        await fetch(session, key)
    # A second request gets it from the other one.
    assert await fetch(session, key) == (20, b"b" * 20, True)


async def test_a_repeated_download_tries_another_node_first() -> None:
    peers = holders(1, 2)
    session = cluster(peers, Log({KEY: [1, 2]}))
    for _ in range(3):
        await fetch(session)
    assert [len(peer.requests) for peer in peers] == [2, 1]


async def test_content_the_node_calls_invalid_is_not_valid() -> None:
    peers = [Peer(1, contents={KEY: CONTENT}, verdict=False), *holders(2)]
    assert await fetch(cluster(peers, Log({KEY: [1, 2]}))) == (20, CONTENT, False)


async def test_leaving_a_download_early_disconnects_from_the_node() -> None:
    peers = holders(1)
    session = cluster(peers)
    async with session.download(KEY, FILE) as download:
        async for _ in download.chunks():
            break
    assert peers[0].under_way == 0
    assert (await fetch(session))[1] == CONTENT


async def test_validity_is_unknown_before_the_end() -> None:
    async with cluster(holders(1)).download(KEY, FILE) as download:
        with pytest.raises(RuntimeError, match="not been read to its end"):
            await download.valid()


# The session itself


async def test_a_cluster_cannot_be_locked() -> None:
    peers = holders(1)
    async with cluster(peers).lock(KEY) as locked:
        assert locked is False
    assert peers[0].requests == []


async def test_node_sessions_are_opened_once_and_kept() -> None:
    peers, log = three(), Log()
    session = cluster(peers, log)
    assert await session.open() == CLUSTER
    assert [peer.sessions for peer in peers] == [0, 0, 0]
    await session.store(KEY, FILE, Content(CONTENT, repeatable=True))
    await session.remove(KEY)
    await session.check_present(KEY)
    assert [peer.sessions for peer in peers] == [1, 1, 1]
    await session.aclose()
    assert [peer.closed for peer in peers] == [1, 1, 1]


async def test_concurrent_requests_on_one_session_are_a_programming_error() -> None:
    session = cluster(three())
    async with session.upload(KEY, FILE):
        with pytest.raises(RuntimeError, match="one request at a time"):
            await session.check_present(KEY)


async def test_the_session_survives_an_error() -> None:
    peers, log = [Peer(1, refuse=ConnectionLost("gone"))], Log({KEY: [1]})
    session = cluster(peers, log)
    with pytest.raises(SessionError):
        await session.check_present(KEY)
    peers[0].refuse = None
    assert await session.store(KEY, FILE, Content(CONTENT, repeatable=True)) == Stored(True, uuids(1))


async def test_a_node_without_a_possible_session_counts_as_unreachable() -> None:
    peers, log = three(), Log()
    nodes = [peer.node() for peer in peers]

    def no_session() -> FakeSession:
        raise ValueError("the ssh program in use cannot be given a port")

    nodes[1] = type(nodes[1])(nodes[1].uuid, "node2", "", 100.0, no_session)
    session = ClusterSession(CLUSTER, nodes, log, name="c", record=log, pick=first)
    stored = await session.store(KEY, FILE, Content(CONTENT, repeatable=True))
    assert stored == Stored(True, uuids(1, 3), ("node2: the ssh program in use cannot be given a port",))


@pytest.mark.parametrize("numbers", [[], [1, 1]], ids=["none", "two of one name"])
async def test_a_cluster_needs_nodes_with_distinct_names(numbers: list[int]) -> None:
    with pytest.raises(ValueError, match="cluster"):
        ClusterSession(CLUSTER, [Peer(n).node() for n in numbers], Log(), name="c")


@both_kinds
async def test_a_cluster_can_be_a_node_of_a_cluster(repeatable: bool) -> None:
    inner_peers, outer_peers, log = [Peer(4), Peer(5, break_after=2)], [Peer(1)], Log()

    def inner() -> ClusterSession:
        return ClusterSession(CLUSTER, [peer.node() for peer in inner_peers], Log(), name="inner", pick=first)

    nodes = [outer_peers[0].node(), Node(CLUSTER, "far", "far gateway", 200.0, inner, members=uuids(4, 5))]
    session = ClusterSession(CLUSTER, nodes, log, name="outer", record=log, pick=first)
    stored = await session.store(KEY, FILE, Content(CONTENT, repeatable=repeatable))
    assert stored == Stored(True, uuids(1, 4), ("far gateway [far]: disk 5 (shelf) [node5]: 5: broke off",))
    outer_peers[0].break_after = 5
    assert await fetch(session) == (20, CONTENT, True)
    await session.aclose()
    assert [peer.closed for peer in inner_peers] == [1, 1]


# A node that is away is not tried again for each of many files


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Slow(Peer):
    """A node that takes a while to be unreachable."""

    clock: Clock

    async def enter(self, request: str) -> None:
        self.requests.append(request)
        if self.refuse is not None:
            self.clock.now += 6.0
            raise self.refuse


def slow(number: int, clock: Clock) -> Slow:
    peer = Slow(number, refuse=Unreachable("no route"))
    peer.clock = clock
    return peer


async def test_a_node_that_cost_seconds_rests_for_ten_times_as_long() -> None:
    clock, log = Clock(), Log()
    away = slow(2, clock)
    session = cluster([Peer(1), away], log, clock=clock)

    async def store(number: int) -> Present | Stored:
        return await session.store(key_of(CONTENT, str(number)), FILE, Content(CONTENT, repeatable=True))

    assert await store(1) == Stored(True, uuids(1), ("disk 2 (shelf) [node2]: no route",))
    again = "disk 2 (shelf) [node2]: no route"
    assert await store(2) == Stored(True, uuids(1), (again,))
    clock.now += 59.0
    assert await store(3) == Stored(True, uuids(1), (again,))
    clock.now += 2.0
    away.refuse = None
    assert await store(4) == Stored(True, uuids(1, 2))


async def test_a_node_that_refuses_at_once_is_retried_each_time() -> None:
    clock, peers = Clock(), [Peer(1), Peer(2, refuse=Unreachable("no route"))]
    session = cluster(peers, Log(), clock=clock)
    for name in "ab":
        await session.store(key_of(CONTENT, name), FILE, Content(CONTENT, repeatable=True))
    assert peers[1].requests == ["upload", "upload"]


async def test_a_resting_node_is_tried_as_a_last_resort() -> None:
    clock, log = Clock(), Log({KEY: [2]})
    away = slow(2, clock)
    session = cluster([away], log, clock=clock)
    with pytest.raises(SessionError):
        await session.check_present(KEY)
    away.refuse = None
    away.contents[KEY] = CONTENT
    assert await session.check_present(KEY)
    away.refuse = Unreachable("no route")
    with pytest.raises(SessionError):
        await fetch(session)
    away.refuse = None
    assert (await fetch(session))[1] == CONTENT


async def test_a_removal_tries_a_resting_node() -> None:
    clock = Clock()
    peers = [Peer(1), slow(2, clock)]
    session = cluster(peers, Log(), clock=clock)
    await session.store(KEY, FILE, Content(CONTENT, repeatable=True))
    peers[1].refuse = None
    assert (await session.remove(KEY)).removed


async def test_reads_skip_a_resting_node() -> None:
    clock, log = Clock(), Log({KEY: [1, 2]})
    away = slow(1, clock)
    session = cluster([away, *holders(2)], log, clock=clock)
    assert await session.check_present(KEY)
    assert await session.check_present(KEY)
    assert (await fetch(session))[1] == CONTENT
    assert away.requests == ["check"]


async def test_a_node_that_stalls_midway_rests_for_a_while() -> None:
    clock, log = Clock(), Log({KEY: [1, 2]})
    stalling = Peer(1, contents={KEY: CONTENT}, stall_after=3)
    session = cluster([stalling, *holders(2)], log, clock=clock)
    assert (await fetch(session))[1] == CONTENT
    assert (await fetch(session))[1] == CONTENT
    assert stalling.requests == ["download 0"]
    clock.now += 121.0
    assert (await fetch(session))[1] == CONTENT
    assert stalling.requests == ["download 0", "download 0"]
