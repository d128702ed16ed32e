"""Limit how many programs start at once on this machine, in the order in which they are wanted.

A start takes some 40 ms of a processor. When many clients of a gateway connect at the same moment, hundreds of programs
would start together: no client could work before the last one has started, and those who are at work would stand still.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from anyio.lowlevel import RunVar

from cluster_remote.transport.turns import Turns

__all__ = ["start_in_turn"]

# Seconds after which a start no longer counts: it waits for a disk, not for a processor.
_LONGEST = 1.0


_starts: RunVar[Turns] = RunVar("cluster_remote_starts")


@asynccontextmanager
async def start_in_turn() -> AsyncIterator[None]:
    """Wait for a turn to start a program, held until the program is ready. Has no deadline."""
    try:
        starts = _starts.get()
    except LookupError:
        starts = Turns(4 * (os.cpu_count() or 1), _LONGEST)
        _starts.set(starts)
    async with starts.turn():
        yield
