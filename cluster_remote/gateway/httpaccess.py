"""Access to the gateway over HTTP: who makes a request, what they may do, and what the log says about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request

from cluster_remote.gateway.httprequests import login_of
from cluster_remote.gateway.tokens import Token
from cluster_remote.gateway.webserver import WebConnection
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.messages import LockContent, Message
from cluster_remote.p2p.server import Endpoint, Mode

__all__ = ["Access", "Principal", "challenge", "connection_of", "login_could_help", "note", "owner_of", "principal_of"]

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="git-annex", charset="UTF-8"'}


@dataclass(frozen=True)
class Principal:
    """Who makes a request: their permissions, and their name in the log. Anonymous principals cannot lock."""

    mode: Mode
    name: str
    anonymous: bool = False
    token: Token | None = None

    def may(self, request: Message) -> bool:
        return self.mode.refusal(request) is None and not (self.anonymous and isinstance(request, LockContent))


class Access(Protocol):
    """Controls who has access, and to what."""

    @property
    def takes_logins(self) -> bool:
        """Whether any login could be accepted."""

    async def authenticate(self, login: tuple[str, str] | None, connection: WebConnection) -> Principal | None:
        """Authenticate a principal by user and password, if given; return None to deny access.

        Raises HttpFailure if the gateway is full.
        """

    async def served(self, uuid: UUID, client: UUID | None, principal: Principal) -> Endpoint | None:
        """Return what is served under a UUID, as far as the principal may use it; None if nothing is."""


def login_could_help(principal: Principal | None, access: Access) -> bool:
    """Return whether a principal that was denied access could get it by logging in."""
    return principal is None or (principal.anonymous and access.takes_logins)


def challenge() -> dict[str, str]:
    """Return the header that requests a login."""
    return dict(_CHALLENGE)


def connection_of(request: Request) -> WebConnection:
    """Return the connection that a request arrived on."""
    found: WebConnection = request.state.connection
    return found


def owner_of(request: Request) -> str:
    """Return what the client of a request is counted by: its token, or else its address."""
    connection = connection_of(request)
    return connection.address if connection.token is None else connection.token.id


def note(request: Request, *lines: str) -> None:
    """Write lines about a request to the log."""
    for line in lines:
        connection_of(request).say(line)


async def principal_of(request: Request, access: Access) -> Principal | None:
    """Identify who makes a request; None if access is denied.

    Raises HttpFailure for a malformed login, or if the gateway is full.
    """
    return await access.authenticate(login_of(request), connection_of(request))
