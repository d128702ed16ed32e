"""What can keep a gateway from serving. Each message says what was tried and what to do."""

from __future__ import annotations

from cluster_remote.annex.errors import AnnexError

__all__ = ["CannotListen", "GatewayError", "NotAllowed", "NotServed", "TokensUnusable", "UnknownToken"]


class GatewayError(AnnexError):
    """The gateway cannot do what was asked of it."""


class CannotListen(GatewayError):
    """A socket could not be opened, or the one that was handed over is of no use."""


class NotServed(GatewayError):
    """There is no such repository or cluster behind this gateway."""


class TokensUnusable(GatewayError):
    """The file with the tokens' hashes could not be read or written."""


class UnknownToken(GatewayError):
    """There is no token with this id."""


class NotAllowed(GatewayError):
    """A request over HTTP that its sender may not make. `status` and `headers` are those of the answer."""

    def __init__(self, words: str, status: int, headers: dict[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.headers = headers
