"""What can go wrong with a session. Every error says where it happened; none carries a token.

The distinction that callers need: `Refused` leaves the session usable, every other error has closed its
connection, and the next request opens a new one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cluster_remote.p2p.key import UUID

__all__ = [
    "AuthenticationFailed",
    "BeyondTheEnd",
    "ConnectionLost",
    "NotReached",
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


class SessionError(Exception):
    """A request got no answer that can be relied on. Nothing is known about what the peer did."""


class Unreachable(SessionError):
    """No connection could be made."""


class ConnectionLost(SessionError):
    """The peer closed the connection, or it broke, before the answer was complete."""


class TimedOut(SessionError):
    """The peer made no progress within the deadline."""


class ProtocolError(SessionError):
    """The peer sent something that the protocol does not allow here."""


class NotReached(Unreachable, ConnectionLost):
    """The connection broke before the peer had let us in."""


class NotTried(Unreachable):
    """The peer could not be reached a moment ago. The text is complete: it names the peer and what happened."""


class NotTheProtocol(Unreachable, ProtocolError):
    """What answers at that address does not speak the protocol."""


class AuthenticationFailed(Unreachable):
    """The peer did not accept the token."""


class WrongRepository(Unreachable):
    """The peer is another repository than the one that was asked for."""

    def __init__(self, words: str, found: UUID | None = None) -> None:
        """`found` is who it is, where it says so."""
        super().__init__(words)
        self.found = found


class Refused(SessionError):
    """The peer answered with ERROR: it understood the request and will not do it."""


class SourceError(SessionError):
    """The content to be uploaded could not be read to its end, or changed while it was read."""


class BeyondTheEnd(SourceError):
    """The content ends before the byte from which the peer wants it: the peer has too much of it."""
