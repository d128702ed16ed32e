"""Measure how fast a server or node answers."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from cluster_remote.p2p.key import Key

if TYPE_CHECKING:
    from cluster_remote.p2p.session import Session

__all__ = ["ABSENT_KEY", "round_trips"]

ABSENT_KEY = Key("SHA256-s1--0000000000000000000000000000000000000000000000000000000000000000")
"""A key without content: a gateway answers for it from its location log, without waiting for a dead node."""

_ROUND_TRIPS = 3


async def round_trips(session: Session) -> AsyncIterator[float]:
    """Yield the seconds that each of three requests takes; the fastest is the least disturbed. Raises SessionError."""
    for _ in range(_ROUND_TRIPS):
        before = time.perf_counter()
        await session.check_present(ABSENT_KEY)
        yield time.perf_counter() - before
