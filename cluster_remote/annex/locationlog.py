"""Read and update the location log, which says which repositories have the content of a key.

Updates go through git-annex (`setpresentkey`), because only it can share the journal safely. Reads are direct, because
`git annex whereis` queries every special remote that has the key, including this program.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable
from types import TracebackType
from typing import TYPE_CHECKING

from cluster_remote.annex.batch import BatchProcess
from cluster_remote.annex.errors import AnnexError, CommandFailed, LocationLogError
from cluster_remote.annex.locations import LocationReader
from cluster_remote.p2p.key import UUID, Key

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["LocationLog", "recordable"]


def recordable(key: Key, uuids: Iterable[UUID], own: UUID | None) -> list[UUID]:
    """Return the `uuids` whose copies of `key` may be recorded in the location log, in order, without duplicates.

    Chunk keys and encrypted keys are not keys of the repository. A cluster's presence follows from its nodes'.
    git-annex itself records `own`, the remote's own UUID.
    """
    if key.is_chunk or key.is_encrypted:
        return []
    return [uuid for uuid in dict.fromkeys(uuids) if not uuid.is_cluster and uuid != own]


class LocationLog:
    """The location log of one repository. Its two children start when first needed; close it after use.

    May be used by several tasks at once.
    """

    def __init__(self, repository: Repository, own: UUID | None = None, *, locked: bool = False) -> None:
        """`locked`: git-annex, which waits for this program, holds its single lock for everything (annex.pidlock)."""
        self._repository = repository
        self._locked = locked
        self._own = own
        self._writer: BatchProcess | None = None
        self._reader: LocationReader | None = None

    async def __aenter__(self) -> LocationLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    def expect(self) -> None:
        """Start the writing child in advance, because that takes some 40 ms."""
        try:
            self._get_writer().start()
        except CommandFailed:
            # The first write will report it.
            return

    async def record(
        self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = (), timeout: float = 30.0
    ) -> None:
        """Record which repositories have the content of `key` and which do not, if it is `recordable`.

        Returns once git-annex has confirmed each line. Raises LocationLogError if it does not.
        """
        lines = [(uuid, b"1") for uuid in recordable(key, present, self._own)]
        lines += [(uuid, b"0") for uuid in recordable(key, absent, self._own)]
        if not lines:
            return
        if any(c.isspace() for c in key.text):
            # Batch mode splits lines at any Unicode whitespace, some of which is allowed in keys.
            await self._record_singly(key, lines, timeout)
            return
        writer = self._get_writer()
        questions = [b"%b %b %b" % (bytes(key), str(uuid).encode(), value) for uuid, value in lines]
        try:
            answers = await writer.ask_all(questions, timeout)
        except CommandFailed as e:
            raise LocationLogError(f"the location of {key} could not be recorded: {e}") from e
        for (uuid, _), answer in zip(lines, answers, strict=True):
            _confirm(key, uuid, answer)

    async def _record_singly(self, key: Key, lines: list[tuple[UUID, bytes]], timeout: float) -> None:
        for uuid, value in lines:
            argv = ("git", "annex", "setpresentkey", "--quiet", "--", str(key), str(uuid), value.decode())
            try:
                await self._repository.run(*argv, timeout=timeout, env=self._lock_variables())
            except CommandFailed as e:
                raise LocationLogError(f"the location of {key} could not be recorded: {e}") from e

    async def locations(self, key: Key, timeout: float = 30.0) -> frozenset[UUID]:
        """Return the repositories known to have the content, never a cluster. Raises LocationLogError.

        Always empty for chunk keys and encrypted keys, see `recordable`.
        """
        if key.is_chunk or key.is_encrypted:
            return frozenset()
        try:
            if self._reader is None:
                self._reader = LocationReader(self._repository)
            [found] = await self._reader.read([key], timeout)
        except AnnexError as e:
            raise LocationLogError(f"the locations of {key} could not be read: {e}") from e
        return found.holders

    async def aclose(self) -> None:
        """End the children. git-annex gets up to a minute to commit what was recorded, then it is killed."""
        writer, reader = self._writer, self._reader
        try:
            if writer is not None:
                await writer.aclose()
        finally:
            if reader is not None:
                await reader.aclose()

    def _get_writer(self) -> BatchProcess:
        if self._writer is None:
            argv = ("git", "annex", "setpresentkey", "--batch", "--json", "--json-error-messages")
            here = self._repository
            self._writer = BatchProcess(argv, cwd=here.cwd, env=here.environment() | self._lock_variables())
        return self._writer

    def _lock_variables(self) -> dict[str, str]:
        """Return the variables that tell our children that git-annex already holds its single lock.

        Without them, a child would wait for that lock in vain. git-annex sets them for its own children (observed with
        git-annex 10.20261026).
        """
        if not self._locked:
            return {}
        paths = {self._repository.annex_dir / "pidlock", (self._repository.annex_dir / "pidlock").resolve()}
        return {f"PIDLOCK_{re.sub('[^A-Za-z0-9_]', '', str(path))}": "1" for path in paths}


def _confirm(key: Key, uuid: UUID, answer: bytes) -> None:
    """Raise LocationLogError unless `answer` is git-annex's JSON for success."""
    try:
        parsed = json.loads(answer)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict) or parsed.get("success") is not True:
        messages = parsed.get("error-messages") if isinstance(parsed, dict) else None
        reason = " ".join(map(str, messages)) if isinstance(messages, list) else ""
        raise LocationLogError(
            f"git-annex did not record the location of {key} at {uuid}: {reason or repr(answer[:200])}"
        )
