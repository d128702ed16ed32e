"""StreamSession: locks, uploads and downloads as contexts, step by step, in new versions of the protocol and in old."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import (
    ConnectionLost,
    ProtocolError,
    Refused,
    SourceError,
)
from cluster_remote.p2p.key import AssociatedFile, Key
from cluster_remote.p2p.session import Download, Stored, Upload
from tests.p2p.memory import Pieces
from tests.p2p.scripted import (
    HELLO,
    HELLO_0,
    KEY,
    NO_FILE,
    PRESENT,
    REQUESTS,
    UNSIZED,
    UPLOADED,
    conversation,
    fetch,
    hello,
    request_of,
    store,
    until_ended,
)
from tests.support.peers import Expect, Pause, Read, Reset, Script, Send, Stall

pytestmark = pytest.mark.anyio


# Contexts


@asynccontextmanager
async def _entered(session: StreamSession, word: str) -> AsyncIterator[object]:
    if word == "GET":
        async with session.download(KEY, NO_FILE) as download:
            yield download
    elif word == "PUT":
        async with session.upload(KEY, NO_FILE) as upload:
            yield upload
    else:
        async with session.lock(KEY) as locked:
            yield locked


BEGUN: dict[str, Script] = {
    "GET": [request_of("GET"), Send(b"DATA 6\n")],
    "PUT": [request_of("PUT"), Send(b"PUT-FROM 0\n")],
    "LOCKCONTENT": [request_of("LOCKCONTENT"), Send(b"SUCCESS\n")],
}


@pytest.mark.parametrize("word", ["GET", "PUT"])
async def test_leaving_an_unfinished_transfer_disconnects(word: str) -> None:
    async with conversation([*HELLO, *BEGUN[word], Stall()], [*HELLO, *PRESENT]) as (session, peer):
        async with _entered(session, word):
            pass
        assert session.version is None
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize("read", [0, 3, 6])
async def test_leaving_a_download_before_its_verdict_disconnects(read: int) -> None:
    content = Send(b"DATA 6\nabcdefVALID\n"[: 7 + read])
    async with conversation([*HELLO, request_of("GET"), content, Stall()], [*HELLO, *PRESENT]) as (session, _):
        async with session.download(KEY, NO_FILE) as download:
            if read:
                assert await anext(aiter(download.chunks())) == b"abcdef"[:read]
        assert await session.check_present(KEY)


@pytest.mark.parametrize("word", BEGUN)
async def test_an_exception_inside_a_transfer_propagates_unchanged(word: str) -> None:
    unlock: Script = [Expect(b"UNLOCKCONTENT"), *PRESENT] if word == "LOCKCONTENT" else [Stall()]
    async with conversation([*HELLO, *BEGUN[word], *unlock], [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(ZeroDivisionError):
            async with _entered(session, word):
                raise ZeroDivisionError
        assert await session.check_present(KEY)
        assert peer.connections == (1 if word == "LOCKCONTENT" else 2)


@pytest.mark.parametrize("word", ["GET", "PUT"])
async def test_anothers_refusal_inside_a_transfer_is_not_taken_for_this_peers(word: str) -> None:
    # The peer is slow, so that only the session itself can know that more is to come.
    script: Script = [*HELLO, *BEGUN[word], Pause(0.2), Send(b"abcdefVALID\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match=r"^another session said no$"):
            async with _entered(session, word):
                raise Refused("another session said no")
        assert await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_refusal_from_an_uploads_source_disconnects() -> None:
    source = Pieces(b"abc", length=6, raises=Refused("the other side said no"))
    async with conversation([*HELLO, *BEGUN["PUT"], Stall()], [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match="the other side said no"):
            await session.store(KEY, NO_FILE, source)
        assert await session.check_present(KEY)
        assert peer.connections == 2


async def test_a_lock_is_released_when_its_context_is_cancelled() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Expect(b"UNLOCKCONTENT"), *PRESENT]) as (session, peer):
        with anyio.move_on_after(0.1) as scope:
            async with session.lock(KEY):
                await anyio.sleep_forever()
        assert scope.cancelled_caught
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def _while_locked_until_ended(session: StreamSession, error: Exception | None = None) -> None:
    async with session.lock(KEY) as locked:
        assert locked
        await until_ended(session)
        if error is not None:
            raise error


async def test_a_lost_peer_does_not_hide_an_error_raised_under_its_lock() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Reset()], [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(ZeroDivisionError):
            await _while_locked_until_ended(session, ZeroDivisionError())
        assert await session.check_present(KEY)


async def test_a_lock_whose_peer_disconnected_is_an_error_at_its_end() -> None:
    async with conversation([*HELLO, *BEGUN["LOCKCONTENT"], Reset()]) as (session, _):
        with pytest.raises(ConnectionLost, match=r"locking SHA256E-s6--abc\.txt"):
            await _while_locked_until_ended(session)


async def test_a_refused_lock_is_not_unlocked() -> None:
    script: Script = [*HELLO, request_of("LOCKCONTENT"), Send(b"FAILURE\n"), *PRESENT]
    async with conversation(script) as (session, _):
        async with session.lock(KEY) as locked:
            assert not locked
        assert await session.check_present(KEY)


ENDED: dict[str, Script] = {
    "GET": [Send(b"abcdefVALID\n"), Expect(b"SUCCESS")],
    "PUT": UPLOADED[1:],
    "LOCKCONTENT": [Expect(b"UNLOCKCONTENT")],
}


@pytest.mark.parametrize("word", BEGUN)
async def test_a_concurrent_second_request_is_rejected_without_disturbing_the_first(word: str) -> None:
    outcome: Script = [Send(b"SUCCESS\n")] if word == "PUT" else []
    async with conversation([*HELLO, *BEGUN[word], *ENDED[word], *outcome, *PRESENT]) as (session, peer):
        async with _entered(session, word) as begun:
            for ask in REQUESTS.values():
                with pytest.raises(RuntimeError, match="one request at a time"):
                    await ask(session)
            with pytest.raises(RuntimeError, match="one request at a time"):
                await session.open()
            match begun:
                case Upload():
                    assert await begun.send(Pieces(b"abcdef")) == Stored(True)
                case Download():
                    assert b"".join([chunk async for chunk in begun.chunks()]) == b"abcdef"
                    assert await begun.valid()
        assert await session.check_present(KEY)
        assert peer.connections == 1


# Uploads


async def test_an_upload_starts_at_the_offset_the_peer_asks_for() -> None:
    sent: Script = [Send(b"PUT-FROM 4\n"), Expect(b"DATA 2"), Read(2), Expect(b"VALID"), Send(b"SUCCESS\n")]
    source = Pieces(b"ef")
    file = AssociatedFile("dir/a b")
    async with (
        conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer),
        session.upload(KEY, file) as upload,
    ):
        assert isinstance(upload, Upload)
        assert upload.offset == 4
        assert await upload.send(source) == Stored(True)
    assert source.offsets == [4]
    assert peer.bodies == [b"ef"]
    assert peer.received[2] == f"PUT dir/a%b {KEY}".encode()


async def test_a_peer_that_already_has_all_bytes_gets_empty_data() -> None:
    sent: Script = [Send(b"PUT-FROM 6\n"), Expect(b"DATA 0"), Expect(b"VALID"), Send(b"SUCCESS\n"), *PRESENT]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, _):
        assert await session.store(KEY, NO_FILE, Pieces()) == Stored(True)
        assert await session.check_present(KEY)


async def test_a_partial_file_longer_than_the_content_is_discarded_and_the_content_resent() -> None:
    ended: Script = [Send(b"PUT-FROM 7\n"), Expect(b"DATA 0"), Expect(b"VALID"), Send(b"FAILURE\n")]
    anew: Script = [request_of("PUT"), Send(b"PUT-FROM 6\n"), Stall()]
    async with conversation([*HELLO, request_of("PUT"), *ended, *anew]) as (session, _):
        with pytest.raises(ProtocolError, match="it still has 6 bytes of the partial upload"):
            await store(session)


@pytest.mark.parametrize("answer", [b"SUCCESS\n", b"VALID\n"])
async def test_a_peer_that_accepts_an_overlong_partial_file_is_not_believed(answer: bytes) -> None:
    script: Script = [Send(b"PUT-FROM 7\n"), Expect(b"DATA 0"), Expect(b"VALID"), Send(answer)]
    async with conversation([*HELLO, request_of("PUT"), *script], [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(ProtocolError, match="more bytes than the content has"):
            await store(session)
        assert await session.check_present(KEY)


@pytest.mark.parametrize(("answer", "stored"), [(b"SUCCESS\n", True), (b"FAILURE\n", False)])
async def test_a_peer_is_asked_whether_the_content_arrived_otherwise(answer: bytes, stored: bool) -> None:
    script: Script = [request_of("PUT"), Send(b"PUT-FROM 0\n"), Expect(b"DATA-PRESENT"), Send(answer), *PRESENT]
    async with conversation([*HELLO, *script]) as (session, _):
        async with session.upload(KEY, NO_FILE) as offer:
            assert isinstance(offer, Upload)
            assert (await offer.check_arrived()).stored is stored
        assert await session.check_present(KEY)


async def test_an_older_peer_is_asked_on_a_new_connection_whether_the_content_arrived() -> None:
    first: Script = [*hello(3), request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation(first, [*hello(3), *PRESENT, *PRESENT]) as (session, _):
        async with session.upload(KEY, NO_FILE) as offer:
            assert isinstance(offer, Upload)
            assert await offer.check_arrived() == Stored(True)
        assert await session.check_present(KEY)


@pytest.mark.parametrize("size", [5, 7])
async def test_content_whose_size_differs_from_its_keys_is_not_sent(size: int) -> None:
    script: Script = [*HELLO, request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(SourceError, match=f"the content has {size} bytes; its key says 6"):
            await session.store(KEY, NO_FILE, Pieces(b"x" * size))
        assert await session.check_present(KEY)


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        (Pieces(b"abc", length=6), "ended 3 bytes early"),
        (Pieces(b"abcdefg", length=6), "longer than announced"),
        (Pieces(b"abc", length=6, raises=SourceError("cannot read 'f': on fire")), "cannot read 'f': on fire"),
    ],
)
async def test_a_failing_source_disconnects_and_raises_its_error(source: Pieces, complaint: str) -> None:
    script: Script = [*HELLO, request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, peer):
        with pytest.raises(SourceError, match=f"uploading SHA256E-s6--abc.txt: .*{complaint}"):
            await session.store(KEY, NO_FILE, source)
        assert await session.check_present(KEY)
        assert peer.connections == 2


@pytest.mark.parametrize(("answer", "is_stored"), [(b"SUCCESS\n", True), (b"FAILURE\n", False)])
async def test_content_that_changed_meanwhile_is_sent_as_invalid(answer: bytes, is_stored: bool) -> None:
    sent: Script = [Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Expect(b"INVALID"), Send(answer), *PRESENT]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer):
        outcome = await session.store(KEY, NO_FILE, Pieces(b"abcdef", valid=False))
        assert isinstance(outcome, Stored)
        assert outcome.stored is is_stored
        assert outcome.reasons[0] == "the content changed while it was sent"
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_progress_counts_from_the_start_of_the_content() -> None:
    sent: Script = [Send(b"PUT-FROM 2\n"), Expect(b"DATA 4"), Read(4), Expect(b"VALID"), Send(b"SUCCESS\n")]
    positions: list[int] = []
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, _):
        await session.store(KEY, NO_FILE, Pieces(b"cd", b"e", b"f"), positions.append)
    assert positions == [4, 5, 6]


async def test_content_can_be_sent_only_once() -> None:
    script: Script = [*HELLO, request_of("PUT"), *UPLOADED, Send(b"SUCCESS\n"), *PRESENT]
    async with conversation(script) as (session, _):
        async with session.upload(KEY, NO_FILE) as upload:
            assert isinstance(upload, Upload)
            await upload.send(Pieces(b"abcdef"))
            with pytest.raises(RuntimeError, match="only once"):
                await upload.send(Pieces(b"abcdef"))
        assert await session.check_present(KEY)


async def test_content_with_an_unsized_key_is_sent_whole() -> None:
    sent: Script = [Send(b"PUT-FROM 0\n"), Expect(b"DATA 11"), Read(11), Expect(b"VALID"), Send(b"SUCCESS\n")]
    async with conversation([*HELLO, request_of("PUT"), *sent]) as (session, peer):
        assert await session.store(UNSIZED, NO_FILE, Pieces(b"hello ", b"world")) == Stored(True)
    assert peer.bodies == [b"hello world"]


# Downloads


@pytest.mark.parametrize(("offset", "length"), [(0, 7), (2, 5), (6, 1), (9, 1)])
async def test_more_content_than_the_keys_size_is_a_protocol_error(offset: int, length: int) -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA %d\n" % length), Stall()]
    async with conversation(script, [*HELLO, *PRESENT]) as (session, _):
        with pytest.raises(ProtocolError, match=f"announces {length} bytes from offset {offset}, but"):
            async with session.download(KEY, NO_FILE, offset):
                pass
        assert await session.check_present(KEY)


async def test_a_download_starts_at_the_given_offset() -> None:
    script: Script = [
        *HELLO,
        Expect(f"GET 4 dir/f {KEY}".encode()),
        Send(b"DATA 2\nefVALID\n"),
        Expect(b"SUCCESS"),
        *PRESENT,
    ]
    async with conversation(script) as (session, _):
        async with session.download(KEY, AssociatedFile("dir/f"), 4) as download:
            assert download.length == 2
            assert [chunk async for chunk in download.chunks()] == [b"ef"]
            assert await download.valid()
            assert await download.valid(), "asking again gives the same answer"
        assert await session.check_present(KEY)


async def test_a_download_can_be_read_in_several_passes() -> None:
    script: Script = [
        *HELLO,
        request_of("GET"),
        Send(b"DATA 6\nabc"),
        Pause(0.05),
        Send(b"defVALID\n"),
        Expect(b"SUCCESS"),
    ]
    async with conversation(script) as (session, _), session.download(KEY, NO_FILE) as download:
        first = await anext(aiter(download.chunks()))
        rest = b"".join([chunk async for chunk in download.chunks()])
        assert bytes(first) + rest == b"abcdef"
        assert await download.valid()


async def test_validity_is_only_known_after_the_content() -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA 6\nabcdefVALID\n"), Stall()]
    async with conversation(script) as (session, _), session.download(KEY, NO_FILE) as download:
        with pytest.raises(RuntimeError, match="not been read to its end"):
            await download.valid()


async def test_content_of_unknown_size_is_as_long_as_the_peer_announces() -> None:
    script: Script = [*HELLO, request_of("GET"), Send(b"DATA 6\nabcdefVALID\n"), Expect(b"SUCCESS")]
    async with conversation(script) as (session, _), session.download(UNSIZED, NO_FILE) as download:
        assert b"".join([chunk async for chunk in download.chunks()]) == b"abcdef"
        assert await download.valid()


# Old versions


@pytest.mark.parametrize(("version", "ask"), [(2, "GETTIMESTAMP"), (2, "REMOVE-BEFORE"), (0, "REMOVE-BEFORE")])
async def test_a_request_the_version_lacks_is_refused_without_asking(version: int, ask: str) -> None:
    start = HELLO_0 if version == 0 else hello(version)
    async with conversation([*start, *PRESENT]) as (session, peer):
        with pytest.raises(Refused, match=f"speaks version {version} of the protocol; this needs version 3"):
            await REQUESTS[ask](session)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_version_0_has_no_validity() -> None:
    put: Script = [request_of("PUT"), Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Send(b"SUCCESS\n")]
    get: Script = [request_of("GET"), Send(b"DATA 6\nabcdef"), Expect(b"SUCCESS")]
    async with conversation([*HELLO_0, *put, *get, *PRESENT]) as (session, peer):
        assert await store(session) == Stored(True)
        assert await fetch(session) == (b"abcdef", True)
        assert await session.check_present(KEY)
        assert peer.connections == 1


async def test_in_version_0_disconnecting_keeps_changed_content_from_being_stored() -> None:
    put: Script = [request_of("PUT"), Send(b"PUT-FROM 0\n"), Stall()]
    async with conversation([*HELLO_0, *put], [*HELLO_0, *PRESENT]) as (session, _):
        with pytest.raises(SourceError, match="changed while it was sent"):
            await session.store(KEY, NO_FILE, Pieces(b"abcdef", valid=False))
        assert await session.check_present(KEY)


async def test_in_version_0_missing_content_is_not_valid() -> None:
    script: Script = [*HELLO_0, request_of("GET"), Send(b"DATA 0\n"), Expect(b"FAILURE"), *PRESENT]
    async with conversation(script) as (session, _):
        assert await fetch(session) == (b"", False)
        assert await session.check_present(KEY)


@pytest.mark.parametrize(("key", "offset"), [(UNSIZED, 0), (Key("SHA256E-s0--abc"), 0), (KEY, 6)])
async def test_in_version_0_presence_is_asked_if_the_data_cannot_tell(key: Key, offset: int) -> None:
    asked = Expect(f"CHECKPRESENT {key}".encode())
    got: Script = [Expect(f"GET {offset}  {key}".encode()), Send(b"DATA 0\n"), Expect(b"SUCCESS")]
    async with conversation([*HELLO_0, asked, Send(b"FAILURE\n"), asked, Send(b"SUCCESS\n"), *got]) as (session, _):
        with pytest.raises(Refused, match="does not have the content"):
            async with session.download(key, NO_FILE, offset):
                pass
        async with session.download(key, NO_FILE, offset) as download:
            assert [chunk async for chunk in download.chunks()] == []
            assert await download.valid()
