"""A conversation with a server, line by line as on the wire."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Closing, Ended, Endpoint, Mode, serve
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Connection, MessageStream
from cluster_remote.transport.process import ProcessTransport
from tests.support.repositories import Repository

ANSWER_SECONDS = 20.0
CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")


class Conversation:
    """The client's side of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._buffer = b""
        self.ended: Ended | None = None
        """The outcome that the server reports, once it has ended."""

    async def say(self, *lines: str | bytes) -> None:
        """Send lines (text) and raw bytes."""
        data = memoryview(b"".join(line if isinstance(line, bytes) else line.encode() + b"\n" for line in lines))
        with anyio.fail_after(ANSWER_SECONDS):
            while data:
                data = data[await self.connection.send_some(data) :]

    async def hear(self) -> str | None:
        """Read the server's next line; None if it has closed the connection instead."""
        with anyio.fail_after(ANSWER_SECONDS):
            while b"\n" not in self._buffer:
                data = await self.connection.receive(65536)
                if not data:
                    assert not self._buffer, f"the server closed after {self._buffer!r}"
                    return None
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.decode()

    async def hear_bytes(self, count: int) -> bytes:
        """Read the next `count` bytes; fewer if the server closes."""
        with anyio.fail_after(ANSWER_SECONDS):
            while len(self._buffer) < count and (data := await self.connection.receive(65536)):
                self._buffer += data
        found, self._buffer = self._buffer[:count], self._buffer[count:]
        return found

    async def ask(self, *lines: str | bytes) -> str | None:
        """Send, and return the next line."""
        await self.say(*lines)
        return await self.hear()

    async def hang_up(self) -> None:
        """Close the connection without sending anything."""
        await self.connection.aclose(0)


@asynccontextmanager
async def conversation(
    served: Endpoint,
    *,
    version: int | None = 4,
    timeout: float = ANSWER_SECONDS,
    closing: Closing | None = None,
    lock_retention: float = 0.0,
    note: Callable[[str], None] | None = None,
) -> AsyncIterator[Conversation]:
    """Start a conversation, authenticated and with a version agreed on (None: without); disconnect at the end."""
    here, there = (DescriptorConnection(fd, fd) for fd in (one.detach() for one in socket.socketpair()))
    talk = Conversation(here)

    async def run() -> None:
        try:
            talk.ended = await serve(
                MessageStream(there, timeout), served, closing=closing, lock_retention=lock_retention, note=note
            )
        finally:
            await there.aclose(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        try:
            assert await talk.hear() == f"AUTH-SUCCESS {served.uuid}"
            if version is not None:
                assert await talk.ask(f"VERSION {version}") == f"VERSION {version}"
            yield talk
        finally:
            await talk.hang_up()


def behind_shell(
    gateway: Repository, uuid: str, *, mode: Mode = Mode.READ_WRITE, timeout: float = ANSWER_SECONDS
) -> Endpoint:
    """Serve the repository that git-annex's own gateway serves under this UUID."""
    environment = gateway.environment

    async def session(bypass: frozenset[UUID]) -> Session:
        command = ["git-annex-shell", "p2pstdio", str(gateway.path), str(CLIENT), "--uuid", uuid]
        return StreamSession(
            ProcessTransport(command, name=f"{gateway.path.name} as {uuid}", environment=environment.env),
            client=CLIENT,
            expected=UUID(uuid),
            timeout=timeout,
            bypass=bypass,
        )

    return Endpoint(UUID(uuid), session, mode)
