"""Let only a few tasks work at once, in the order in which they came, so that all wait about equally long."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

__all__ = ["Turn", "Turns"]


class Turns:
    """`most` turns, each of which counts for `longest` seconds at most.

    A task that takes longer waits for a disk or a peer, not for a processor, so it does not keep others waiting.
    """

    def __init__(self, most: int, longest: float) -> None:
        self._most = most
        self._longest = longest
        # Since when each counts.
        self._running: dict[Turn, float] = {}
        # Those that have not ended, but do not count any more.
        self._overdue: set[Turn] = set()
        self._last = anyio.Event()
        self._last.set()
        self._ended = anyio.Event()

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[Turn]:
        """Wait for a turn, and hold it. Has no deadline."""
        before, mine = self._last, anyio.Event()
        self._last = mine
        turn = Turn(self)
        try:
            await before.wait()
            while len(self._running) >= self._most:
                oldest = min(self._running, key=self._running.__getitem__)
                left = self._running[oldest] + self._counted_for() - time.monotonic()
                if left <= 0:
                    del self._running[oldest]
                    self._overdue.add(oldest)
                    continue
                with anyio.move_on_after(left):
                    await self._ended.wait()
            turn.resume()
        finally:
            mine.set()
        try:
            yield turn
        finally:
            turn.rest()

    def _counted_for(self) -> float:
        """Return for how many seconds a turn counts: the less, the more tasks wait for something else already.

        If all wait for a disk or a peer that hangs, a long queue would otherwise take as long as its length.
        """
        return self._longest / (1 + len(self._overdue) / self._most)

    def count(self, turn: Turn) -> None:
        """Count a turn from now on."""
        self._overdue.discard(turn)
        self._running[turn] = time.monotonic()

    def discount(self, turn: Turn) -> None:
        """Stop counting a turn, if it still counts."""
        self._overdue.discard(turn)
        if self._running.pop(turn, None) is not None:
            ended, self._ended = self._ended, anyio.Event()
            ended.set()


class Turn:
    """One task's turn."""

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def rest(self) -> None:
        """Let others work while this task waits for its client."""
        self._turns.discount(self)

    def resume(self) -> None:
        """Go on after a rest, before all those who have not begun."""
        self._turns.count(self)
