"""The gateway's location log, for all its clients together.

What is recorded lies in the journal, where every git-annex in this repository sees it, but not whoever fetches the
git-annex branch. Mostly the next git-annex command commits it. A gateway's repository may not see one for months, so
the gateway has it committed itself, whenever there is a moment's rest.
"""

from __future__ import annotations

from collections.abc import Callable, Collection

import anyio

from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID, Key

__all__ = ["SharedLog"]

# Seconds without anything to record that count as a rest, and how long the branch may lag behind when there is none.
_REST, _LONGEST_LAG = 1.0, 30.0


class SharedLog:
    """Reads and records locations for any number of sessions at once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._log = LocationLog(repository)
        self._uncommitted = False
        self._committing = anyio.Lock()
        self._recorded = anyio.Event()

    async def locations(self, key: Key) -> frozenset[UUID]:
        """See LocationLog."""
        return await self._log.locations(key)

    def expect(self) -> None:
        """See LocationLog."""
        self._log.expect()

    async def record(self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = ()) -> None:
        """See LocationLog."""
        try:
            await self._log.record(key, present, absent)
        finally:
            self._uncommitted = True
            self._recorded.set()

    async def commit(self) -> None:
        """Brings what has been recorded so far into the git-annex branch. Raises CommandFailed."""
        # Also waits for a commit that is under way: it has what was recorded before.
        async with self._committing:
            if self._uncommitted:
                self._uncommitted = False
                try:
                    await refresh(self._repository)
                except BaseException:
                    self._uncommitted = True
                    raise

    async def commit_in_time(self, note: Callable[[str], None]) -> None:
        """Commits whenever there is a rest, until it is cancelled. `note` is told in words what went wrong."""
        while True:
            await self._recorded.wait()
            with anyio.move_on_after(_LONGEST_LAG):
                while self._recorded.is_set():
                    self._recorded = anyio.Event()
                    await anyio.sleep(_REST)
            try:
                await self.commit()
            except AnnexError as error:
                note(f"what was recorded could not be committed: {error}")

    async def aclose(self) -> None:
        """Commits, and ends the children. Bounded in time. Raises CommandFailed where it could not commit."""
        try:
            await self.commit()
        finally:
            await self._log.aclose()
