"""Reach peers that listen on a unix, TCP or TLS socket. Such a peer requires a token."""

from __future__ import annotations

import errno
import os
import socket
import ssl
import struct
from typing import TypeAlias

import anyio
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.stream import Connection
from cluster_remote.transport.bytestream import ByteStreamConnection
from cluster_remote.transport.network import Network
from cluster_remote.transport.tls import TlsSettings, tls_reason
from cluster_remote.transport.trust import check_socket_owner

__all__ = ["TcpTransport", "TlsTransport", "UnixTransport", "user_of_peer"]

_SocketAddress: TypeAlias = tuple[str | int, ...] | bytes

# Seconds between attempts while the socket's queue is full.
_RETRY = 0.02


async def _connect(connection: socket.socket, address: _SocketAddress) -> None:
    """Connect without blocking. Raises OSError. Closes the socket on failure."""
    try:
        connection.setblocking(False)
        # The unix socket's queue is full, and there is no notification when it has room.
        while (result := connection.connect_ex(address)) == errno.EAGAIN:
            await anyio.sleep(_RETRY)
        if result == errno.EINPROGRESS:
            await anyio.wait_writable(connection)
            result = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if result:
            raise OSError(result, os.strerror(result))
    except BaseException:
        connection.close()
        raise


class UnixTransport(Transport):
    """A unix socket."""

    def __init__(self, path: bytes, *, token: str, name: str) -> None:
        self.path = path
        self.token = token
        self.name = name

    async def connect(self) -> DescriptorConnection:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            await _connect(connection, self.path)
        except OSError as error:
            raise Unreachable(f"cannot connect: {error.strerror or error}") from None
        try:
            check_socket_owner(self.path, user_of_peer(connection))
        except BaseException:
            connection.close()
            raise
        descriptor = connection.detach()
        return DescriptorConnection(descriptor, descriptor)


def user_of_peer(connection: socket.socket) -> int:
    """Return the user id of the process at the other end of a unix socket; our own if unknown."""
    if not hasattr(socket, "SO_PEERCRED"):
        # Not Linux: only the socket's directory can be checked.
        return os.geteuid()
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


class TcpTransport(Transport):
    """A TCP port of a host, reached directly or through a proxy."""

    def __init__(self, network: Network, host: str, port: int, *, token: str, name: str) -> None:
        self.network = network
        self.host = host
        self.port = port
        self.token = token
        self.name = name

    async def connect(self) -> Connection:
        stream = await self.network.connect(self.host, self.port)
        # The kernel moves large contents faster than anyio does.
        return _SocketConnection(stream)


class TlsTransport(Transport):
    """A TCP port of a host behind TLS."""

    def __init__(self, network: Network, host: str, port: int, tls: TlsSettings, *, token: str, name: str) -> None:
        self.network = network
        self.host = host
        self.port = port
        self.tls = tls
        self.token = token
        self.name = name

    async def connect(self) -> Connection:
        context = self.tls.context()
        stream = await self.network.connect(self.host, self.port)
        try:
            # A TLS close_notify is not required: the P2P protocol itself says what is complete.
            wrapped = await TLSStream.wrap(stream, hostname=self.host, ssl_context=context, standard_compatible=False)
            return ByteStreamConnection(wrapped)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            if isinstance(error, ssl.SSLError | anyio.BrokenResourceError | anyio.EndOfStream):
                reason = tls_reason(error) or str(error.__cause__ or error) or "the server hung up"
                raise Unreachable(f"the TLS handshake with {self.host}:{self.port} failed: {reason}") from None
            raise


class _SocketConnection(DescriptorConnection):
    """A connection that reads and writes a socket directly; anyio owns and closes it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        # Duplicate the descriptor: the event loop watches anyio's own, which anyio only reads on request.
        descriptor = os.dup(stream.extra(SocketAttribute.raw_socket).fileno())
        super().__init__(descriptor, descriptor)

    async def aclose(self, grace: float) -> None:
        await super().aclose(grace)
        await anyio.aclose_forcefully(self._stream)
