"""The sockets that a gateway listens on: unix, TCP, and those passed by systemd."""

from __future__ import annotations

import errno
import ipaddress
import itertools
import os
import re
import secrets
import socket
import ssl
import stat
import struct
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeAlias

import anyio
from anyio.streams.tls import TLSStream

from cluster_remote.annex.private import make_private_directory
from cluster_remote.gateway.errors import CannotListen
from cluster_remote.p2p.descriptor import DescriptorConnection, has_unread
from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.transport.address import BadAddress, Tcp, Tls, Unix, parse_address
from cluster_remote.transport.bytestream import ByteStreamConnection, ConnectionStream

__all__ = [
    "Accepted",
    "ListenAddress",
    "Listener",
    "SocketConnection",
    "WebAddress",
    "inherited_listeners",
    "listen",
    "notice_dead_client",
    "parse_listen",
]

_Socket: TypeAlias = socket.socket
_BACKLOG = 1024
_HTTP, _HTTPS = 80, 443
# Longest path of a unix socket on Linux, in bytes.
_MAX_PATH = 107
# systemd's first descriptor (sd_listen_fds(3)).
_FIRST_DESCRIPTOR = 3
# Clients to accept in a row before other tasks get a turn.
_FAIR = 64
# Seconds to wait before accepting again after this machine ran out of resources.
_OUT_OF_ROOM_PAUSE = 0.2
# How soon to look after a silent client, and after how many unanswered questions it is dead: three minutes in all.
_KEEPALIVE = {"TCP_KEEPIDLE": 60, "TCP_KEEPINTVL": 15, "TCP_KEEPCNT": 8}
_OUT_OF_ROOM = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


@dataclass(frozen=True)
class Accepted:
    """A client's socket. `peer` is the client's name in the log; strangers are counted by `address`."""

    socket: socket.socket
    peer: str
    address: str

    def has_unread(self) -> bool:
        """Return whether data from the client waits to be read."""
        return _has_unread(self.socket)


class SocketConnection(DescriptorConnection):
    """A client's connection. Owns the socket.

    `peer` is the client's name in the log: a network address or a user; strangers are counted by `address`.
    """

    def __init__(self, accepted: socket.socket) -> None:
        self.peer, self.address = _peer(accepted)
        self._socket = socket.socket(fileno=os.dup(accepted.fileno()))
        descriptor = accepted.detach()
        super().__init__(descriptor, descriptor)

    def has_unread(self) -> bool:
        """Return whether data from the client waits to be read."""
        return _has_unread(self._socket)

    async def secured(self, context: ssl.SSLContext) -> ByteStreamConnection:
        """Begin TLS with the client. Raises ConnectionLost. Closing this connection closes the result too."""
        try:
            stream = await TLSStream.wrap(
                ConnectionStream(self, self._socket), server_side=True, ssl_context=context, standard_compatible=False
            )
        except (ssl.SSLError, anyio.BrokenResourceError, anyio.EndOfStream) as error:
            raise ConnectionLost(f"no TLS: {getattr(error, 'reason', None) or 'the client hung up'}") from None
        return ByteStreamConnection(stream)

    async def aclose(self, grace: float) -> None:
        """Close after waiting up to `grace` seconds for the client to close, so that our last message arrives.

        Closing a socket with unread input makes the kernel discard what was sent.
        """
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            grace = 0
        with anyio.CancelScope(shield=True), anyio.move_on_after(grace):
            try:
                while await self.receive(65536):
                    pass
            except ConnectionLost:
                pass
        self._socket.close()
        await super().aclose(0)


def notice_dead_client(accepted: socket.socket) -> None:
    """Make a TCP connection end when the client's machine is dead.

    A client that holds a lock need not send anything, so its connection keeps its slot as long as it lasts. The
    system's default is to look after two hours.
    """
    accepted.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        # Not every system has all of them.
        if (option := getattr(socket, name, None)) is not None:
            accepted.setsockopt(socket.IPPROTO_TCP, option, value)


def _has_unread(client: socket.socket) -> bool:
    return client.fileno() >= 0 and has_unread(client.fileno())


def _peer(accepted: socket.socket) -> tuple[str, str]:
    try:
        if accepted.family == socket.AF_UNIX:
            if not hasattr(socket, "SO_PEERCRED"):
                return "this machine", "unix"
            size = struct.calcsize("3i")
            pid, uid, _gid = struct.unpack("3i", accepted.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size))
            return f"user {uid}, process {pid}", f"user {uid}"
        host, port = accepted.getpeername()[:2]
    except OSError:
        # The client has already hung up.
        return "gone", "gone"
    ip = ipaddress.ip_address(host.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped is not None:
        # systemd's sockets take IPv4 connections too, and would give all these clients the same /64.
        ip = ip.ipv4_mapped
        host = str(ip)
    # A single machine may use as many addresses of a /64 as it likes.
    network = ipaddress.ip_network((ip, 64), strict=False) if ip.version == 6 else ip
    return str(Tcp(host, port)).removeprefix("tcp://"), str(network)


@dataclass(frozen=True)
class Listener:
    """A listening socket. `name` is its address; `in_the_clear`: traffic can be read on a network.

    `path` is the prefix of request paths over HTTP (`/data`, or nothing); None for the P2P protocol. `file` is the path
    and inode of a unix socket's file, to be removed at the end.
    """

    socket: socket.socket
    name: str
    in_the_clear: bool = False
    tls: bool = False
    path: str | None = None
    file: tuple[Path, int] | None = None
    _attempts: Iterator[int] = field(default_factory=itertools.count, init=False, repr=False, compare=False)

    async def accept(self) -> SocketConnection:
        """Return the next client. Raises CannotListen if something else has closed the socket."""
        while True:
            accepted = await self._next()
            try:
                return SocketConnection(accepted)
            except OSError as error:
                accepted.close()
                if error.errno not in _OUT_OF_ROOM:
                    raise
                await anyio.sleep(_OUT_OF_ROOM_PAUSE)

    async def accept_web(self) -> Accepted:
        """Return the next HTTP client. Raises CannotListen like `accept`."""
        accepted = await self._next()
        return Accepted(accepted, *_peer(accepted))

    async def _next(self) -> _Socket:
        while True:
            if next(self._attempts) % _FAIR == 0:
                # However fast clients connect, other tasks get their turn.
                await anyio.lowlevel.checkpoint()
            try:
                accepted, _ = self.socket.accept()
                accepted.setblocking(False)
            except BlockingIOError:
                await anyio.wait_readable(self.socket)
            except OSError as error:
                if error.errno in _OUT_OF_ROOM:
                    await anyio.sleep(_OUT_OF_ROOM_PAUSE)
                elif error.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
                    raise CannotListen(f"{self.name}: {error.strerror}") from None
                # Otherwise this client hung up before we accepted it (see accept(2)); there may be others.
            else:
                if accepted.family != socket.AF_UNIX:
                    # Messages are small and urgent.
                    accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    notice_dead_client(accepted)
                return accepted

    def close(self) -> None:
        """Stop listening, and remove the unix socket's file if it is still ours."""
        if self.file is not None:
            path, inode = self.file
            try:
                if path.lstat().st_ino == inode:
                    path.unlink()
            except FileNotFoundError:
                pass
        self.socket.close()


@dataclass(frozen=True)
class WebAddress:
    """Where to listen for HTTP. `path` is the prefix of all request paths: `/data`, or nothing."""

    tcp: Tcp
    path: str = ""
    tls: bool = False

    def __str__(self) -> str:
        return f"http{'s' if self.tls else ''}://{str(self.tcp).removeprefix('tcp://')}{self.path or '/'}"


ListenAddress: TypeAlias = Unix | Tcp | Tls | WebAddress
"""An address that a gateway can listen on."""


def parse_listen(text: str) -> ListenAddress:
    """Parse an address to listen on. Raises BadAddress."""
    scheme, colon, rest = text.partition("://")
    if colon and scheme.lower() in ("http", "https"):
        authority, slash, path = rest.partition("/")
        path = _web_path(text, slash + path)
        tls = scheme.lower() == "https"
        port = "" if re.search(r":[0-9]+$", authority) else f":{_HTTPS if tls else _HTTP}"
        address = parse_address(f"tcp://{authority}{port}")
        assert isinstance(address, Tcp)
        return WebAddress(address, path, tls)
    address = parse_address(text)
    if not isinstance(address, Unix | Tcp | Tls):
        forms = "unix:/path, tcp://host:port, tls://host:port, http://host[:port][/path] or https://…"
        raise BadAddress(f"a gateway listens on {forms}, not on {text!r}")
    if address.node is not None:
        raise BadAddress(f"{text!r}: ?node= is for clients; every repository behind a gateway is at the same address")
    return address


def _web_path(text: str, path: str) -> str:
    """Return the prefix of request paths that an address asks for. Raises BadAddress."""
    path = path.rstrip("/")
    if not re.fullmatch(r"(/[A-Za-z0-9._~-]+)*", path):
        raise BadAddress(f"{text!r}: the path may only contain letters, digits, and . _ ~ -")
    return path


def listen(address: ListenAddress) -> list[Listener]:
    """Listen on an address; if it is a host name, on all of its addresses. Raises CannotListen."""
    if isinstance(address, WebAddress):
        return [
            replace(
                listener,
                name=str(address),
                in_the_clear=listener.in_the_clear and not address.tls,
                tls=address.tls,
                path=address.path,
            )
            for listener in _listen_tcp(address.tcp)
        ]
    if isinstance(address, Tls):
        plain = _listen_tcp(Tcp(address.host, address.port))
        return [replace(each, name=str(address), in_the_clear=False, tls=True) for each in plain]
    return [_listen_unix(address)] if isinstance(address, Unix) else _listen_tcp(address)


def _listen_unix(address: Unix) -> Listener:
    path = Path(address.path)
    excess = len(os.fsencode(path)) - _MAX_PATH
    if excess > 0:
        raise CannotListen(
            f"cannot listen on {address}: the path of a unix socket may have at most {_MAX_PATH} bytes; shorten it "
            f"by {excess}"
        )
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    hidden = path.with_name(f".{secrets.token_hex(4)}")
    try:
        make_private_directory(path.parent)
        _check_directory(path.parent, address)
        if len(os.fsencode(hidden)) > _MAX_PATH:
            hidden = path.with_name(secrets.token_hex(1))
        # The file gets its mode from the socket (unix(7)): other users must not be able to connect, not even briefly.
        os.fchmod(made.fileno(), 0o600)
        made.bind(os.fsencode(hidden))
        try:
            inode = hidden.lstat().st_ino
            made.listen(_BACKLOG)
            made.setblocking(False)
            # Link it to its name only once it listens, and only if the name is free. This needs no lock, which another
            # process could hold.
            try:
                os.link(hidden, path)
            except FileExistsError:
                _remove_stale_socket(address)
                os.link(hidden, path)
        finally:
            hidden.unlink(missing_ok=True)
    except OSError as error:
        made.close()
        raise CannotListen(f"cannot listen on {address}: {error.strerror or error}") from None
    except BaseException:
        made.close()
        raise
    return Listener(made, str(address), file=(path, inode))


def _check_directory(directory: Path, address: Unix) -> None:
    """Refuse a directory where others could replace our socket. Raises CannotListen."""
    status = directory.stat()
    if status.st_uid not in (0, os.geteuid()):
        raise CannotListen(f"cannot listen on {address}: {directory} belongs to user {status.st_uid}")
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        raise CannotListen(f"cannot listen on {address}: every user can write to {directory}; use a private directory")


def _remove_stale_socket(address: Unix) -> None:
    """Remove a socket that no process listens on. Raises CannotListen if anything else is at the path."""
    try:
        before = os.lstat(address.path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(before.st_mode):
        raise CannotListen(f"cannot listen on {address}: something else exists at that path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        result = probe.connect_ex(os.fsencode(address.path))
    if result in (errno.ECONNREFUSED, errno.ENOENT):
        _remove(Path(address.path), before.st_ino)
        return
    if result in (0, errno.EAGAIN):
        raise CannotListen(f"cannot listen on {address}: already in use (by another cluster-remote serve?)")
    raise CannotListen(f"cannot listen on {address}: cannot check the existing socket: {os.strerror(result)}")


def _remove(path: Path, inode: int) -> None:
    """Remove a stale socket, but not one that another gateway has just created at the same path."""
    aside = path.with_name(f".{secrets.token_hex(4)}")
    try:
        path.rename(aside)
    except FileNotFoundError:
        return
    try:
        if aside.lstat().st_ino != inode:
            os.link(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def _listen_tcp(address: Tcp) -> list[Listener]:
    try:
        candidates = socket.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"cannot listen on {address}: {error}") from None
    listeners: list[Listener] = []
    reasons: list[str] = []
    for family, kind, protocol, _, where in dict.fromkeys(candidates):
        try:
            made = socket.socket(family, kind, protocol)
        except OSError as error:
            reasons.append(f"{where[0]}: {error.strerror}")
            continue
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                # IPv4 has a socket of its own, or none.
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            made.bind(where)
            made.listen(_BACKLOG)
            made.setblocking(False)
        except OSError as error:
            made.close()
            reasons.append(f"{where[0]}: {error.strerror}")
            continue
        listeners.append(_named(made))
    if not listeners:
        raise CannotListen(f"cannot listen on {address}: {'; '.join(reasons)}")
    return listeners


def _named(listening: socket.socket) -> Listener:
    where = listening.getsockname()
    match listening.family:
        case socket.AF_UNIX:
            return Listener(listening, f"unix:{os.fsdecode(where)}")
        case socket.AF_INET | socket.AF_INET6:
            host, port = where[:2]
            clear = not ipaddress.ip_address(host.partition("%")[0]).is_loopback
            return Listener(listening, str(Tcp(host, port)), in_the_clear=clear)
        case other:
            raise CannotListen(f"cannot use a socket of {other.name}")


def inherited_listeners(environment: MutableMapping[str, str]) -> list[Listener]:
    """Return the sockets that systemd passed to this process (LISTEN_FDS, LISTEN_PID, LISTEN_FDNAMES); often none.

    They speak the P2P protocol, or what their name says: `tls`, `http` or `https`, the latter two also with a path
    (`http/data`). Removes the variables, so that no child process uses the sockets. Raises CannotListen if they are
    unusable.
    """
    count = environment.pop("LISTEN_FDS", "")
    pid = environment.pop("LISTEN_PID", "")
    names = environment.pop("LISTEN_FDNAMES", "").split(":")
    if not count or pid != str(os.getpid()):
        return []
    if not count.isdecimal() or int(count) > 1000:
        raise CannotListen(f"LISTEN_FDS is {count[:40]!r}, not a number of sockets")
    listeners: list[Listener] = []
    try:
        for number in range(int(count)):
            name = names[number] if number < len(names) and names[number] else "unnamed"
            listeners.append(_inherited(_FIRST_DESCRIPTOR + number, name))
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _inherited(descriptor: int, name: str) -> Listener:
    try:
        taken = socket.socket(fileno=descriptor)
    except OSError as error:
        raise CannotListen(f"descriptor {descriptor} ({name}) is not a socket: {error.strerror}") from None
    try:
        if taken.type != socket.SOCK_STREAM or not taken.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise CannotListen(
                f"descriptor {descriptor} ({name}) is not a listening socket; the socket unit needs "
                "ListenStream= and Accept=no (with Accept=yes, run cluster-remote serve --stdio)"
            )
        taken.set_inheritable(False)
        taken.setblocking(False)
        return _speaking(_named(taken), name)
    except BaseException:
        taken.close()
        raise


def _speaking(listener: Listener, name: str) -> Listener:
    """Return a passed socket with the protocol that its name says, if it says one. Raises CannotListen."""
    protocol, slash, path = name.partition("/")
    protocol = protocol.lower()
    if protocol not in ("http", "https", "tls"):
        return listener
    if protocol == "tls" and slash:
        raise CannotListen(f"FileDescriptorName={name!r}: only http and https can have a path")
    try:
        prefix = None if protocol == "tls" else _web_path(name, slash + path)
    except BadAddress as error:
        raise CannotListen(f"FileDescriptorName={error}") from None
    tls = protocol != "http"
    return replace(
        listener,
        name=f"{listener.name} ({name})",
        in_the_clear=listener.in_the_clear and not tls,
        tls=tls,
        path=prefix,
    )
