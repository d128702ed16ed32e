"""Turn any error into a message for people."""

from __future__ import annotations

from collections.abc import Iterator

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import AnnexError
from cluster_remote.p2p.errors import SessionError
from cluster_remote.remote.retrieval import CannotWrite
from cluster_remote.transport.address import BadAddress

__all__ = ["leaf_errors", "message_of"]

_EXPECTED = (SessionError, BadAddress, BadSettings, AnnexError, CannotWrite)


def message_of(error: BaseException) -> tuple[str, bool]:
    """Return a message, and whether the error is an expected one."""
    found = list(leaf_errors(error))
    expected = all(isinstance(each, _EXPECTED) for each in found)
    message = "; ".join(
        dict.fromkeys(
            str(each) if isinstance(each, _EXPECTED) else f"internal error: {type(each).__name__}: {each}"
            for each in found
        )
    )
    return message, expected


def leaf_errors(error: BaseException) -> Iterator[BaseException]:
    """Yield the errors in an exception group (built in since Python 3.11), or the error itself."""
    parts: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    if parts is None:
        yield error
    else:
        for part in parts:
            yield from leaf_errors(part)
