"""Peers that listen on a socket: unix, TCP. Such a peer wants a token."""

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

from cluster_remote.p2p.bytestream import ByteStreamConnection
from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.stream import Connection
from cluster_remote.transport.network import Network
from cluster_remote.transport.tls import TlsSettings
from cluster_remote.transport.trust import check_socket_owner

__all__ = ["TcpTransport", "TlsTransport", "UnixTransport", "user_of_peer"]

_SocketAddress: TypeAlias = tuple[str | int, ...] | bytes

# Seconds between two tries where too many others are waiting to be let in.
_BUSY = 0.02


async def _connect(connection: socket.socket, address: _SocketAddress) -> None:
    """Connects without blocking. Raises OSError. Closes the socket if it fails."""
    try:
        connection.setblocking(False)
        # A unix socket whose queue is full says so, and nothing tells when there is room.
        while (result := connection.connect_ex(address)) == errno.EAGAIN:
            await anyio.sleep(_BUSY)
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
    """Who runs the other side of a unix socket."""
    if not hasattr(socket, "SO_PEERCRED"):
        # Not Linux: nothing is known, and the socket's directory is all that there is to go by.
        return os.geteuid()
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


class TcpTransport(Transport):
    """A TCP port of a host, directly or by a proxy."""

    def __init__(self, network: Network, host: str, port: int, *, token: str, name: str) -> None:
        self.network = network
        self.host = host
        self.port = port
        self.token = token
        self.name = name

    async def connect(self) -> Connection:
        stream = await self.network.connect(self.host, self.port)
        # The kernel moves large contents faster than anyio, to whatever the other side of the socket is.
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
            # An end without TLS's own goodbye is enough: the P2P protocol says itself what is complete.
            wrapped = await TLSStream.wrap(stream, hostname=self.host, ssl_context=context, standard_compatible=False)
            return ByteStreamConnection(wrapped)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await anyio.aclose_forcefully(stream)
            if isinstance(error, ssl.SSLError | anyio.BrokenResourceError | anyio.EndOfStream):
                raise Unreachable(f"no TLS with {self.host}:{self.port}: {_tls_reason(error)}") from None
            raise


def _tls_reason(error: BaseException) -> str:
    cause = error.__cause__ or error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({cause.verify_message}); see http.sslCAInfo in git's configuration"
    return getattr(cause, "reason", None) or str(cause) or "the other side hung up"


class _SocketConnection(DescriptorConnection):
    """Reads and writes a socket past anyio, which keeps it open and closes it."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        # Another number for the same socket: the event loop watches its own, which anyio never reads from unasked.
        descriptor = os.dup(stream.extra(SocketAttribute.raw_socket).fileno())
        super().__init__(descriptor, descriptor)

    async def aclose(self, patience: float) -> None:
        await super().aclose(patience)
        await anyio.aclose_forcefully(self._stream)
