"""Handle exhausted resources: descriptors, processes, memory.

Running out must only fail one request, with a clear error. Any call can raise such an error, also within an exception
group.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cluster_remote.limits import why_refused
from cluster_remote.p2p.errors import SessionError

__all__ = ["Exhausted", "exhausted_resource", "exhaustion_as_session_error"]

_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})


class Exhausted(SessionError):
    """This machine lacks the resources for a request at the moment."""


def exhausted_resource(error: BaseException) -> str | None:
    """Return which resource ran out, if an error or one in its group says so; otherwise None."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no more threads"
    if isinstance(error, OSError) and error.errno in _ERRORS:
        return why_refused(error)
    for inner in getattr(error, "exceptions", ()):
        if (found := exhausted_resource(inner)) is not None:
            return found
    return None


@contextmanager
def exhaustion_as_session_error() -> Iterator[None]:
    """Turn errors about exhausted resources into Exhausted; let all others pass."""
    try:
        yield
    except Exception as error:
        what = exhausted_resource(error)
        if what is None:
            raise
        raise Exhausted(f"out of resources at the moment: {what}; try again later") from None
