"""Connect over any anyio byte stream, such as TLS or a proxy.

This is the portable implementation. Pipes and plain sockets, whose descriptors the kernel can send files to, have a
faster one in p2p/descriptor.py.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Mapping
from typing import Any

import anyio
from anyio.abc import ByteStream, SocketAttribute

from cluster_remote.p2p.descriptor import is_hung_up, is_readable
from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.stream import Connection
from cluster_remote.transport.tls import tls_reason

__all__ = ["ByteStreamConnection", "ConnectionStream"]

# Bytes sent at once. anyio returns when all of them have been sent, and each return counts as progress.
_PIECE = 64 * 1024


class ByteStreamConnection(Connection):
    """A connection that owns its stream."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._open = True

    async def receive(self, max_bytes: int) -> bytes:
        try:
            return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise _lost(error) from None

    async def send_some(self, data: memoryview) -> int:
        piece = bytes(data[:_PIECE])
        try:
            await self._stream.send(piece)
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, OSError) as error:
            raise _lost(error) from None
        return len(piece)

    def ended(self) -> bool:
        """See Connection. Any unread bytes count, so a late TLS handshake message costs a reconnect."""
        if not self._open:
            return True
        descriptor = self._stream.extra(SocketAttribute.raw_socket).fileno()
        return descriptor < 0 or is_readable(descriptor)

    def hung_up(self) -> bool:
        """See Connection."""
        if not self._open:
            return True
        descriptor = self._stream.extra(SocketAttribute.raw_socket).fileno()
        return descriptor < 0 or is_hung_up(descriptor)

    async def aclose(self, grace: float) -> None:
        self._open = False
        with anyio.CancelScope(shield=True):
            try:
                with anyio.move_on_after(grace):
                    await self._stream.aclose()
                    return
            except (anyio.BrokenResourceError, anyio.EndOfStream, OSError):
                # The peer closed first. The rest of the stream is closed below.
                pass
            with contextlib.suppress(anyio.BrokenResourceError, OSError):
                await anyio.aclose_forcefully(self._stream)


def _lost(error: Exception) -> ConnectionLost:
    cause = error.__cause__ if error.__cause__ is not None else error
    reason = tls_reason(error) or getattr(cause, "strerror", None) or cause or type(cause).__name__
    return ConnectionLost(f"the connection broke: {reason}")


class ConnectionStream(ByteStream):
    """Adapt a connection to an anyio byte stream, for anyio's wrappers. Does not own the connection."""

    def __init__(self, connection: Connection, descriptor: socket.socket) -> None:
        """Wrap a connection; `descriptor` is the socket that it uses."""
        self._connection = connection
        self._socket = descriptor

    @property
    def extra_attributes(self) -> Mapping[Any, Callable[[], Any]]:
        return {SocketAttribute.raw_socket: lambda: self._socket}

    async def receive(self, max_bytes: int = 65536) -> bytes:
        try:
            data = await self._connection.receive(max_bytes)
        except ConnectionLost as error:
            raise anyio.BrokenResourceError from error
        if not data:
            raise anyio.EndOfStream
        return data

    async def send(self, item: bytes) -> None:
        left = memoryview(item)
        try:
            while left:
                left = left[await self._connection.send_some(left) :]
        except ConnectionLost as error:
            raise anyio.BrokenResourceError from error

    async def send_eof(self) -> None:
        raise NotImplementedError("TLS has no half-closed connections")

    async def aclose(self) -> None:
        """Do nothing: the owner closes the connection."""
