"""git-annex-p2p-cluster ADDRESS: connect standard input and output to a gateway's socket.

This makes our gateways a network of git-annex's P2P transports: for a remote with the url p2p-annex::cluster:ADDRESS
git-annex runs this program with ADDRESS and speaks the whole protocol through it, AUTH included. So it only copies
bytes.

`?node=UUID` in ADDRESS is ignored here: git-annex stores one token per address, and remotes for different repositories
behind the same gateway need different ones.
"""

from __future__ import annotations

import os
import socket
import sys
import threading

from cluster_remote.limits import guard_this_process
from cluster_remote.p2p.text import printable
from cluster_remote.transport.address import BadAddress, Tcp, Unix, parse_address
from cluster_remote.transport.sockets import user_of_peer
from cluster_remote.transport.trust import Refusal, check_socket_owner

__all__ = ["connect", "main", "relay"]

_CHUNK = 256 * 1024
# Seconds to connect.
_TIMEOUT = 60.0

_USAGE = "usage: git-annex-p2p-cluster ADDRESS, where ADDRESS is unix:/path or tcp://host:port"


def main() -> int:
    """Return the exit code: 0 when the gateway closed the connection, 1 if it was unreachable, 2 for wrong usage."""
    if len(sys.argv) != 2 or sys.argv[1].startswith("-"):
        print(_USAGE, file=sys.stderr)
        return 2
    if sys.argv[1] == "address":
        # git-annex asks for a network's addresses like this, in order to serve a repository itself.
        print("git-annex-p2p-cluster: to serve, run cluster-remote serve --listen ADDRESS", file=sys.stderr)
        return 2
    guard_this_process()
    try:
        gateway = connect(sys.argv[1])
    except (BadAddress, Refusal) as error:
        print(f"git-annex-p2p-cluster: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        reason = error.strerror or error
        print(f"git-annex-p2p-cluster: cannot connect to {printable(sys.argv[1])}: {reason}", file=sys.stderr)
        return 1
    try:
        relay(gateway, sys.stdin.fileno(), sys.stdout.fileno())
    except KeyboardInterrupt:
        return 130
    return 0


def connect(text: str) -> socket.socket:
    """Connect to a gateway. Raises BadAddress, OSError; Refusal if the server runs as an unexpected user."""
    match parse_address(text):
        case Unix(path=path):
            gateway = socket.socket(socket.AF_UNIX)
            try:
                gateway.settimeout(_TIMEOUT)
                gateway.connect(os.fsencode(path))
                # Next, git-annex sends the token.
                check_socket_owner(os.fsencode(path), user_of_peer(gateway))
            except BaseException:
                gateway.close()
                raise
        case Tcp(host=host, port=port):
            gateway = socket.create_connection((host, port), _TIMEOUT)
            gateway.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            gateway.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        case _:
            raise BadAddress(f"{text!r} is not the address of a gateway's socket; use unix:/path or tcp://host:port")
    gateway.settimeout(None)
    return gateway


def relay(gateway: socket.socket, reading: int, writing: int) -> None:
    """Copy bytes both ways until the gateway closes. Forward the end of our input to the gateway."""

    def to_gateway() -> None:
        try:
            while data := os.read(reading, _CHUNK):
                gateway.sendall(data)
            gateway.shutdown(socket.SHUT_WR)
        except OSError:
            # The gateway closed; the other direction notices after the last message.
            return

    # A daemon thread, since it may wait for input that never comes after the gateway has closed.
    threading.Thread(target=to_gateway, daemon=True).start()
    with gateway:
        try:
            while data := gateway.recv(_CHUNK):
                view = memoryview(data)
                while view:
                    view = view[os.write(writing, view) :]
        except OSError:
            # Either side hung up; git-annex sees the end of the conversation.
            return
