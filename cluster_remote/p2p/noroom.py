"""Handle exhausted resources: descriptors, processes, memory.

Running out must only fail one request, with a clear error. Any call can raise such an error, also within a
group of exceptions.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from cluster_remote.p2p.errors import SessionError

__all__ = ["NoRoom", "no_room_is_a_session_error", "out_of_room"]

_ERRORS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EAGAIN})


class NoRoom(SessionError):
    """This machine lacks the resources for a request at the moment."""


def out_of_room(error: BaseException) -> str | None:
    """Return which resource ran out, if an error or one in its group says so; otherwise None."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, RuntimeError) and "start new thread" in str(error):
        return "no more threads"
    if isinstance(error, OSError) and error.errno in _ERRORS:
        return error.strerror or str(error)
    for inner in getattr(error, "exceptions", ()):
        if (found := out_of_room(inner)) is not None:
            return found
    return None


@contextmanager
def no_room_is_a_session_error() -> Iterator[None]:
    """Turn errors about exhausted resources into NoRoom; let all others pass."""
    try:
        yield
    except Exception as error:
        what = out_of_room(error)
        if what is None:
            raise
        raise NoRoom(f"out of resources at the moment: {what}; try again later") from None
