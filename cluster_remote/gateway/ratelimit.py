"""A log that cannot be flooded: writes the first few events of a kind per minute, and counts the others."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import anyio

__all__ = ["RateLimitedLog"]

_WINDOW = 60.0
_LINES = 10


class RateLimitedLog:
    """Writes lines with `log`: at most `lines` of a kind within `window` seconds, then how many more there were."""

    def __init__(self, log: Callable[[str], None], lines: int = _LINES, window: float = _WINDOW) -> None:
        self._log = log
        self._lines = lines
        self._window = window
        self._began = time.monotonic()
        self._seen: Counter[str] = Counter()
        self._most: dict[str, int] = {}

    def say(self, kind: str, line: str, lines: int | None = None) -> None:
        """Write a line, unless there were too many of its kind; `lines` is another limit for this kind.

        `kind` is a plural noun: "rejected connections".
        """
        if time.monotonic() - self._began >= self._window:
            self.sum_up()
        self._seen[kind] += 1
        self._most[kind] = self._lines if lines is None else lines
        if self._seen[kind] <= self._most[kind]:
            self._log(line)

    def sum_up(self) -> None:
        """Write how many lines were suppressed, and begin a new window."""
        for kind, number in self._seen.items():
            if number > self._most[kind]:
                self._log(f"{number - self._most[kind]} more {kind} in {time.monotonic() - self._began:.0f} s")
        self._seen.clear()
        self._most.clear()
        self._began = time.monotonic()

    async def sum_up_regularly(self) -> None:
        """Sum up at the end of each window, until cancelled."""
        while True:
            await anyio.sleep(self._window)
            self.sum_up()
