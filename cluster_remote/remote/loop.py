"""Where the two worlds meet: git-annex waits for answers, the sessions live in an event loop.

The loop runs in a thread of its own, also while git-annex has nothing to ask. It starts with the first request that
needs it, since most runs of the program (LISTCONFIGS, GETCOST) do not.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

__all__ = ["EventLoop"]

T = TypeVar("T")

# Seconds.
_NOW_AND_THEN = 0.5


class EventLoop:
    """Runs coroutines for threads that wait for them."""

    def __init__(self) -> None:
        self._context: AbstractContextManager[BlockingPortal] | None = None
        self._portal: BlockingPortal | None = None
        self._starting = threading.Lock()

    def run(
        self, function: Callable[..., Awaitable[T]], *arguments: object, now_and_then: Callable[[], None] | None = None
    ) -> T:
        """Runs an async function to its end; its exceptions are raised here.

        Meanwhile `now_and_then` is called in this thread, every half second.
        """
        from concurrent.futures import wait

        with self._starting:
            if self._portal is None:
                from anyio.from_thread import start_blocking_portal

                self._context = start_blocking_portal("asyncio")
                self._portal = self._context.__enter__()
        future = self._portal.start_task_soon(function, *arguments)
        while now_and_then is not None and not wait([future], _NOW_AND_THEN).done:
            now_and_then()
        return future.result()

    def close(self) -> None:
        """Ends the loop, and everything in it that has not been ended."""
        if self._context is not None:
            context, self._context, self._portal = self._context, None, None
            context.__exit__(None, None, None)
