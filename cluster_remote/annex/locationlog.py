"""The location log: which repositories have the content of a key.

Written by git-annex itself (`setpresentkey`), for only it knows how to share the journal with others. Read from where
it lies, for `git annex whereis` asks every special remote that has the key, this program among them.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING

from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import BRANCH, journalled
from cluster_remote.annex.errors import AnnexError, BadAnswer, CommandFailed, LocationLogError
from cluster_remote.p2p.key import UUID, Key

if TYPE_CHECKING:
    from anyio.streams.buffered import BufferedByteReceiveStream

    from cluster_remote.annex.batch import BatchProcess
    from cluster_remote.annex.repository import Repository

__all__ = ["LocationLog", "recordable"]

# A location log has a line for each repository that ever had the key.
_LOG_LIMIT = 16 * 2**20
_HEADER_LIMIT = 2**17


def recordable(key: Key, uuids: Iterable[UUID], own: UUID | None) -> list[UUID]:
    """Those of `uuids` whose having `key` belongs into the location log, each once, in their order.

    Chunk keys and encrypted keys are none of the repository's keys. A cluster's presence follows from its nodes'.
    `own`, the remote's own UUID, is git-annex's to record.
    """
    if key.is_chunk or key.is_encrypted:
        return []
    return [uuid for uuid in dict.fromkeys(uuids) if not uuid.is_cluster and uuid != own]


class LocationLog:
    """The location log of one repository. Its two children are started when first needed; close it in the end.

    May be used by several tasks at once.
    """

    def __init__(self, repository: Repository, own: UUID | None = None) -> None:
        self._repository = repository
        self._own = own
        self._writer: BatchProcess | None = None
        self._reader: BatchProcess | None = None

    async def __aenter__(self) -> LocationLog:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def record(
        self, key: Key, present: Collection[UUID] = (), absent: Collection[UUID] = (), timeout: float = 30.0
    ) -> None:
        """Records who has the content of `key` now and who has not, as far as that is `recordable`.

        Returns when git-annex has confirmed each line. Raises LocationLogError where it does not.
        """
        lines = [(uuid, b"1") for uuid in recordable(key, present, self._own)]
        lines += [(uuid, b"0") for uuid in recordable(key, absent, self._own)]
        if not lines:
            return
        if any(c.isspace() for c in key.text):
            # The batch mode splits its lines at whitespace, of which Unicode has more than a key may not hold.
            await self._record_singly(key, lines, timeout)
            return
        if self._writer is None:
            self._writer = self._batch("git", "annex", "setpresentkey", "--batch", "--json", "--json-error-messages")
        questions = [b"%b %b %b" % (bytes(key), str(uuid).encode(), value) for uuid, value in lines]
        try:
            answers = await self._writer.ask_all(questions, timeout)
        except CommandFailed as e:
            raise LocationLogError(f"the location of {key} could not be recorded: {e}") from e
        for (uuid, _), answer in zip(lines, answers, strict=True):
            _confirm(key, uuid, answer)

    async def _record_singly(self, key: Key, lines: list[tuple[UUID, bytes]], timeout: float) -> None:
        for uuid, value in lines:
            argv = ("git", "annex", "setpresentkey", "--quiet", "--", str(key), str(uuid), value.decode())
            try:
                await self._repository.run(*argv, timeout=timeout)
            except CommandFailed as e:
                raise LocationLogError(f"the location of {key} could not be recorded: {e}") from e

    async def locations(self, key: Key, timeout: float = 30.0) -> frozenset[UUID]:
        """Those that have the content as far as this repository knows. A cluster is never among them.

        Nothing is known of chunk keys and encrypted keys, see `recordable`. Raises LocationLogError.
        """
        if key.is_chunk or key.is_encrypted:
            return frozenset()
        try:
            path = logformat.branch_path(key, levels=self._levels)
            # First the journal: git-annex moves what is there to the branch, never back.
            recent = journalled(self._repository.annex_dir, path)
            if self._reader is None:
                self._reader = self._batch("git", "cat-file", "--batch")
            committed = await self._reader.converse(BRANCH + b":" + path + b"\n", _read_blob, timeout)
        except AnnexError as e:
            raise LocationLogError(f"the locations of {key} could not be read: {e}") from e
        return logformat.presence(recent + committed)

    async def aclose(self) -> None:
        """Ends the children: git-annex may take up to a minute to put away what it wrote, then it is killed."""
        writer, reader = self._writer, self._reader
        try:
            if writer is not None:
                await writer.aclose()
        finally:
            if reader is not None:
                await reader.aclose()

    @cached_property
    def _levels(self) -> int:
        return 1 if self._repository.config().boolean("annex.tune.branchhash1") else 2

    def _batch(self, *argv: str) -> BatchProcess:
        from cluster_remote.annex.batch import BatchProcess

        return BatchProcess(argv, cwd=self._repository.cwd, env=self._repository.environment())


async def _read_blob(stream: BufferedByteReceiveStream) -> bytes:
    """The answer of `git cat-file --batch`; empty for a file that is not there or is damaged, as with git-annex."""
    header = await stream.receive_until(b"\n", _HEADER_LIMIT)
    if header.endswith(b" missing"):
        return b""
    try:
        _, kind, size = header.split(b" ")
        length = int(size)
    except ValueError:
        raise BadAnswer(f"answered with {header[:200]!r}") from None
    if kind != b"blob" or not 0 <= length <= _LOG_LIMIT:
        raise BadAnswer(f"answered with {header[:200]!r}, which is no log of at most {_LOG_LIMIT} bytes")
    content = await stream.receive_exactly(length)
    await stream.receive_exactly(1)
    return content


def _confirm(key: Key, uuid: UUID, answer: bytes) -> None:
    """Raises LocationLogError unless `answer` is git-annex's JSON for success."""
    try:
        said = json.loads(answer)
    except ValueError:
        said = None
    if not isinstance(said, dict) or said.get("success") is not True:
        messages = said.get("error-messages") if isinstance(said, dict) else None
        reason = " ".join(map(str, messages)) if isinstance(messages, list) else ""
        raise LocationLogError(
            f"git-annex did not record the location of {key} at {uuid}: {reason or repr(answer[:200])}"
        )
