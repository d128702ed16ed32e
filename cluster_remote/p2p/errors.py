"""Errors of sessions. Each says where it happened; none contains a token.

Callers need one distinction: `Refused` leaves the session usable; any other error has closed its connection, and the
next request opens a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.p2p.key import UUID

__all__ = [
    "TRY_LATER",
    "AuthenticationFailed",
    "BeyondTheEnd",
    "ConnectionLost",
    "Damaged",
    "NoRoom",
    "NotReached",
    "NotServed",
    "NotTheProtocol",
    "NotTried",
    "ProtocolError",
    "Refused",
    "SessionError",
    "SourceError",
    "TimedOut",
    "Unreachable",
    "WrongRepository",
]


TRY_LATER = "; try again later"
"""How a refusal of our gateway ends if it only has no room at the moment."""


class SessionError(Exception):
    """A request got no reliable answer. What the peer did is unknown."""


class Unreachable(SessionError):
    """No connection could be made."""


class ConnectionLost(SessionError):
    """The peer closed the connection, or it broke, before the answer was complete."""


class TimedOut(SessionError):
    """The peer made no progress within the deadline."""


class ProtocolError(SessionError):
    """The peer sent something that the protocol does not allow here."""


class NotReached(Unreachable, ConnectionLost):
    """The connection broke before authentication completed."""


class NotTried(Unreachable):
    """The peer was unreachable recently, so it was not tried. The text already names the peer and the failure."""


class NotTheProtocol(Unreachable, ProtocolError):
    """The server at that address does not speak the protocol."""


class AuthenticationFailed(Unreachable):
    """The peer did not accept the token."""


class NoRoom(Unreachable):
    """The server accepts no more connections of this client at the moment."""


class WrongRepository(Unreachable):
    """The peer is not the expected repository."""

    def __init__(self, words: str, found: UUID | None = None) -> None:
        """`found` is the repository that answered, if known."""
        super().__init__(words)
        self.found = found


class NotServed(Unreachable):
    """There is a server, but it does not serve the repository asked for."""


class Refused(SessionError):
    """The peer answered ERROR: it understood the request but refused it."""


class Damaged(SessionError):
    """The content does not match its key."""

    def __init__(self, words: str, origin: UUID | None = None) -> None:
        """`origin` is the repository that sent it, if known."""
        super().__init__(words)
        self.origin = origin


class SourceError(SessionError):
    """The content to upload could not be read completely, or changed while it was being read."""


class BeyondTheEnd(SourceError):
    """The peer asked for an offset beyond the end of the content: its partial upload is too long."""
