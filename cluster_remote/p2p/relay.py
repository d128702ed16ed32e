"""Relay between a client and the session that serves it.

Either side's connection can fail, and it matters which: a failure of the session is reported to the client; a failure
of the client ends the conversation. So client failures have their own exceptions, never a SessionError, which a session
would mistake for a failure of its own peer.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cluster_remote.p2p.errors import BeyondTheEnd, ConnectionLost, ProtocolError, SessionError, SourceError, TimedOut
from cluster_remote.p2p.exhaustion import exhaustion_as_session_error
from cluster_remote.p2p.messages import Error, Invalid, Message, Valid
from cluster_remote.p2p.session import Download, Source, SourceReading
from cluster_remote.p2p.stream import MessageStream

__all__ = ["Client", "ClientGone", "ClientMisbehaved", "ClientSource", "SessionFailed", "relayed"]

# Most bytes of a failed upload to read and discard so that the client can get an answer. If more are still to come,
# hanging up saves it from sending them all in vain.
_MAX_DISCARDED = 16 * 1024 * 1024


class ClientGone(Exception):
    """The client's connection broke or timed out. Nothing more can be sent to it."""


class ClientMisbehaved(Exception):
    """The client violated the protocol. It gets an error, and the conversation ends.

    `answer` is the error to send; None if the protocol has no place for one.
    """

    def __init__(self, reason: str, answer: str | None = "protocol error") -> None:
        super().__init__(reason)
        self.answer = answer


class SessionFailed(Exception):
    """A transfer from the session to the client failed midway."""

    def __init__(self, error: SessionError) -> None:
        super().__init__(str(error))


class Client:
    """A client's connection, from the server's side."""

    def __init__(self, stream: MessageStream, version: int = 0) -> None:
        self.stream = stream
        self.version = version

    async def send(self, *messages: Message) -> None:
        """Send messages to the client. Raises ClientGone."""
        try:
            await self.stream.send(*messages)
        except SessionError as error:
            raise ClientGone(str(error)) from None

    async def receive(self, doing: str, *, unhurried: bool = False) -> Message:
        """Return the client's next message; with `unhurried`, wait as long as the connection lasts.

        Raises ClientGone (also at the end of the connection), ClientMisbehaved (also if the client sent ERROR, which
        ends a conversation and has no answer).
        """
        try:
            message = await self.stream.receive(doing, math.inf if unhurried else 0)
        except ProtocolError as error:
            raise ClientMisbehaved(str(error), f"protocol error: {error}") from None
        except SessionError as error:
            raise ClientGone(str(error)) from None
        if isinstance(message, Error):
            raise ClientMisbehaved(f"the client reported an error: {message.text[:200]}", None)
        return message

    async def send_content(self, reading: SourceReading, *, with_validity: bool) -> None:
        """Send DATA, the content and, if the version supports it, VALID or INVALID.

        Raises ClientGone; SessionFailed, after which the connection is unusable.
        """

        def after(valid: bool) -> list[Message]:
            if with_validity:
                return [Valid() if valid else Invalid()]
            if not valid and reading.length:
                # Version 0 has no INVALID: the client would accept the content.
                raise SessionFailed(SourceError("the content is not valid, and version 0 cannot say so"))
            return []

        try:
            # DATA may already have been sent, so if resources run out, the only option is to hang up.
            with exhaustion_as_session_error():
                await self.stream.send_data(reading, after)
        except SourceError as error:
            raise SessionFailed(error) from None
        except SessionError as error:
            raise ClientGone(str(error)) from None


def relayed(download: Download) -> SourceReading:
    """Return a reading that forwards a download. Failures of its session are raised as SessionFailed."""
    return _Relayed(download)


class _Relayed(SourceReading):
    def __init__(self, download: Download) -> None:
        self.length = download.length
        self._download = download

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        chunks = self._download.chunks()
        while True:
            try:
                with exhaustion_as_session_error():
                    chunk = await anext(chunks)
            except StopAsyncIteration:
                return
            except SessionError as error:
                raise SessionFailed(error) from None
            # Outside of the try: an error while sending the chunk is not the session's failure.
            yield chunk

    async def valid(self) -> bool:
        try:
            return await self._download.valid()
        except SessionError as error:
            raise SessionFailed(error) from None


class ClientSource(Source):
    """The content that a client sends after DATA, readable once, from the requested offset."""

    repeatable = False

    def __init__(self, client: Client, offset: int, length: int) -> None:
        """Create a source of the `length` bytes that DATA announced, starting at byte `offset` of the content."""
        self._client = client
        self._offset = offset
        self._left = length
        self._validity: bool | None = None
        self._failure: ClientGone | ClientMisbehaved | None = None

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        skipped = offset - self._offset
        if skipped < 0:
            raise SourceError(f"the client sends the content from byte {self._offset}, not from byte {offset}")
        if skipped > self._left:
            raise BeyondTheEnd(
                f"the content has {self._offset + self._left} bytes, but the node claims to have {offset} already"
            )
        await self._discard(skipped)
        yield _ClientReading(self, self._left)

    async def finish(self, why: str) -> None:
        """Read and discard the rest, so that the client can be answered.

        Raises ClientGone or ClientMisbehaved, also for a failure of the client during an earlier read. Raises
        ClientMisbehaved with the answer `why` if too much is left to discard.
        """
        if self._failure is None and self._left > _MAX_DISCARDED:
            raise ClientMisbehaved(f"hung up with {self._left} bytes of a failed upload still to come: {why}", why)
        try:
            await self._discard(self._left)
            await self.validity()
        except SourceError:
            assert self._failure is not None
        if self._failure is not None:
            raise self._failure

    async def _discard(self, count: int) -> None:
        async for chunk in self.chunks(count):
            del chunk

    async def chunks(self, count: int, *, ahead: bool = False) -> AsyncIterator[bytes | memoryview]:
        """Yield the next `count` bytes; `ahead` as for `SourceReading.large_chunks`. Raises SourceError."""
        if self._failure is not None:
            raise SourceError(str(self._failure))
        stream = self._client.stream
        received: AsyncIterator[bytes | memoryview] = (stream.receive_ahead if ahead else stream.receive_data)(count)
        try:
            async for chunk in received:
                self._left -= len(chunk)
                yield chunk
        except (ConnectionLost, TimedOut) as error:
            raise self._failed(ClientGone(str(error))) from None

    async def validity(self) -> bool:
        """Return whether the client says that its content is valid, after reading all of it. Raises SourceError."""
        if self._failure is not None:
            raise SourceError(str(self._failure))
        if self._validity is None:
            self._validity = await self._receive_validity() if self._client.version else True
        return self._validity

    async def _receive_validity(self) -> bool:
        try:
            match await self._client.receive("waiting to hear whether the content is valid"):
                case Valid():
                    return True
                case Invalid():
                    return False
                case _:
                    raise ClientMisbehaved("expected VALID or INVALID")
        except (ClientGone, ClientMisbehaved) as failure:
            raise self._failed(failure) from None

    def _failed(self, failure: ClientGone | ClientMisbehaved) -> SourceError:
        self._failure = failure
        return SourceError(f"the client did not send all of the content: {failure}")


class _ClientReading(SourceReading):
    def __init__(self, source: ClientSource, length: int) -> None:
        self.length = length
        self._source = source

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._source.chunks(self.length):
            yield chunk

    async def large_chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._source.chunks(self.length, ahead=True):
            yield chunk

    async def valid(self) -> bool:
        return await self._source.validity()
