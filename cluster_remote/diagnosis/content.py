"""Read the nodes' copies and verify their checksums."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import anyio

from cluster_remote.annex import child
from cluster_remote.annex.disk import ask_disk
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.private import make_private_directory
from cluster_remote.annex.repository import Repository, foreign_environment
from cluster_remote.cluster.node import Node
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key, encode
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.text import printable
from cluster_remote.transport.trust import Refusal, check_directory

__all__ = ["Options", "Read", "Reader", "Verified", "move_aside"]

# Seconds for git-annex to verify one content in its own repository and move it aside.
_FSCK = 3600.0

Read: TypeAlias = Callable[[Node, str], None]
"""Called with a node and a note on the progress there."""


@dataclass(frozen=True)
class Options:
    """What a check does besides asking."""

    fix: bool = False
    content: bool = False
    resume: bool = False
    move_aside: bool = False
    jobs: int = 2


class Verified:
    """The copies whose checksums have been verified, kept in a file so that an interrupted check can resume."""

    def __init__(self, repository: Repository, cluster: UUID, *, resume: bool) -> None:
        self._path = repository.common_dir / "cluster-remote" / "verified" / cluster.text
        make_private_directory(self._path.parent)
        self._known: set[bytes] = set()
        if resume and self._path.exists():
            self._known = set(self._path.read_bytes().split(b"\n"))
        self._file = self._path.open("ab" if resume else "wb", buffering=0)

    def __contains__(self, copy: tuple[UUID, Key]) -> bool:
        return self._line(*copy) in self._known

    def add(self, node: UUID, key: Key) -> None:
        """Write a copy to the file immediately."""
        self._file.write(self._line(node, key) + b"\n")

    @staticmethod
    def _line(node: UUID, key: Key) -> bytes:
        return encode(node.text) + b" " + bytes(key)

    def close(self) -> None:
        self._file.close()

    def finish(self) -> None:
        """Delete the file, so that the next check reads everything again."""
        self._path.unlink(missing_ok=True)


class Reader:
    """Reads copies on several nodes at once, with up to `jobs` sessions each. Close it at the end."""

    def __init__(self, nodes: Sequence[Node], jobs: int, verified: Verified, tell: Read) -> None:
        self._nodes = {node.uuid: node for node in nodes}
        self._jobs = jobs
        self._verified = verified
        self._tell = tell
        self._sessions: dict[tuple[UUID, int], Session] = {}
        self.copies = self.size = self.unverifiable = 0
        self.unread: Counter[UUID] = Counter()
        self.errors: dict[UUID, str] = {}

    async def aclose(self) -> None:
        for session in self._sessions.values():
            await session.aclose()

    async def damaged(self, copies: Mapping[UUID, Sequence[Key]]) -> set[tuple[UUID, Key]]:
        """Return which of these copies, by node, are damaged. Unreadable ones are counted in `unread`."""
        found: set[tuple[UUID, Key]] = set()
        async with anyio.create_task_group() as tasks:
            for uuid, keys in copies.items():
                left = [key for key in keys if (uuid, key) not in self._verified]
                for job in range(min(self._jobs, len(left))):
                    tasks.start_soon(self._work, uuid, job, left, found)
        return found

    async def _work(self, uuid: UUID, job: int, left: list[Key], found: set[tuple[UUID, Key]]) -> None:
        while left:
            key = left.pop()
            if Checksum.of(key) is None:
                self.unverifiable += 1
                continue
            if (uuid, job) not in self._sessions:
                self._sessions[uuid, job] = self._nodes[uuid].session()
            try:
                right = await self._is_right(self._sessions[uuid, job], key)
            except SessionError as failure:
                self.unread[uuid] += 1
                self.errors.setdefault(uuid, printable(str(failure)))
                continue
            self.copies += 1
            if right:
                self._verified.add(uuid, key)
            else:
                found.add((uuid, key))
            self._tell(self._nodes[uuid], f"{self.copies:,} copies read")

    async def _is_right(self, session: Session, key: Key) -> bool:
        checksum = Checksum.of(key)
        assert checksum is not None
        async with AsyncExitStack() as stack:
            download = await stack.enter_async_context(session.download(key, AssociatedFile(), 0))
            length = download.length
            async for chunk in download.chunks():
                self.size += len(chunk)
                checksum.update(chunk)
            confirmed = await download.valid()
        # Content removed meanwhile looks like empty content that the node does not confirm.
        if not length and not confirmed and not await session.check_present(key):
            return True
        return checksum.matches()


async def move_aside(directory: Path, here: Repository | None, keys: Collection[Key]) -> None:
    """Have git-annex verify contents in the repository at a path; it moves damaged ones to .git/annex/bad.

    This respects git-annex's locks, and makes that repository record that it no longer has them. Does nothing in a
    repository that is not trusted from `here`.
    """
    environment = foreign_environment()
    try:
        await ask_disk(check_directory, str(directory), here, environment)
    except Refusal:
        return
    for key in keys:
        command = ("git", "-C", str(directory), "annex", "fsck", "--quiet", f"--key={key}")
        # Its exit code only says that something was damaged, which is known.
        with suppress(CommandFailed):
            await child.run(command, env=environment, timeout=_FSCK, accept=None)
