"""The gateway's location log, shared by all its clients.

New records go to the journal: every git-annex in this repository sees them, but a fetch of the git-annex branch does
not. Usually the next git-annex command commits them. A gateway's repository may not run one for months, so the gateway
commits them itself whenever no new ones have come for a moment.
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

# Seconds without new records before a commit, and the longest delay when there is no such pause.
_REST, _LONGEST_LAG = 1.0, 30.0


class SharedLog:
    """Reads and records locations for any number of sessions at once."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._log = LocationLog(repository)
        # The number of records.
        self._uncommitted = 0
        self._committing = anyio.Lock()
        self._recorded = anyio.Event()
        # The number of all records, and at how many to wake `wait_for`.
        self._all, self._wanted = 0, 0
        self._enough = anyio.Event()

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
            self._uncommitted += 1
            self._recorded.set()
            self._all += 1
            if self._all >= self._wanted:
                self._enough.set()

    async def commit(self) -> None:
        """Commit what was recorded so far to the git-annex branch. Raises CommandFailed."""
        # The lock also makes a caller wait for a running commit, which includes its records.
        async with self._committing:
            if self._uncommitted:
                committing, self._uncommitted = self._uncommitted, 0
                try:
                    await refresh(self._repository)
                except BaseException:
                    self._uncommitted += committing
                    raise

    async def commit_in_time(self, note: Callable[[str], None]) -> None:
        """Commit during pauses, until cancelled. `note` gets error messages."""
        while True:
            await self._recorded.wait()
            with anyio.move_on_after(_LONGEST_LAG):
                while self._recorded.is_set():
                    self._recorded = anyio.Event()
                    await anyio.sleep(_REST)
            try:
                await self.commit()
            except AnnexError as error:
                note(f"cannot commit the location log: {error}")
                await anyio.sleep(_REST)

    async def wait_for(self, records: int) -> None:
        """Wait for so many more records."""
        self._wanted, self._enough = self._all + records, anyio.Event()
        await self._enough.wait()

    async def aclose(self) -> None:
        """Commit, and end the child processes, in bounded time. Raises CommandFailed if the commit fails."""
        try:
            await self.commit()
        finally:
            await self._log.aclose()
