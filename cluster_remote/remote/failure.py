"""Turn any failure into a message for people."""

from __future__ import annotations

from collections.abc import Iterator

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import AnnexError
from cluster_remote.p2p.errors import SessionError
from cluster_remote.remote.retrieval import CannotWrite
from cluster_remote.transport.address import BadAddress

__all__ = ["causes", "in_words"]

_EXPECTED = (SessionError, BadAddress, BadSettings, AnnexError, CannotWrite)


def in_words(error: BaseException) -> tuple[str, bool]:
    """Return a message, and whether the error is an expected one."""
    found = list(causes(error))
    expected = all(isinstance(cause, _EXPECTED) for cause in found)
    words = "; ".join(
        dict.fromkeys(
            str(cause) if isinstance(cause, _EXPECTED) else f"internal error: {type(cause).__name__}: {cause}"
            for cause in found
        )
    )
    return words, expected


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors of concurrent tasks, which come as a group (ExceptionGroup, built in since Python 3.11)."""
    parts: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    if parts is None:
        yield error
    else:
        for part in parts:
            yield from causes(part)
