"""Open sessions: the caller's settings, and a table of what opens each kind of address.

What opens an address is imported when the first such address is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.client import StreamSession, Transport
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.stream import Trace
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT
from cluster_remote.transport.address import Address, BadAddress, Directory, Http, P2pAnnex, Ssh, Tcp, Tls, Tor, Unix
from cluster_remote.transport.tracing import recorded

if TYPE_CHECKING:
    from cluster_remote.p2p.session import Session

__all__ = ["Caller", "session_at", "stream_session", "token_for", "transport_to"]


@dataclass(frozen=True)
class Caller:
    """The repository that opens sessions, and the user's settings for them.

    `uuid` is the asking repository; `timeout` is in seconds without progress; `ssh_command` and `ssh_variant` are git's
    core.sshCommand and ssh.variant, `share_ssh` is annex.sshcaching; `repository` is None outside of one. `allowed_ips`
    is annex.security.allowed-ip-addresses if the address may be a stranger's, None if this user gave it; `config` has
    git's settings for https, `ssh_options` are the user's for this remote. `settings` go to the git of a repository on
    this machine, before those in its configuration.
    """

    uuid: UUID
    timeout: float = DEFAULT_TIMEOUT
    ssh_command: str | None = None
    ssh_variant: str | None = None
    share_ssh: bool = False
    trace: Trace | None = None
    repository: Repository | None = None
    allowed_ips: str | None = None
    config: GitConfig = field(default=GitConfig({}), repr=False)
    ssh_options: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, repository: Repository, config: GitConfig, timeout: float = DEFAULT_TIMEOUT) -> Caller:
        """Return the caller for sessions opened from a repository. Raises NotInitialised."""
        return cls(
            repository.uuid,
            timeout,
            ssh_command=config.get("core.sshCommand"),
            ssh_variant=config.get("ssh.variant"),
            share_ssh=config.boolean("annex.sshcaching", True),
            repository=repository,
            config=config,
        )

    def restricted_to(self, allowed_ips: str) -> Caller:
        """Return the same caller for an address that may be a stranger's."""
        return replace(self, allowed_ips=allowed_ips)


# For each class of address, the module in this package and its function that makes the transport (or the session).
_TRANSPORTS: Mapping[type[Address], str] = {
    Directory: "by_process:shell_in_directory",
    Ssh: "by_process:shell_over_ssh",
    P2pAnnex: "by_process:by_program",
    Unix: "by_socket:unix_socket",
    Tcp: "by_socket:tcp_socket",
    Tls: "by_socket:tls_socket",
    Tor: "by_socket:onion_service",
}
_SESSIONS: Mapping[type[Address], str] = {Http: "by_http:http_session"}


def transport_to(
    address: Address, caller: Caller, *, server: UUID | None = None, token: str | None = None
) -> Transport:
    """Return the transport to the peer at an address.

    `server` is the repository to reach there; None for the one that the address names. Raises BadAddress if the
    address cannot be used like this.
    """
    opener = _TRANSPORTS.get(type(address))
    if opener is None:
        raise BadAddress(f"{address} cannot be reached over a byte stream")
    transport: Transport = _imported(opener)(address, caller, server, token)
    return transport


def session_at(
    address: Address,
    caller: Caller,
    *,
    server: UUID | None = None,
    token: str | None = None,
    bypass: frozenset[UUID] = frozenset(),
) -> Session:
    """Return an unconnected session with the peer at an address; see `transport_to`."""
    if type(address) in _SESSIONS:
        session: Session = _imported(_SESSIONS[type(address)])(address, caller, server, token, bypass)
        return session
    return stream_session(address, caller, server, token, bypass)


def stream_session(
    address: Address,
    caller: Caller,
    server: UUID | None = None,
    token: str | None = None,
    bypass: frozenset[UUID] = frozenset(),
) -> StreamSession:
    """Return a session over a byte stream."""
    return StreamSession(
        transport_to(address, caller, server=server, token=token),
        client=caller.uuid,
        expected=server,
        timeout=caller.timeout,
        bypass=bypass,
        trace=recorded(caller.trace, str(address), server, token),
    )


def _imported(opener: str) -> Callable[..., Any]:
    module, _, function = opener.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(f"cluster_remote.transport.{module}"), function)
    return found


def token_for(address: Address, token: str | None, node: UUID | None) -> str:
    """Return the token for AUTH, followed by the requested node behind the gateway, if any. Raises BadAddress."""
    if not token:
        raise BadAddress(
            f"{address} wants a token: put it into the environment variable CLUSTER_REMOTE_TOKEN when you give the "
            "address, or give a remote its own: CLUSTER_REMOTE_TOKEN=… git annex enableremote NAME"
        )
    if any(c.isspace() or not c.isprintable() for c in token) or "/" in token:
        raise BadAddress("the token in CLUSTER_REMOTE_TOKEN contains characters that no token has")
    return token if node is None else f"{token}/{node}"
