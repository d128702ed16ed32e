"""Limit how many programs start at once on this machine, in the order in which they are wanted.

A start takes some 40 ms of a processor. When many clients of a gateway connect at the same moment, hundreds of programs
would start together: no client could work before the last one has started, and those who are at work would stand still.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
from anyio.lowlevel import RunVar

__all__ = ["start_in_turn"]

# Seconds after which a start no longer counts: it waits for a disk, not for a processor.
_LONGEST = 1.0


class _Starts:
    """The starts of one event loop."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._running: dict[object, float] = {}
        self._last = anyio.Event()
        self._last.set()
        self._ended = anyio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        before, mine = self._last, anyio.Event()
        self._last = mine
        start = object()
        try:
            await before.wait()
            while len(self._running) >= self._most:
                oldest = min(self._running, key=self._running.__getitem__)
                with anyio.move_on_after(self._running[oldest] + _LONGEST - time.monotonic()):
                    await self._ended.wait()
                    continue
                self._running.pop(oldest, None)
            self._running[start] = time.monotonic()
        finally:
            mine.set()
        try:
            yield
        finally:
            self._running.pop(start, None)
            ended, self._ended = self._ended, anyio.Event()
            ended.set()


_starts: RunVar[_Starts] = RunVar("cluster_remote_starts")


@asynccontextmanager
async def start_in_turn() -> AsyncIterator[None]:
    """Wait for a turn to start a program, held until the program is ready. Has no deadline."""
    try:
        starts = _starts.get()
    except LookupError:
        starts = _Starts(4 * (os.cpu_count() or 1))
        _starts.set(starts)
    async with starts.turn():
        yield
