"""Sessions with a scripted peer, and one request of each kind."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import anyio
import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import Message
from cluster_remote.transport.network import Network
from cluster_remote.transport.sockets import TcpTransport
from tests.p2p.memory import CLIENT, SERVER, Pieces
from tests.support.peers import Close, Expect, Read, Script, ScriptedPeer, Send, Step, opening

TOKEN = "sesame0pen"
BRIEF = 0.3
KEY = Key("SHA256E-s6--abc.txt")
UNSIZED = Key("GPGHMACSHA1--0badcafe")
NO_FILE = AssociatedFile()
NODE = UUID("0de00000-0000-4000-8000-000000000003")
HELLO = tuple(opening(str(SERVER), token=TOKEN))
PRESENT: Script = (Expect(f"CHECKPRESENT {KEY}".encode()), Send(b"SUCCESS\n"))


def hello(version: int) -> Script:
    return opening(str(SERVER), token=TOKEN, version=version)


HELLO_0: Script = (*HELLO[:-1], Send(b"ERROR unknown command\n"))


@asynccontextmanager
async def conversation(
    *scripts: Sequence[Step],
    timeout: float = 10.0,
    expected: UUID | None = SERVER,
    bypass: frozenset[UUID] = frozenset(),
    trace: Callable[[bool, Message], None] | None = None,
) -> AsyncIterator[tuple[StreamSession, ScriptedPeer]]:
    """Open a session with a peer that follows one script per connection; a further connection fails the test."""
    with ScriptedPeer(lambda number: scripts[number] if number < len(scripts) else [Close()], tcp=True) as peer:
        session = StreamSession(
            TcpTransport(Network(), "127.0.0.1", peer.port, token=TOKEN, name="tcp://peer"),
            client=CLIENT,
            expected=expected,
            timeout=timeout,
            bypass=bypass,
            trace=trace,
        )
        try:
            yield session, peer
        finally:
            await session.aclose()
    assert peer.connections <= len(scripts), "it connected more often than it should"


def no_token_in(error: BaseException) -> bool:
    return TOKEN not in str(error) and TOKEN not in repr(error)


async def remove_before(session: StreamSession) -> object:
    return await session.remove(KEY, 77)


async def lock(session: StreamSession) -> object:
    async with session.lock(KEY) as locked:
        return locked


async def offer(session: StreamSession) -> object:
    async with session.upload(KEY, NO_FILE) as answer:
        return answer


async def store(session: StreamSession) -> object:
    return await session.store(KEY, NO_FILE, Pieces(b"abcdef"))


async def fetch(session: StreamSession) -> object:
    async with session.download(KEY, NO_FILE) as download:
        content = b"".join([chunk async for chunk in download.chunks()])
        return content, await download.valid()


PLUS = f" {NODE}\n".encode()
UPLOADED: Script = (Send(b"PUT-FROM 0\n"), Expect(b"DATA 6"), Read(6), Expect(b"VALID"))


REQUESTS: dict[str, Callable[[StreamSession], Awaitable[object]]] = {
    "CHECKPRESENT": lambda session: session.check_present(KEY),
    "REMOVE": lambda session: session.remove(KEY),
    "REMOVE-BEFORE": remove_before,
    "GETTIMESTAMP": lambda session: session.timestamp(),
    "LOCKCONTENT": lock,
    "PUT": store,
    "GET": fetch,
}
each_request = pytest.mark.parametrize("word", REQUESTS)


def request_of(word: str) -> Expect:
    return Expect(re.compile(word.encode() + rb"( .*)?"))


async def until_ended(session: StreamSession) -> None:
    """Wait until the other side's end of stream has arrived, as the session will see it."""
    with anyio.fail_after(5):
        while session._stream is not None and not session._stream.ended():
            await anyio.sleep(0.01)
