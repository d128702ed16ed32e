"""How sessions are opened: with whose settings, and the ways that each kind of address has to a peer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cluster_remote.annex.repository import Repository, foreign_environment
from cluster_remote.p2p.client import DEFAULT_TIMEOUT, StreamSession, Transport
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.stream import Trace
from cluster_remote.transport.address import Address, BadAddress, Directory, Ssh, Tcp, Unix
from cluster_remote.transport.tracing import recorded

if TYPE_CHECKING:
    from cluster_remote.p2p.session import Session

__all__ = ["Caller", "session_at", "ssh_environment", "stream_session", "transport_to"]

_SHELL_HINT = "git-annex-shell comes with git-annex; put the directory that it is in on PATH"


@dataclass(frozen=True)
class Caller:
    """Who opens sessions, and with which settings of the user.

    `uuid` is the repository that asks; `timeout` is in seconds without progress; `ssh_command` and `ssh_variant`
    are git's core.sshCommand and ssh.variant; `repository` is None outside of one. `allowed_ips` is
    annex.security.allowed-ip-addresses where the address may be a stranger's, None where this user gave it.
    """

    uuid: UUID
    timeout: float = DEFAULT_TIMEOUT
    ssh_command: str | None = None
    ssh_variant: str | None = None
    trace: Trace | None = None
    repository: Repository | None = None
    allowed_ips: str | None = None

    def restricted_to(self, allowed_ips: str) -> Caller:
        """The same, for an address that may be a stranger's."""
        return replace(self, allowed_ips=allowed_ips)


def transport_to(
    address: Address, caller: Caller, *, server: UUID | None = None, token: str | None = None
) -> Transport:
    """The way to the peer at an address. `server` is the repository wanted there; without it, the one that is there.

    Raises BadAddress where the address cannot be used as it is.
    """
    return address.transport(caller, server, token)


def session_at(
    address: Address,
    caller: Caller,
    *,
    server: UUID | None = None,
    token: str | None = None,
    bypass: frozenset[UUID] = frozenset(),
) -> Session:
    """A session with the peer at an address; see `transport_to`. Nothing is opened yet."""
    return address.session(caller, server, token, bypass)


def stream_session(
    address: Address,
    caller: Caller,
    server: UUID | None = None,
    token: str | None = None,
    bypass: frozenset[UUID] = frozenset(),
) -> StreamSession:
    """A session over a stream of bytes."""
    return StreamSession(
        address.transport(caller, server, token),
        client=caller.uuid,
        expected=server,
        timeout=caller.timeout,
        bypass=bypass,
        trace=recorded(caller.trace, str(address), server, token),
    )


# The ways to a peer, for the classes of addresses


def shell_in_directory(address: Directory, caller: Caller, server: UUID | None) -> Transport:
    from cluster_remote.transport.process import ProcessTransport
    from cluster_remote.transport.trust import check_directory

    environment = foreign_environment()
    return ProcessTransport(
        _shell_command(address.path, caller.uuid, server),
        name=str(address),
        environment=environment,
        hint=_SHELL_HINT,
        place=address.path,
        check=lambda: check_directory(address.path, caller.repository, environment),
    )


def shell_over_ssh(address: Ssh, caller: Caller, server: UUID | None) -> Transport:
    from cluster_remote.transport.process import ProcessTransport
    from cluster_remote.transport.ssh import ssh_command

    # What git-annex-shell is told to work on is relative to the home directory there, as for git.
    command = ssh_command(
        address, _shell_command(address.path, caller.uuid, server), os.environ, caller.ssh_command, caller.ssh_variant
    )
    return ProcessTransport(command, name=str(address), environment=ssh_environment())


def unix_socket(address: Unix, token: str | None) -> Transport:
    from cluster_remote.transport.sockets import UnixTransport

    return UnixTransport(os.fsencode(address.path), token=_token(address, token, address.node), name=str(address))


def tcp_socket(address: Tcp, caller: Caller, token: str | None) -> Transport:
    from cluster_remote.transport.sockets import TcpTransport

    token = _token(address, token, address.node)
    return TcpTransport(address.host, address.port, token=token, name=str(address), allowed_ips=caller.allowed_ips)


def _shell_command(directory: str, client: UUID, server: UUID | None) -> list[str]:
    command = ["git-annex-shell", "p2pstdio", directory, client.text]
    return command if server is None else [*command, "--uuid", server.text]


def _token(address: Address, token: str | None, node: UUID | None) -> str:
    if not token:
        raise BadAddress(
            f"{address} wants a token: put it into the environment variable CLUSTER_REMOTE_TOKEN when you give the "
            "address, or give a remote its own: CLUSTER_REMOTE_TOKEN=… git annex enableremote NAME"
        )
    if any(c.isspace() or not c.isprintable() for c in token) or "/" in token:
        raise BadAddress("the token in CLUSTER_REMOTE_TOKEN has characters in it that no token has")
    return token if node is None else f"{token}/{node}"


def ssh_environment() -> Mapping[str, str]:
    """The environment for ssh: that of the user, with nothing in it that points at a repository here."""
    environment = foreign_environment()
    # What decides about ssh is the user's own environment, not that of the repository we were started in.
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment
