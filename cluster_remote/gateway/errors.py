"""The errors of a gateway. Each message says what was tried and what to do."""

from __future__ import annotations

from cluster_remote.annex.errors import AnnexError

__all__ = ["CannotListen", "GatewayError", "HttpFailure", "NotServed", "TokensUnusable", "UnknownToken"]


class GatewayError(AnnexError):
    """The gateway cannot do what was requested."""


class CannotListen(GatewayError):
    """A listening socket could not be opened, or one that was passed to this process is unusable."""


class NotServed(GatewayError):
    """No such repository or cluster is behind this gateway."""


class TokensUnusable(GatewayError):
    """The file with the tokens' hashes could not be read or written."""


class UnknownToken(GatewayError):
    """There is no token with this ID."""


class HttpFailure(GatewayError):
    """An HTTP request that fails. `status` and `headers` are the response's; the message is its body."""

    def __init__(self, status: int, words: str = "", headers: dict[str, str] | None = None) -> None:
        super().__init__(words)
        self.status = status
        self.headers = headers
