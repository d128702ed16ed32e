"""Open sessions: the caller's settings, and the transport for each kind of address."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from cluster_remote.annex.repository import Repository, foreign_environment
from cluster_remote.p2p.client import DEFAULT_TIMEOUT, StreamSession, Transport
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.stream import Trace
from cluster_remote.transport.address import Address, BadAddress, Directory, Http, P2pAnnex, Ssh, Tcp, Tls, Tor, Unix
from cluster_remote.transport.tls import TlsSettings
from cluster_remote.transport.tracing import recorded

if TYPE_CHECKING:
    from cluster_remote.p2p.session import Session

__all__ = ["Caller", "session_at", "ssh_environment", "stream_session", "transport_to"]

# Tor's default SOCKS port, which git-annex uses too.
_TOR_PROXY = "socks5h://127.0.0.1:9050"
_TOR_PROXY_VARIABLE = "CLUSTER_REMOTE_TOR_PROXY"
_SHELL_HINT = "git-annex-shell comes with git-annex; put the directory that it is in on PATH"


@dataclass(frozen=True)
class Caller:
    """Who opens sessions, and the user's settings for them.

    `uuid` is the asking repository; `timeout` is in seconds without progress; `ssh_command` and `ssh_variant` are git's
    core.sshCommand and ssh.variant; `repository` is None outside of one. `allowed_ips` is
    annex.security.allowed-ip-addresses if the address may be a stranger's, None if this user gave it; `tls` and
    `http_proxy` are git's settings for https, `ssh_options` the user's for this remote. `settings` go to the git of a
    repository on this machine, before those in its configuration.
    """

    uuid: UUID
    timeout: float = DEFAULT_TIMEOUT
    ssh_command: str | None = None
    ssh_variant: str | None = None
    trace: Trace | None = None
    repository: Repository | None = None
    allowed_ips: str | None = None
    tls: TlsSettings = field(default_factory=TlsSettings)
    http_proxy: str | None = None
    ssh_options: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    def restricted_to(self, allowed_ips: str) -> Caller:
        """Return the same caller for an address that may be a stranger's."""
        return replace(self, allowed_ips=allowed_ips)


def transport_to(
    address: Address, caller: Caller, *, server: UUID | None = None, token: str | None = None
) -> Transport:
    """Return the transport to the peer at an address.

    `server` is the repository to reach there; None for whichever one the address names. Raises BadAddress if the
    address cannot be used like this.
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
    """Return an unconnected session with the peer at an address; see `transport_to`."""
    return address.session(caller, server, token, bypass)


def stream_session(
    address: Address,
    caller: Caller,
    server: UUID | None = None,
    token: str | None = None,
    bypass: frozenset[UUID] = frozenset(),
) -> StreamSession:
    """Return a session over a byte stream."""
    return StreamSession(
        address.transport(caller, server, token),
        client=caller.uuid,
        expected=server,
        timeout=caller.timeout,
        bypass=bypass,
        trace=recorded(caller.trace, str(address), server, token),
    )


# Transports, by class of address


def shell_in_directory(address: Directory, caller: Caller, server: UUID | None) -> Transport:
    from cluster_remote.transport.process import ProcessTransport
    from cluster_remote.transport.trust import check_directory

    environment = foreign_environment() | _as_variables(caller.settings)
    return ProcessTransport(
        _shell_command(address.path, caller.uuid, server),
        name=str(address),
        environment=environment,
        hint=_SHELL_HINT,
        place=address.path,
        check=lambda: check_directory(address.path, caller.repository, environment),
    )


def _as_variables(settings: Mapping[str, str]) -> dict[str, str]:
    """Return settings in the form in which git takes them from its environment (git-config(1), GIT_CONFIG_COUNT)."""
    variables = {"GIT_CONFIG_COUNT": str(len(settings))} if settings else {}
    for number, (name, value) in enumerate(settings.items()):
        variables |= {f"GIT_CONFIG_KEY_{number}": name, f"GIT_CONFIG_VALUE_{number}": value}
    return variables


def shell_over_ssh(address: Ssh, caller: Caller, server: UUID | None) -> Transport:
    from cluster_remote.transport.ssh import SshTransport, ssh_command

    # Like for git, a relative path is relative to the remote home directory.
    command = ssh_command(
        address,
        _shell_command(address.path, caller.uuid, server),
        os.environ,
        caller.ssh_command,
        caller.ssh_variant,
        caller.ssh_options,
    )
    where = f"{address.destination} {address.port or ''}"
    return SshTransport(command, name=str(address), environment=ssh_environment(), destination=where)


def unix_socket(address: Unix, token: str | None) -> Transport:
    from cluster_remote.transport.sockets import UnixTransport

    return UnixTransport(os.fsencode(address.path), token=_token(address, token, address.node), name=str(address))


def tcp_socket(address: Tcp, caller: Caller, token: str | None) -> Transport:
    from cluster_remote.transport.network import Network, proxy_for
    from cluster_remote.transport.sockets import TcpTransport

    network = Network(caller.allowed_ips, proxy_for("tcp", address.host))
    return TcpTransport(
        network, address.host, address.port, token=_token(address, token, address.node), name=str(address)
    )


def tls_socket(address: Tls, caller: Caller, token: str | None) -> Transport:
    from cluster_remote.transport.network import Network, proxy_for
    from cluster_remote.transport.sockets import TlsTransport

    network = Network(caller.allowed_ips, proxy_for("tls", address.host))
    token = _token(address, token, address.node)
    return TlsTransport(network, address.host, address.port, caller.tls, token=token, name=str(address))


def onion_service(address: Tor, caller: Caller, token: str | None) -> Transport:
    from cluster_remote.transport.network import Network
    from cluster_remote.transport.sockets import TcpTransport

    # Onion names never leave Tor, so there is no IP address to check.
    network = Network(None, os.environ.get(_TOR_PROXY_VARIABLE) or _TOR_PROXY)
    return TcpTransport(
        network, address.host, address.port, token=_token(address, token, address.node), name=str(address)
    )


def by_program(address: P2pAnnex, caller: Caller, token: str | None) -> Transport:
    from cluster_remote.transport.process import ProcessTransport

    program = f"git-annex-p2p-{address.net}"
    return ProcessTransport(
        [program, address.path],
        name=str(address),
        environment=foreign_environment(),
        hint=f"the program for this network has to be on PATH as {program}",
        token=_token(address, token, address.node),
    )


def http_session(
    address: Http, caller: Caller, server: UUID | None, token: str | None, bypass: frozenset[UUID]
) -> Session:
    import httpcore

    from cluster_remote.annex.logins import GitCredentials
    from cluster_remote.transport.http import HttpSession
    from cluster_remote.transport.network import Backend, Network, proxy_for

    if server is None:
        raise BadAddress(f"{address}: a server over HTTP does not say who it is; name the cluster by its UUID")
    scheme = "https" if address.tls else "http"
    network = Network(caller.allowed_ips, proxy_for(scheme, address.host, caller.http_proxy))
    context = caller.tls.context() if address.tls else None
    pool = httpcore.AsyncConnectionPool(context, network_backend=Backend(network), max_keepalive_connections=2)
    return HttpSession(
        f"{scheme}://{address.authority}{address.prefix}",
        server,
        name=str(address),
        client=caller.uuid,
        pool=pool,
        authentication=GitCredentials(caller.repository, address.scheme, address.authority, token),
        timeout=caller.timeout,
        bypass=bypass,
        trace=recorded(caller.trace, str(address), server, token),
    )


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
    """Return the environment for ssh: the user's, without variables that point at a local repository."""
    environment = foreign_environment()
    # The user's own environment configures ssh, not the repository that we were started in.
    for name in ("GIT_SSH", "GIT_SSH_COMMAND", "GIT_SSH_VARIANT"):
        if name in os.environ:
            environment[name] = os.environ[name]
    return environment
