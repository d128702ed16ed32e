"""The server's answers to clients, with real repositories behind it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from cluster_remote.p2p.errors import ConnectionLost, Refused, SessionError, SourceError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.server import Closing, Endpoint, Mode
from cluster_remote.p2p.session import Download, Present, Progress, Removal, Session, Source, Stored, Upload
from tests.cluster.fakes import Peer
from tests.p2p.conversation import ANSWER_SECONDS, Conversation, behind_shell, conversation
from tests.support.repositories import Cluster, Repository
from tests.support.slow import only_in_all

pytestmark = pytest.mark.anyio

CONTENT = b"some content, stored and fetched\n"
ABSENT = "SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"


def key_of(content: bytes) -> str:
    return f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


KEY = key_of(CONTENT)


@pytest.fixture
def node(shared: Cluster) -> Repository:
    """A node that has the content of KEY and not that of ABSENT."""
    shared.nodes[0].set_key(KEY, CONTENT)
    return shared.nodes[0]


async def put(talk: Conversation, content: bytes, validity: str | None = "VALID") -> str | None:
    """Upload a content from the start, as a client does."""
    assert await talk.ask(f"PUT  {key_of(content)}") == "PUT-FROM 0"
    words: list[str | bytes] = [f"DATA {len(content)}", content]
    return await talk.ask(*words, *([] if validity is None else [validity]))


# What single repositories and clusters answer, version by version


@pytest.mark.parametrize("version", [0, 4, *only_in_all(1, 2, 3)])
async def test_a_node_is_served_in_every_version(node: Repository, version: int) -> None:
    content = b"version %d" % version
    validity = "VALID" if version else None
    async with conversation(behind_shell(node, node.uuid), version=version or None) as talk:
        assert await talk.ask(f"CHECKPRESENT {key_of(content)}") == "FAILURE"
        assert await put(talk, content, validity) == "SUCCESS"
        assert await talk.ask(f"PUT  {key_of(content)}") == "ALREADY-HAVE"
        assert await talk.ask(f"CHECKPRESENT {key_of(content)}") == "SUCCESS"
        assert await talk.ask(f"GET 3  {key_of(content)}") == f"DATA {len(content) - 3}"
        assert await talk.hear_bytes(len(content) - 3) == content[3:]
        if version:
            assert await talk.hear() == "VALID"
        await talk.say("SUCCESS")
        removed = f"SUCCESS-PLUS {node.uuid}" if version >= 2 else "SUCCESS"
        assert await talk.ask(f"REMOVE {key_of(content)}") == removed
    assert not node.has_object(key_of(content))


@pytest.mark.parametrize("version", [1, 2, *only_in_all(0, 3, 4)])
async def test_a_cluster_lists_its_nodes_from_version_2_on(shared: Cluster, version: int) -> None:
    content = b"cluster, version %d" % version
    key = key_of(content)
    nodes = {node.uuid for node in shared.nodes}

    def names_nodes(answer: str | None, word: str) -> bool:
        assert answer is not None
        first, *uuids = answer.split(" ")
        return (first, set(uuids)) == ((f"{word}-PLUS", nodes) if version >= 2 else (word, set()))

    async with conversation(behind_shell(shared.gateway, shared.uuid), version=version or None) as talk:
        assert names_nodes(await put(talk, content, "VALID" if version else None), "SUCCESS")
        assert shared.holders(key) == [True, True, True]
        assert names_nodes(await talk.ask(f"PUT  {key}"), "ALREADY-HAVE")
        assert await talk.ask(f"LOCKCONTENT {key}") == "FAILURE"
        assert names_nodes(await talk.ask(f"REMOVE {key}"), "SUCCESS")
    assert shared.holders(key) == [False, False, False]


async def test_a_client_with_a_newer_version_gets_our_newest(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid), version=None) as talk:
        assert await talk.ask("VERSION 99") == "VERSION 4"


async def test_missing_content_is_data_0_and_invalid(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"GET 0  {ABSENT}") == "DATA 0"
        assert await talk.hear() == "INVALID"
        assert await talk.ask("FAILURE", f"CHECKPRESENT {ABSENT}") == "FAILURE"
    async with conversation(behind_shell(node, node.uuid), version=None) as talk:
        assert await talk.ask(f"GET 0  {ABSENT}") == "DATA 0"
        assert await talk.ask("FAILURE", f"CHECKPRESENT {KEY}") == "SUCCESS"


@pytest.mark.parametrize("offset", [len(CONTENT), len(CONTENT) + 9])
async def test_a_get_from_the_end_sends_no_bytes(node: Repository, offset: int) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"GET {offset}  {KEY}") == "DATA 0"
        assert await talk.hear() == "VALID"
        assert await talk.ask("SUCCESS", f"CHECKPRESENT {KEY}") == "SUCCESS"


async def test_wrong_bytes_are_a_failure_whatever_the_client_claims(node: Repository) -> None:
    for validity in ("VALID", "INVALID"):
        async with conversation(behind_shell(node, node.uuid)) as talk:
            assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
            assert await talk.ask("DATA 5", b"hellO", validity) == "FAILURE"
            assert await talk.ask(f"CHECKPRESENT {ABSENT}") == "FAILURE"


@pytest.mark.parametrize("size", [0, 3, 7])
async def test_content_of_the_wrong_size_is_a_failure_and_the_conversation_continues(
    node: Repository, size: int
) -> None:
    notes: list[str] = []
    async with conversation(behind_shell(node, node.uuid), note=notes.append) as talk:
        assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
        assert await talk.ask(f"DATA {size}", bytes(size), "VALID") == "FAILURE"
        assert await talk.ask(f"CHECKPRESENT {ABSENT}") == "FAILURE"
    assert f"the content has {size} bytes; its key says 5" in notes[0]


async def test_an_interrupted_upload_resumes(node: Repository) -> None:
    content = bytes(range(256)) * 2048
    half = len(content) // 2
    served = behind_shell(node, node.uuid)
    async with conversation(served) as talk:
        assert await talk.ask(f"PUT  {key_of(content)}") == "PUT-FROM 0"
        await talk.say(f"DATA {len(content)}", content[:half])
        partial = node.path / ".git/annex/tmp" / key_of(content)
        # What has arrived is only kept once it has been written.
        with anyio.fail_after(20):
            while not partial.exists() or not partial.stat().st_size:
                await anyio.sleep(0.01)
    async with conversation(served) as talk:
        answer = await talk.ask(f"PUT  {key_of(content)}")
        assert answer is not None
        offset = int(answer.removeprefix("PUT-FROM "))
        assert 0 < offset <= half
        rest = content[offset:]
        assert await talk.ask(f"DATA {len(rest)}", rest, "VALID") == "SUCCESS"
    assert node.object_bytes(key_of(content)) == content


async def test_the_node_is_checked_for_content_that_arrived_otherwise(node: Repository) -> None:
    key = "WORM-s1--came-another-way"
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"PUT  {key}") == "PUT-FROM 0"
        assert await talk.ask("DATA-PRESENT") == "FAILURE"
        assert await talk.ask(f"CHECKPRESENT {key}") == "FAILURE"
        assert await talk.ask(f"PUT  {key}") == "PUT-FROM 0"
        node.set_key(key, b"x")
        assert await talk.ask("DATA-PRESENT") == "SUCCESS"
        assert await talk.ask(f"CHECKPRESENT {key}") == "SUCCESS"


async def test_a_timed_removal_honours_its_deadline(node: Repository) -> None:
    content = b"not for long"
    node.set_key(key_of(content), content)
    async with conversation(behind_shell(node, node.uuid)) as talk:
        answer = await talk.ask("GETTIMESTAMP")
        assert answer is not None
        now = int(answer.removeprefix("TIMESTAMP "))
        assert await talk.ask(f"REMOVE-BEFORE {now - 1} {key_of(content)}") == "FAILURE"
        assert node.has_object(key_of(content))
        assert await talk.ask(f"REMOVE-BEFORE {now + 60} {key_of(content)}") == f"SUCCESS-PLUS {node.uuid}"
    assert not node.has_object(key_of(content))


# Locks


async def test_a_lock_holds_until_the_client_releases_it(node: Repository) -> None:
    async with (
        conversation(behind_shell(node, node.uuid)) as holder,
        conversation(behind_shell(node, node.uuid)) as other,
    ):
        assert await holder.ask(f"LOCKCONTENT {KEY}") == "SUCCESS"
        refused = await other.ask(f"REMOVE {KEY}")
        assert refused is not None
        assert refused.startswith("ERROR ")
        assert "content is locked" in refused
        assert await holder.ask("UNLOCKCONTENT", f"CHECKPRESENT {KEY}") == "SUCCESS"
        assert await other.ask(f"REMOVE {KEY}") == f"SUCCESS-PLUS {node.uuid}"


async def test_a_lock_survives_a_lost_connection(node: Repository) -> None:
    retention = 2.0
    async with anyio.create_task_group() as tasks:

        async def lock_and_vanish() -> None:
            async with conversation(behind_shell(node, node.uuid), lock_retention=retention) as holder:
                assert await holder.ask(f"LOCKCONTENT {KEY}") == "SUCCESS"
                vanished.append(time.monotonic())

        vanished: list[float] = []
        tasks.start_soon(lock_and_vanish)
        while not vanished:
            await anyio.sleep(0.01)
        async with conversation(behind_shell(node, node.uuid)) as other:
            while (answer := await other.ask(f"REMOVE {KEY}")) != f"SUCCESS-PLUS {node.uuid}":
                assert answer is not None
                assert "content is locked" in answer
                await anyio.sleep(0.1)
            assert time.monotonic() - vanished[0] >= retention


async def test_missing_content_cannot_be_locked(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"LOCKCONTENT {ABSENT}") == "FAILURE"
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"


# What a client may do

READ_ONLY = "ERROR this repository is read-only; write access denied"
APPEND_ONLY = "ERROR this repository is append-only; removal denied"


@pytest.mark.parametrize("request_line", [f"PUT  {ABSENT}", f"REMOVE {KEY}", f"REMOVE-BEFORE 99999999999 {KEY}"])
async def test_read_only_refuses_every_write_and_continues(node: Repository, request_line: str) -> None:
    async with conversation(behind_shell(node, node.uuid, mode=Mode.READ_ONLY)) as talk:
        assert await talk.ask(request_line) == READ_ONLY
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"
        assert await talk.ask(f"LOCKCONTENT {KEY}") == "SUCCESS"
        assert await talk.ask("UNLOCKCONTENT", f"GET 0  {KEY}") == f"DATA {len(CONTENT)}"
    assert node.has_object(KEY)


@pytest.mark.parametrize("request_line", [f"REMOVE {KEY}", f"REMOVE-BEFORE 99999999999 {KEY}"])
async def test_append_only_refuses_removal_and_accepts_content(node: Repository, request_line: str) -> None:
    content = request_line.encode()
    async with conversation(behind_shell(node, node.uuid, mode=Mode.APPEND_ONLY)) as talk:
        assert await talk.ask(request_line) == APPEND_ONLY
        assert await put(talk, content) == "SUCCESS"
    assert node.has_object(KEY)
    assert node.has_object(key_of(content))


# Clients that do not keep to the protocol

OUT_OF_PLACE = {
    "a change notification": "NOTIFYCHANGE",
    "a second authentication": "AUTH c11e0000-0000-4000-8000-000000000002 token",
    "a second version": "VERSION 3",
    "a server's answer": "SUCCESS",
    "content that nobody asked for": "DATA 0",
    "an offset": "PUT-FROM 0",
    "unlocking without a lock": "UNLOCKCONTENT",
}


@pytest.mark.parametrize("line", OUT_OF_PLACE.values(), ids=OUT_OF_PLACE)
async def test_an_unexpected_message_ends_the_conversation_with_an_error(node: Repository, line: str) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"
        assert await talk.ask(line) == "ERROR protocol error"
        assert await talk.hear() is None


@pytest.mark.parametrize("version", [0, 4])
async def test_a_version_can_only_be_agreed_on_first(node: Repository, version: int) -> None:
    async with conversation(behind_shell(node, node.uuid), version=None) as talk:
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"
        assert await talk.ask(f"VERSION {version}") == "ERROR protocol error"
        assert await talk.hear() is None


GARBAGE = {
    "no message": b"GET / HTTP/1.1\r\n",
    "binary": bytes(range(128, 256)) + b"\n",
    "an empty line": b"\n",
    "no key": b"CHECKPRESENT foo\n",
    "no version": b"VERSION x\n",
    "a negative offset": b"GET -5  " + KEY.encode() + b"\n",
    "an absolute path": b"PUT /etc/passwd " + KEY.encode() + b"\n",
    "a bypass of nobody": b"BYPASS nobody\n",
    "an endless line": b"CHECKPRESENT " + b"x" * 100_000,
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE)
async def test_garbage_ends_the_conversation_with_an_error_that_says_why(node: Repository, said: bytes) -> None:
    async with conversation(behind_shell(node, node.uuid), version=None) as talk:
        answer = await talk.ask(said)
        assert answer is not None
        assert answer.startswith("ERROR protocol error: ")
        assert await talk.hear() is None
    assert talk.ended is not None
    assert talk.ended.fault


async def test_a_client_that_sends_error_is_disconnected_silently(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        await talk.say("ERROR I am lost")
        assert await talk.hear() is None
    assert talk.ended is not None
    assert talk.ended.fault == "the client reported an error: I am lost"


@pytest.mark.parametrize("instead", ["CHECKPRESENT " + KEY, "VALID", "PUT-FROM 0"])
async def test_anything_but_data_after_put_from_ends_the_conversation(node: Repository, instead: str) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
        assert await talk.ask(instead) == "ERROR protocol error"
        assert await talk.hear() is None
    assert not node.has_object(ABSENT)


async def test_content_without_a_validity_verdict_is_not_stored(node: Repository) -> None:
    content = b"of unknown validity"
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await put(talk, content, "SUCCESS") == "ERROR protocol error"
        assert await talk.hear() is None
    assert not node.has_object(key_of(content))


async def test_anything_but_an_acknowledgement_after_a_download_ends_the_conversation(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"GET 0  {KEY}") == f"DATA {len(CONTENT)}"
        assert await talk.hear_bytes(len(CONTENT)) == CONTENT
        assert await talk.hear() == "VALID"
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "ERROR protocol error"
        assert await talk.hear() is None


async def test_anything_but_unlock_releases_the_lock_and_ends_the_conversation(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid), lock_retention=60) as talk:
        assert await talk.ask(f"LOCKCONTENT {KEY}") == "SUCCESS"
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "ERROR protocol error"
        assert await talk.hear() is None
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"REMOVE {KEY}") == f"SUCCESS-PLUS {node.uuid}"


async def test_a_client_that_vanishes_mid_upload_leaves_nothing_behind(node: Repository) -> None:
    content = b"half of this never comes"
    async with conversation(behind_shell(node, node.uuid)) as talk:
        assert await talk.ask(f"PUT  {key_of(content)}") == "PUT-FROM 0"
        await talk.say(f"DATA {len(content)}", content[:12])
    assert talk.ended is not None
    assert "12 of 24 bytes still to come" in str(talk.ended.fault)
    assert not node.has_object(key_of(content))


async def test_a_client_that_stalls_within_a_request_is_disconnected(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid), timeout=0.5) as talk:
        assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
        assert await talk.ask("DATA 5", b"he") is None
    assert talk.ended is not None
    assert "no progress" in str(talk.ended.fault)


async def test_a_client_that_does_not_take_its_download_is_disconnected(node: Repository) -> None:
    content = bytes(8 * 1024 * 1024)
    node.set_key(key_of(content), content)
    async with conversation(behind_shell(node, node.uuid), timeout=0.5) as talk:
        await talk.say(f"GET 0  {key_of(content)}")
        with anyio.fail_after(10):
            while talk.ended is None:
                await anyio.sleep(0.05)
    assert "no progress" in str(talk.ended.fault)


async def test_a_client_may_idle_between_requests(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid), timeout=0.5) as talk:
        await anyio.sleep(1.0)
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"
        await anyio.sleep(1.0)
        assert await talk.ask(f"LOCKCONTENT {KEY}") == "SUCCESS"
        await anyio.sleep(1.0)
        assert await talk.ask("UNLOCKCONTENT", f"CHECKPRESENT {KEY}") == "SUCCESS"


# Sessions that fail, which a real repository cannot be made to do at a given moment

SERVER = UUID("5e55e55e-0000-4000-8000-000000000001")
ELSEWHERE = UUID("0e15e000-0000-4000-8000-000000000003")


class Failing(Session):
    """A session that fails as told, after sending or taking the first `bytes_first` bytes of a content."""

    name = "failing"
    version = 4

    def __init__(self, error: SessionError, *, length: int = 0, bytes_first: int = 0, after: bool = False) -> None:
        self.error = error
        self.length = length
        self.bytes_first = bytes_first
        self.after = after
        self.closed = 0

    async def open(self) -> UUID:
        raise self.error

    async def check_present(self, key: Key) -> bool:
        raise self.error

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        raise self.error

    async def timestamp(self) -> int:
        raise self.error

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        if not self.after:
            raise self.error
        yield True
        raise self.error

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        if not self.length:
            raise self.error
        yield _FailingUpload(self)
        if self.after:
            raise self.error

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        if not self.length:
            raise self.error
        yield _FailingDownload(self)
        if self.after:
            raise self.error

    async def aclose(self) -> None:
        self.closed += 1


class _FailingUpload(Upload):
    offset = 0

    def __init__(self, session: Failing) -> None:
        self.session = session

    async def check_arrived(self) -> Stored:
        return Stored(False)

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        async with source.read(0) as reading:
            left = self.session.bytes_first
            if left:
                async for chunk in reading.chunks():
                    left -= len(chunk)
                    if left <= 0:
                        break
        if self.session.after:
            return Stored(True)
        raise self.session.error


class _FailingDownload(Download):
    def __init__(self, session: Failing) -> None:
        self.session = session
        self.length = session.length

    async def chunks(self) -> AsyncIterator[bytes]:
        yield bytes(self.session.bytes_first)
        if not self.session.after:
            raise self.session.error

    async def valid(self) -> bool:
        return self.session.after


def behind(session: Session) -> Endpoint:
    async def made(bypass: frozenset[UUID]) -> Session:
        return session

    return Endpoint(SERVER, made)


REQUESTS = [
    f"CHECKPRESENT {KEY}",
    f"REMOVE {KEY}",
    f"REMOVE-BEFORE 5 {KEY}",
    "GETTIMESTAMP",
    f"LOCKCONTENT {KEY}",
    f"PUT  {KEY}",
    f"GET 0  {KEY}",
]


async def test_a_session_that_cannot_be_opened_is_answered_with_the_reason() -> None:
    async def none(bypass: frozenset[UUID]) -> Session:
        raise Unreachable("the cluster has no nodes")

    async with conversation(Endpoint(SERVER, none)) as talk:
        for _ in range(2):
            assert await talk.ask(f"CHECKPRESENT {KEY}") == "ERROR the cluster has no nodes"


@pytest.mark.parametrize("error", [Refused("node1: no"), Unreachable("node1: is away"), ConnectionLost("node1: gone")])
@pytest.mark.parametrize("line", REQUESTS, ids=lambda line: line.split(" ")[0])
async def test_a_failed_request_is_answered_with_the_reason_and_the_conversation_continues(
    line: str, error: SessionError
) -> None:
    notes: list[str] = []
    async with conversation(behind(Failing(error)), note=notes.append) as talk:
        assert await talk.ask(line) == f"ERROR {error}"
        assert await talk.ask(line) == f"ERROR {error}"
    assert notes == [str(error)] * 2


async def test_a_reason_with_newlines_and_control_characters_is_sent_as_one_line() -> None:
    session = Failing(Unreachable("node1:\nssh: \x1b[31mred\x1b[0m"))
    async with conversation(behind(session)) as talk:
        answer = await talk.ask(f"CHECKPRESENT {KEY}")
        assert answer is not None
        assert answer.isprintable()
        assert await talk.ask(f"CHECKPRESENT {KEY}") == answer


@pytest.mark.parametrize("bytes_first", [0, 10, 1000])
async def test_an_upload_that_fails_midway_is_answered_once_its_content_has_arrived(bytes_first: int) -> None:
    session = Failing(ConnectionLost("node1: gone"), length=1000, bytes_first=bytes_first)
    async with conversation(behind(session)) as talk:
        for _ in range(2):
            assert await talk.ask(f"PUT  {key_of(bytes(1000))}") == "PUT-FROM 0"
            assert await talk.ask("DATA 1000", bytes(1000), "VALID") == "ERROR node1: gone"


async def test_a_large_upload_that_fails_midway_is_cut_off_with_the_reason() -> None:
    session = Failing(ConnectionLost("node1: gone"), length=1, bytes_first=10)
    async with conversation(behind(session)) as talk:
        assert await talk.ask("PUT  WORM-s100000000--x") == "PUT-FROM 0"
        assert await talk.ask("DATA 100000000", bytes(1000)) == "ERROR node1: gone"
        assert await talk.hear() is None


async def test_a_source_error_in_the_session_is_a_failed_upload() -> None:
    session = Failing(SourceError("there is less than announced"), length=5)
    notes: list[str] = []
    async with conversation(behind(session), note=notes.append) as talk:
        assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
        assert await talk.ask("DATA 5", b"hello", "VALID") == "FAILURE"
        assert await talk.ask(f"PUT  {ABSENT}") == "PUT-FROM 0"
    assert notes == ["there is less than announced"]


async def test_promised_content_that_never_arrives_closes_the_connection() -> None:
    # More than goes out in one write together with its DATA.
    session = Failing(ConnectionLost("node1: gone"), length=1_000_000, bytes_first=400_000)
    async with conversation(behind(session)) as talk:
        assert await talk.ask(f"GET 0  {KEY}") == "DATA 1000000"
        assert await talk.hear_bytes(1_000_000) == bytes(400_000)
    assert talk.ended is not None
    assert "node1: gone" in str(talk.ended.fault)


@pytest.mark.parametrize("line", [f"LOCKCONTENT {KEY}", f"GET 0  {KEY}"])
async def test_a_session_that_fails_after_the_answer_does_not_answer_twice(line: str) -> None:
    session = Failing(ConnectionLost("node1: gone"), length=10, bytes_first=10, after=True)
    notes: list[str] = []
    async with conversation(behind(session), note=notes.append) as talk:
        if line.startswith("LOCK"):
            assert await talk.ask(line) == "SUCCESS"
            await talk.say("UNLOCKCONTENT")
        else:
            assert await talk.ask(line) == "DATA 10"
            assert await talk.hear_bytes(10) == bytes(10)
            assert await talk.hear() == "VALID"
            await talk.say("SUCCESS")
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "ERROR node1: gone"
    assert notes == ["node1: gone"] * 2


async def test_invalid_content_is_cut_off_in_version_0() -> None:
    class Doubtful(Failing):
        @asynccontextmanager
        async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
            download = _FailingDownload(Failing(self.error, length=400_000, bytes_first=400_000, after=True))
            download.valid = _no  # type: ignore[method-assign]
            yield download

    async def _no() -> bool:
        return False

    async with conversation(behind(Doubtful(Refused("unused"))), version=None) as talk:
        assert await talk.ask(f"GET 0  {KEY}") == "DATA 400000"
        await talk.hear_bytes(400_000)
        assert await talk.hear() is None


# The session's life


async def test_the_session_closes_with_the_conversation_and_reopens_for_another_bypass_list() -> None:
    made: list[tuple[frozenset[UUID], Failing]] = []

    async def session(bypass: frozenset[UUID]) -> Session:
        made.append((bypass, Failing(Refused("no"))))
        return made[-1][1]

    async with conversation(Endpoint(SERVER, session)) as talk:
        assert made == []
        for line in (f"BYPASS {ELSEWHERE}", f"BYPASS {ELSEWHERE}", "BYPASS"):
            assert await talk.ask(line, f"CHECKPRESENT {KEY}") == "ERROR no"
    assert [bypass for bypass, _ in made] == [frozenset({ELSEWHERE}), frozenset()]
    assert [one.closed for _, one in made] == [1, 1]


async def test_a_closing_server_disconnects_idle_clients_and_finishes_requests(node: Repository) -> None:
    closing = Closing()
    content = b"under way when the server closes"
    served = behind_shell(node, node.uuid)
    async with conversation(served, closing=closing) as idle, conversation(served, closing=closing) as busy:
        assert await busy.ask(f"PUT  {key_of(content)}") == "PUT-FROM 0"
        await busy.say(f"DATA {len(content)}", content[:10])
        closing.begin()
        assert await idle.hear() is None
        assert await busy.ask(content[10:], "VALID") == "SUCCESS"
        assert await busy.hear() is None
    assert idle.ended is not None
    assert idle.ended.fault is None
    assert node.has_object(key_of(content))


async def test_no_process_is_left_after_the_client_disconnects(node: Repository) -> None:
    served = behind_shell(node, node.uuid)
    async with conversation(served) as talk:
        assert await talk.ask(f"CHECKPRESENT {KEY}") == "SUCCESS"
        assert node.environment.processes() != []
    node.environment.assert_no_process_left()


# A client that hangs up while nodes keep silent


@pytest.mark.parametrize(
    "line",
    [f"CHECKPRESENT {KEY}", f"GET 0  {KEY}", f"PUT  {KEY}", f"REMOVE {KEY}", "GETTIMESTAMP", f"LOCKCONTENT {KEY}"],
)
async def test_requests_to_nodes_end_when_the_client_disconnects(line: str) -> None:
    peer = Peer(1, silent=True)
    async with conversation(behind(peer.session())) as talk:
        await talk.say(line)
        with anyio.fail_after(ANSWER_SECONDS):
            while not peer.under_way:
                await anyio.sleep(0.01)
            await talk.hang_up()
            while talk.ended is None:
                await anyio.sleep(0.05)
        assert peer.under_way == 0
        assert talk.ended.fault is not None


async def test_a_waiting_client_gets_its_answer_however_long_a_node_takes() -> None:
    class Slow(Peer):
        async def enter(self, request: str) -> None:
            await anyio.sleep(2.5)

    async with conversation(behind(Slow(1).session())) as talk:
        assert await talk.ask(f"CHECKPRESENT {KEY}", f"CHECKPRESENT {KEY}") == "FAILURE"
        assert await talk.hear() == "FAILURE"


# Questions that are sent ahead of the answers


def _many(count: int) -> list[str]:
    return [f"CHECKPRESENT {KEY if number % 3 else ABSENT}" for number in range(count)]


async def test_pipelined_questions_and_other_requests_are_answered_in_order(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        await talk.say(*_many(50), f"PUT  {KEY}", *_many(20), f"GET 0  {KEY}")
        expected = ["SUCCESS" if number % 3 else "FAILURE" for number in range(50)]
        assert [await talk.hear() for _ in range(50)] == expected
        assert await talk.hear() == "ALREADY-HAVE"
        assert [await talk.hear() for _ in range(20)] == expected[:20]
        assert await talk.hear() == f"DATA {len(CONTENT)}"
    assert talk.ended is not None
    assert talk.ended.requests == 72


async def test_garbage_after_pipelined_questions_ends_the_conversation_after_their_answers(node: Repository) -> None:
    async with conversation(behind_shell(node, node.uuid)) as talk:
        await talk.say(*_many(3), "NONSENSE", *_many(3))
        assert [await talk.hear() for _ in range(3)] == ["FAILURE", "SUCCESS", "SUCCESS"]
        assert (await talk.hear() or "").startswith("ERROR protocol error")
        assert await talk.hear() is None


class Ahead(Failing):
    """A node that disconnects at one question of many, or answers none."""

    pipelines_checks = True

    def __init__(self, error: SessionError, bad: int) -> None:
        super().__init__(error)
        self.bad = Key(f"WORM-s1--{bad}")
        self.alone = 0

    async def check_present(self, key: Key) -> bool:
        self.alone += 1
        if key == self.bad:
            raise self.error
        return True

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        if self.bad in keys:
            raise self.error
        return [True] * len(keys)


@pytest.mark.parametrize(
    ("error", "errors", "alone"), [(ConnectionLost("it broke off"), 1, 4), (TimedOut("no answer"), 4, 0)]
)
async def test_a_node_that_fails_on_one_key_answers_the_others(error: SessionError, errors: int, alone: int) -> None:
    session = Ahead(error, bad=2)

    async def made(_bypass: frozenset[UUID]) -> Session:
        return session

    async with conversation(Endpoint(SERVER, made)) as talk:
        await talk.say(*(f"CHECKPRESENT WORM-s1--{number}" for number in range(4)))
        said = [await talk.hear() or "" for _ in range(4)]
        assert sum(line.startswith("ERROR") for line in said) == errors
        assert said.count("SUCCESS") == 4 - errors
        assert session.alone == alone
