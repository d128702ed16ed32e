"""A log that cannot be flooded: writes the first few events of a kind per minute, and counts the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import anyio

__all__ = ["RateLimitedLog"]

# Seconds of a window, and the lines of a kind within it.
_WINDOW, _LINES = 60.0, 10


class RateLimitedLog:
    """Writes lines with `log`: at most so many of a kind within a minute, then how many more there were."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log
        self._began = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._suppressed: Counter[str] = Counter()

    def say(self, kind: str, line: str, lines: int = _LINES) -> None:
        """Write a line, unless there were `lines` of its kind already. `kind` is a plural: "rejected connections"."""
        if time.monotonic() - self._began >= _WINDOW:
            self.sum_up()
        self._seen[kind] += 1
        if self._seen[kind] <= lines:
            self._log(line)
        else:
            self._suppressed[kind] += 1

    def sum_up(self) -> None:
        """Write how many lines were suppressed, and begin a new window."""
        for kind, number in self._suppressed.items():
            self._log(f"{number} more {kind} in {time.monotonic() - self._began:.0f} s")
        self._seen.clear()
        self._suppressed.clear()
        self._began = time.monotonic()

    async def sum_up_regularly(self) -> None:
        """Sum up at the end of each window, until cancelled."""
        while True:
            await anyio.sleep(_WINDOW)
            self.sum_up()
