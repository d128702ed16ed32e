"""Peers that listen on a socket: unix, TCP. Such a peer wants a token."""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import TypeAlias

import anyio

from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.transport.trust import Refusal, check_socket_owner, connectable

__all__ = ["TcpTransport", "UnixTransport"]

_SocketAddress: TypeAlias = tuple[str | int, ...] | bytes

# Seconds between two tries where too many others are waiting to be let in.
_BUSY = 0.02
# Seconds for an address of a host that has others, which may answer where this one does not.
_SHARE = 5.0


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
            check_socket_owner(self.path, _user_of_peer(connection))
        except BaseException:
            connection.close()
            raise
        descriptor = connection.detach()
        return DescriptorConnection(descriptor, descriptor)


def _user_of_peer(connection: socket.socket) -> int:
    """Who runs the other side of a unix socket."""
    if not hasattr(socket, "SO_PEERCRED"):
        # Not Linux: nothing is known, and the socket's directory is all that there is to go by.
        return os.geteuid()
    size = struct.calcsize("3i")
    _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
    return int(uid)


class TcpTransport(Transport):
    """A TCP port, tried at every address that the host's name has."""

    def __init__(self, host: str, port: int, *, token: str, name: str, allowed_ips: str | None = None) -> None:
        self.host = host
        self.port = port
        self.token = token
        self.name = name
        self.allowed_ips = allowed_ips

    async def connect(self) -> DescriptorConnection:
        try:
            candidates = await anyio.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise Unreachable(f"cannot find the host {self.host!r}: {error}") from None
        reasons = []
        # What is connected to is what was looked at: a name may lead elsewhere the next time it is asked for.
        permitted = [each for each in candidates if connectable(str(each[4][0]), self.port, self.allowed_ips)]
        if candidates and not permitted:
            forbidden = ", ".join(dict.fromkeys(str(each[4][0]) for each in candidates))
            raise Refusal(
                f"{self.host} is {forbidden}, not a public address, and the url came by the git-annex branch: if it "
                f"should be used, git config annex.security.allowed-ip-addresses {forbidden.split(', ')[0]}"
            )
        candidates = permitted
        for number, (family, kind, protocol, _name, address) in enumerate(candidates, 1):
            connection = socket.socket(family, kind, protocol)
            # The last has as long as the caller gives it.
            share = None if number == len(candidates) else _SHARE
            try:
                with anyio.fail_after(share):
                    await _connect(connection, address)
            except TimeoutError:
                # The kernel's own ETIMEDOUT is one, too.
                reasons.append(f"{address[0]}: no answer")
                continue
            except OSError as error:
                reasons.append(f"{address[0]}: {error.strerror or error}")
                continue
            # Messages are small and answers are waited for.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            descriptor = connection.detach()
            return DescriptorConnection(descriptor, descriptor)
        raise Unreachable(f"cannot connect: {'; '.join(dict.fromkeys(reasons))}")
