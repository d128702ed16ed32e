"""Where the two worlds meet: git-annex waits for answers, the sessions live in an event loop.

The loop runs in a thread of its own, also while git-annex has nothing to ask. It starts with the first request that
needs it, since most runs of the program (LISTCONFIGS, GETCOST) do not.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = ["EventLoop"]

P = ParamSpec("P")
T = TypeVar("T")


class EventLoop:
    """Runs coroutines for threads that wait for them."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._starting = threading.Lock()

    def run(self, function: Callable[..., Awaitable[T]], *arguments: object) -> T:
        """Runs an async function to its end; its exceptions are raised here."""
        with self._starting:
            if self._portal is None:
                from anyio.from_thread import start_blocking_portal

                self._context = start_blocking_portal("asyncio")
                self._portal = self._context.__enter__()
        return self._portal.call(function, *arguments)

    def close(self) -> None:
        """Ends the loop, and everything in it that has not been ended."""
        if self._context is not None:
            context, self._context, self._portal = self._context, None, None
            context.__exit__(None, None, None)
