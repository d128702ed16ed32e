"""Bodies of HTTP messages: content that the client sends, and responses that are generated while they are sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cluster_remote.gateway.httpaccess import note
from cluster_remote.p2p.errors import SessionError, SourceError
from cluster_remote.p2p.session import Download, Source, SourceReading
from cluster_remote.p2p.text import printable

__all__ = ["BodySource", "Sender", "StreamedResponse", "exactly", "until_valid"]

_BINARY = "application/octet-stream"
# Bytes of a body to join before they are passed on, and the longest delay in seconds for that.
_JOIN_SIZE, _JOIN_TIME = 1024 * 1024, 0.1


class BodySource(Source):
    """The body of a PUT, starting at the client's offset."""

    repeatable = False

    def __init__(self, request: Request, offset: int, length: int, timeout: float) -> None:
        self._request = request
        self._offset = offset
        self._length = length
        self._timeout = timeout

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        skipped = offset - self._offset
        if skipped < 0:
            raise SourceError(
                f"the client sends the content from byte {self._offset} on, but only {offset} bytes are here"
            )
        if skipped > self._length:
            raise SourceError(f"the content ends before byte {offset}")
        yield _BodyReading(self._request, skipped, self._length, self._timeout)


class _BodyReading(SourceReading):
    def __init__(self, request: Request, skipped: int, announced: int, timeout: float) -> None:
        self.length = announced - skipped
        self._request = request
        self._skip = skipped
        self._left = announced
        self._timeout = timeout

    async def chunks(self) -> AsyncIterator[bytes]:
        """Join the parts of the body: passing one on costs about the same for each node, whatever its length."""
        parts: list[bytes] = []
        size, deadline = 0, 0.0
        async for part in self._parts():
            if not parts:
                deadline = anyio.current_time() + _JOIN_TIME
            parts.append(part)
            size += len(part)
            if size >= _JOIN_SIZE or anyio.current_time() >= deadline:
                yield b"".join(parts)
                parts, size = [], 0
        if parts:
            yield b"".join(parts)
        if self._left:
            # This is also how a client signals that the content changed meanwhile.
            raise SourceError(f"the client stopped {self._left} bytes before the end")

    async def _parts(self) -> AsyncIterator[bytes]:
        parts = self._request.stream()
        while True:
            try:
                with anyio.fail_after(self._timeout):
                    chunk = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise SourceError(f"the client sent nothing for {self._timeout:.3g} seconds") from None
            self._left -= len(chunk)
            if self._left < 0:
                raise SourceError("the client sent more than it announced")
            part = chunk[self._skip :]
            self._skip -= len(chunk) - len(part)
            if part:
                yield part

    async def valid(self) -> bool:
        return True


class Sender:
    """Sends one response in pieces."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, headers: dict[str, str], kind: str = _BINARY) -> None:
        self.started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in {"Content-Type": kind, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class StreamedResponse(Response):
    """A response generated while it is sent, in one task, since a session must be exited in the task that entered it.

    Ends if the client hangs up.
    """

    def __init__(self, respond: Callable[[Sender], Awaitable[None]], request: Request) -> None:
        super().__init__()
        self._respond = respond
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = Sender(send)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            try:
                await self._respond(sender)
                await sender.send(b"", more=False)
            except SessionError as error:
                note(self._request, f"{scope['path']}: {error}")
                if not sender.started:
                    await sender.start(500, {}, "text/plain")
                    await sender.send(printable(str(error), 2000).encode(), more=False)
                # Otherwise the response stays unfinished, and the server cuts the connection.
            tasks.cancel_scope.cancel()


async def until_valid(download: Download) -> AsyncIterator[bytes]:
    """Yield a download, without its last byte if it proves invalid: there is no other way to signal that."""
    last = b""
    async for chunk in download.chunks():
        if chunk:
            yield last
            last = bytes(chunk)
    yield last if await download.valid() else last[:-1]


async def exactly(download: Download, length: int) -> AsyncIterator[bytes]:
    """Yield the announced number of bytes of a download. Raises SourceError if they are invalid."""
    left = length
    async for chunk in download.chunks():
        part = bytes(chunk[:left])
        left -= len(part)
        if not left:
            # A part cannot be verified; don't wait for the rest.
            if length == download.length and not await download.valid():
                raise SourceError("the content is not valid")
            yield part
            return
        yield part
