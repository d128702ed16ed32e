"""Look at a directory without waiting for ever: a call to a disk that hangs cannot be cancelled."""

from __future__ import annotations

import threading

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    T = TypeVar("T")

__all__ = ["look"]

# The looks that still wait for their disk, by its directory.
_waiting: dict[str, threading.Thread] = {}


def look(place: str, ask: Callable[[], T], seconds: float) -> T | None:
    """Return what `ask` finds out about a directory; None if its disk does not answer within some seconds.

    While a disk hangs, only the first caller waits for it. The thread is a daemon, so that the program can end.
    """
    before = _waiting.get(place)
    if before is not None and before.is_alive():
        return None
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(ask()), daemon=True, name=f"look at {place}")
    thread.start()
    thread.join(seconds)
    if not found:
        _waiting[place] = thread
        return None
    return found[0]
