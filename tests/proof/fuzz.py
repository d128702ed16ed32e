"""`python -m tests.proof.fuzz --inputs 1000000 --seed 1`: mutated conversations for parser, server and client.

The conversations were recorded between git-annex 10.20261026 and a cluster, its content shortened. An input is one of
them, mutated. All of its lines go to the parser; then it is what a client says to a server of ours, or what a server
says to a client of ours. Whatever comes, the parser gives a message that reads the same again, or refuses the line;
the server ends the conversation, having said nothing but messages and stored nothing but what was sent as a whole; the
client gives an outcome that the server said, or an error in words.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio

from cluster_remote.p2p.client import StreamSession, Transport
from cluster_remote.p2p.errors import SessionError, SourceError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import Data, MalformedMessage, parse, serialise
from cluster_remote.p2p.server import Endpoint, serve
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    SourceReading,
    Stored,
    Upload,
)
from cluster_remote.p2p.stream import Connection, MessageStream

CLUSTER = UUID("ac3e6532-0d9e-802e-8f48-ccef4d18960c")
GATEWAY = UUID("3c01f06e-3d6b-40c6-8521-66ff5a5ff434")
CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")
NODES = [UUID(f"{letter}be50feb-d113-48c1-957a-e5d6ebf5c354") for letter in "123"]
CONTENT = b"VALID\nDATA 3\nabc\n\0\xff12"
KEY = Key(f"SHA256E-s{len(CONTENT)}--2182554d2a670f271f8f5824ae23dbfad431667346b6ff2165094aba2fff9d93.txt")
OTHER = Key("WORM-s7-m1--name")
HANG = 20.0
_PORTION = 5000

_K = KEY.text.encode()
_SIZE = len(CONTENT)

CLIENTS = [
    b"VERSION 4\nCHECKPRESENT %b\nPUT  %b\nDATA %d\n%bVALID\n" % (_K, _K, _SIZE, CONTENT),
    b"VERSION 4\nBYPASS %b\nPUT a%%%%b/c%%d %b\nDATA %d\n%bVALID\nCHECKPRESENT %b\n"
    % (str(GATEWAY).encode(), _K, _SIZE, CONTENT, _K),
    b"VERSION 4\nCHECKPRESENT %b\nGET 0  %b\nSUCCESS\n" % (OTHER.text.encode(), OTHER.text.encode()),
    b"VERSION 4\nBYPASS\nGET 3 file %b\nSUCCESS\nGETTIMESTAMP\n" % OTHER.text.encode(),
    b"VERSION 4\nREMOVE %b\nREMOVE-BEFORE 1234 %b\n" % (_K, OTHER.text.encode()),
    b"VERSION 4\nLOCKCONTENT %b\nUNLOCKCONTENT\nREMOVE %b\n" % (OTHER.text.encode(), OTHER.text.encode()),
    b"VERSION 4\nPUT  %b\nDATA-PRESENT\nCHECKPRESENT %b\n" % (_K, _K),
    b"CHECKPRESENT %b\nPUT  %b\nDATA %d\n%bGET 0  %b\nFAILURE\n" % (_K, _K, _SIZE, CONTENT, OTHER.text.encode()),
    b"VERSION 4\nCONNECT git-upload-pack\n0000",
    b"VERSION 4\nNOTIFYCHANGE\n",
]
"""Conversations of clients, after authentication."""

_HELLO = b"AUTH-SUCCESS %b\nVERSION 4\n" % str(CLUSTER).encode()
_PLUS = b" ".join(str(node).encode() for node in NODES)
SERVERS = [
    ("check", _HELLO + b"SUCCESS\n"),
    ("check", _HELLO + b"FAILURE\n"),
    ("store", _HELLO + b"PUT-FROM 0\nSUCCESS-PLUS %b\n" % _PLUS),
    ("store", _HELLO + b"PUT-FROM 5\nSUCCESS\n"),
    ("store", _HELLO + b"ALREADY-HAVE-PLUS %b\n" % _PLUS),
    ("store", _HELLO + b"PUT-FROM 0\nFAILURE-PLUS %b\n" % _PLUS),
    ("fetch", _HELLO + b"DATA %d\n%bVALID\n" % (_SIZE, CONTENT)),
    ("fetch", _HELLO + b"DATA 0\nINVALID\n"),
    ("remove", _HELLO + b"SUCCESS-PLUS %b\n" % _PLUS),
    ("remove", _HELLO + b"FAILURE-PLUS %b\n" % _PLUS),
    ("timestamp", _HELLO + b"TIMESTAMP 1234\n"),
    ("lock", _HELLO + b"SUCCESS\n"),
    ("check", _HELLO + b"ERROR git-annex: Unable to connect to remote.\n"),
]
"""Answers of servers to a request."""

WORDS = [
    *(b"AUTH AUTH-SUCCESS AUTH-FAILURE VERSION BYPASS CHECKPRESENT LOCKCONTENT UNLOCKCONTENT REMOVE GET PUT".split()),
    *(b"REMOVE-BEFORE GETTIMESTAMP TIMESTAMP PUT-FROM ALREADY-HAVE ALREADY-HAVE-PLUS DATA DATA-PRESENT".split()),
    *(b"VALID INVALID SUCCESS SUCCESS-PLUS FAILURE FAILURE-PLUS ERROR CONNECT CONNECTDONE NOTIFYCHANGE".split()),
    *(b"0 -1 1 22 23 18446744073709551616 99999999999999999999999 0x10 1e9 +5 \xc2\xb2".split()),
    *(b"\n", b"\r\n", b" ", b"  ", b"\0", b"\xff\xfe", b"\t", b"%", b"../../etc/passwd", b"-oProxyCommand=x"),
    *(b"\x1b[2J", b"--", b"-s5--", b"x" * 300, b"x" * 70_000),
]


def mutated(choose: random.Random, said: bytes, base: Sequence[bytes]) -> bytes:
    """A conversation with one to four changes, which may come from others; one in fifty has none."""
    data = bytearray(said)
    for _ in range(0 if choose.random() < 0.02 else choose.randint(1, 4)):
        place = choose.randrange(len(data) + 1)
        match choose.randrange(9):
            case 0 if data:
                data[place - 1] ^= 1 << choose.randrange(8)
            case 1:
                del data[place : place + choose.randint(1, 20)]
            case 2:
                data[place:place] = data[place : place + choose.randint(1, 60)]
            case 3:
                data[place:place] = choose.choice(WORDS)
            case 4:
                del data[place:]
            case 5:
                lines = bytes(data).split(b"\n")
                choose.shuffle(lines)
                data = bytearray(b"\n".join(lines))
            case 6:
                words = bytes(data).split(b" ")
                words[choose.randrange(len(words))] = choose.choice(WORDS)
                data = bytearray(b" ".join(words))
            case 7:
                data[place:] = choose.choice(base)[place:]
            case _:
                data[place:place] = choose.randbytes(choose.randint(1, 30))
    return bytes(data)


class Bytes(Connection):
    """A connection on which everything has arrived already, in pieces; then comes its end."""

    def __init__(self, incoming: bytes, piece: int) -> None:
        self.written = bytearray()
        self._incoming = incoming
        self._piece = piece
        self._position = 0

    async def receive(self, max_bytes: int) -> bytes:
        begin = self._position
        self._position += min(max_bytes, self._piece)
        return self._incoming[begin : self._position]

    async def send_some(self, data: memoryview) -> int:
        self.written += data
        return len(data)

    def ended(self) -> bool:
        return False

    async def aclose(self, grace: float) -> None:
        return


@dataclass
class Memory(Session):
    """A repository in memory, which keeps only what it was given as a whole."""

    contents: dict[Key, bytes] = field(default_factory=lambda: {OTHER: b"content"})

    @property
    def name(self) -> str:
        return "memory"

    @property
    def version(self) -> int | None:
        return 4

    async def open(self) -> UUID:
        return CLUSTER

    async def check_present(self, key: Key) -> bool:
        return key in self.contents

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        yield Present(frozenset(NODES)) if key in self.contents else _Taking(self, key)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        yield _Giving(self.contents.get(key), offset)

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        self.contents.pop(key, None)
        return Removal(True, frozenset(NODES))

    async def timestamp(self) -> int:
        return 1234

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        yield key in self.contents

    async def aclose(self) -> None:
        return


class _Taking(Upload):
    offset = 0

    def __init__(self, memory: Memory, key: Key) -> None:
        self._memory = memory
        self._key = key

    async def check_arrived(self) -> Stored:
        return Stored(self._key in self._memory.contents, frozenset(NODES))

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        async with source.read(0) as reading:
            data = b"".join([bytes(chunk) async for chunk in reading.chunks()])
            assert len(data) == reading.length, "a content that is not as long as it was announced was handed on"
            if self._key.content_size not in (None, len(data)):
                raise SourceError("it is not as long as its key says")
            if not await reading.valid():
                return Stored(False)
        self._memory.contents[self._key] = data
        return Stored(True, frozenset(NODES))


class _Giving(Download):
    def __init__(self, content: bytes | None, offset: int) -> None:
        self._content = content
        self._rest = (content or b"")[offset:]
        self.length = len(self._rest)

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._rest

    async def valid(self) -> bool:
        return self._content is not None


class _Once(Transport):
    name = "input"

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def connect(self) -> Connection:
        return self._connection


class _Sent(Source):
    repeatable = False

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        yield _Reading(offset)


class _Reading(SourceReading):
    def __init__(self, offset: int) -> None:
        self._rest = CONTENT[offset:]
        self.length = len(self._rest)

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._rest

    async def valid(self) -> bool:
        return True


def feed_parser(line: bytes) -> bool:
    """Parse a line; return whether it is a message."""
    try:
        message = parse(line)
    except MalformedMessage:
        return False
    again = serialise(message)
    assert again.endswith(b"\n"), "a message without an end"
    assert again.count(b"\n") == 1, "a message of several lines"
    assert parse(again[:-1]) == message, f"{line!r} does not read the same again: {again!r}"
    return True


async def feed_server(data: bytes, piece: int) -> str:
    """Feed a client's side to our server; return how the conversation ended."""
    connection, memory = Bytes(data, piece), Memory()

    async def session(bypass: frozenset[UUID]) -> Session:
        return memory

    ended = await serve(MessageStream(connection, HANG), Endpoint(CLUSTER, session), lock_retention=0.0)
    said = bytes(connection.written)
    while said:
        line, newline, said = said.partition(b"\n")
        assert newline, f"the server said half a line: {line!r}"
        message = parse(line)
        if isinstance(message, Data):
            assert len(said) >= message.length, "the server sent less than it announced"
            said = said[message.length :]
    for key, content in memory.contents.items():
        assert key.content_size in (None, len(content)), f"{key} was stored with {len(content)} bytes"
        assert content in data or key == OTHER, f"{key} was stored with bytes that were never sent"
    return "hung up" if ended.fault is None else "fault"


async def feed_client(request: str, data: bytes, piece: int) -> str:
    """Feed a server's answers to our client; return the outcome of the request."""
    session = StreamSession(_Once(Bytes(data, piece)), client=CLIENT, expected=CLUSTER, timeout=HANG)
    try:
        match request:
            case "check":
                if await session.check_present(KEY):
                    assert b"SUCCESS" in data[len("AUTH-SUCCESS") :], "present, and nobody said so"
            case "store":
                stored = await session.store(KEY, AssociatedFile(), _Sent())
                if isinstance(stored, Stored) and stored.stored:
                    assert b"SUCCESS" in data[len("AUTH-SUCCESS") :], "stored, and nobody said so"
                for uuid in stored.uuids:
                    assert str(uuid).encode() in data.lower(), f"{uuid} was never named"
            case "fetch":
                async with session.download(KEY, AssociatedFile()) as download:
                    content = b"".join([bytes(chunk) async for chunk in download.chunks()])
                    if await download.valid():
                        assert len(content) == KEY.content_size, "a wrong length is called valid"
                        assert content in data, "bytes that were never sent"
            case "remove":
                removal = await session.remove(KEY)
                assert not removal.removed or b"SUCCESS" in data[len("AUTH-SUCCESS") :], "removed, and nobody said so"
            case "timestamp":
                await session.timestamp()
            case "lock":
                async with session.lock(KEY):
                    pass
    except SessionError as error:
        words = str(error)
    else:
        return "outcome"
    finally:
        await session.aclose()
    assert words, "an error without words"
    return "error"


async def feed(seed: int, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """Feed some of a seed's inputs; return their outcomes and violations."""
    counts: Counter[str] = Counter()
    crashes: list[str] = []
    server_says = [said for _, said in SERVERS]
    for number in range(first, first + count):
        choose = random.Random(seed * 1_000_000_007 + number)
        to_server = choose.random() < 0.5
        piece = choose.choice([1 << 16, 1 << 16, 64, 7])
        base = CLIENTS if to_server else server_says
        which = choose.randrange(len(base))
        # Most servers let the client in first.
        kept = 0 if to_server or choose.random() < 0.3 else len(_HELLO)
        data = base[which][:kept] + mutated(choose, base[which][kept:], base)
        request = "server" if to_server else SERVERS[which][0]
        try:
            for line in data.split(b"\n"):
                counts["lines that are messages" if feed_parser(line) else "lines refused"] += 1
            with anyio.fail_after(HANG):
                if to_server:
                    counts[f"server: {await feed_server(data, piece)}"] += 1
                else:
                    counts[f"client: {await feed_client(request, data, piece)}"] += 1
        except Exception:  # noqa: BLE001 -- whatever it is, it is what is looked for
            crashes.append(f"--seed {seed} --first {number}: {request} {data[:2000]!r}\n{traceback.format_exc()}")
    return counts, crashes


def portion(seed: int, first: int, count: int) -> tuple[Counter[str], list[str]]:
    """`feed`, in a process of its own."""
    return anyio.run(feed, seed, first, count)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if an input violated something."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--first", type=int, default=0, help="the number of the first input")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    given = parser.parse_args(arguments)
    counts: Counter[str] = Counter()
    crashes: list[str] = []
    begun = time.monotonic()
    end = given.first + given.inputs
    with ProcessPoolExecutor(given.jobs) as pool:
        work = [
            pool.submit(portion, given.seed, first, min(_PORTION, end - first))
            for first in range(given.first, end, _PORTION)
        ]
        for done in work:
            some, bad = done.result()
            counts += some
            crashes += bad
    seconds = time.monotonic() - begun
    for crash in crashes[:10]:
        print(crash)
    print("; ".join(f"{what}: {count}" for what, count in sorted(counts.items())))
    print(f"{given.inputs} inputs in {seconds:.0f} s ({given.inputs / seconds:.0f} a second), {len(crashes)} crashes")
    return 1 if crashes else 0


if __name__ == "__main__":
    sys.exit(main())
