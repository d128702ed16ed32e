"""Wrap sessions with nodes to apply the user's git-annex settings for a remote.

Each wrapper is a session itself, so wrappers nest, and callers do not notice. The settings are those of git-annex(1),
`remote.<name>.*`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import anyio

from cluster_remote.annex.disk import ask_disk
from cluster_remote.annex.objects import Objects
from cluster_remote.annex.waiting import ask_disk_and_wait
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Refused, SessionError, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    Stored,
    Upload,
)
from cluster_remote.transport.mountcheck import is_local

__all__ = [
    "DirectChecks",
    "Failover",
    "InMemory",
    "LocalReads",
    "Serialised",
    "Wrapper",
    "uses_pidlock",
]

T = TypeVar("T")

# The largest content to read as a whole, in bytes.
_SMALL = 1024 * 1024
# Seconds for reading a repository's configuration, which blocks everything else.
_CONFIG = 0.5


class Wrapper(Session):
    """Forward every request to the session inside."""

    def __init__(self, inside: Session) -> None:
        self.inside = inside
        self.pipelines_checks = inside.pipelines_checks

    @property
    def name(self) -> str:
        return self.inside.name

    @property
    def version(self) -> int | None:
        return self.inside.version

    async def _before(self) -> None:
        """Prepare for the first request. Raises SessionError."""

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Session]:
        """Wrap a request about a key, and yield the session inside. Raises SessionError."""
        await self._before()
        yield self.inside

    async def open(self) -> UUID:
        await self._before()
        return await self.inside.open()

    async def check_present(self, key: Key) -> bool:
        async with self._use() as inside:
            return await inside.check_present(key)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        async with self._use() as inside:
            return await inside.check_all(keys)

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self._use() as inside, inside.upload(key, file) as offer:
            yield offer

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        async with self._use() as inside:
            return await inside.store(key, file, source, progress)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self._use() as inside, inside.download(key, file, offset) as download:
            yield download

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        async with self._use() as inside:
            return await inside.remove(key, before)

    async def timestamp(self) -> int:
        await self._before()
        return await self.inside.timestamp()

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        async with self._use() as inside, inside.lock(key) as locked:
            yield locked

    async def aclose(self) -> None:
        await self.inside.aclose()


# A node behind git-annex's own proxy


class DirectChecks(Wrapper):
    """Check many keys with the node itself; all other requests go through its proxy.

    The proxy slows down many checks. Changes must go through it, since it updates the log.
    """

    def __init__(self, inside: Session, direct: Callable[[], Session]) -> None:
        """`direct` creates a session with the node itself, or raises ValueError."""
        super().__init__(inside)
        self.pipelines_checks = True
        self._make = direct
        self._direct: Session | None = None

    async def check_present(self, key: Key) -> bool:
        # A caller that checks a single key is likely to transfer it next.
        return await (self._direct or self.inside).check_present(key)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        if self._direct is None:
            try:
                self._direct = self._make()
            except ValueError as error:
                raise Unreachable(str(error)) from None
        return await self._direct.check_all(keys)

    async def aclose(self) -> None:
        direct, self._direct = self._direct, None
        if direct is not None:
            await direct.aclose()
        await super().aclose()


# A node on a local disk


class LocalReads(Wrapper):
    """Read small contents straight from the node's directory, as git-annex does with a remote on a local disk.

    Only after git-annex-shell has answered there: then it is the right repository, and the user trusts it.
    """

    def __init__(self, inside: Session, directory: str) -> None:
        super().__init__(inside)
        self._directory = directory
        self._objects = Objects(directory)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        content = await self.read_small(key)
        if content is None or offset > len(content):
            async with super().download(key, file, offset) as download:
                yield download
        else:
            yield InMemory(memoryview(content)[offset:])

    async def read_small(self, key: Key) -> bytes | None:
        # Without a checksum, damage would go unnoticed; and only a local disk cannot block us for long.
        size = key.content_size
        # Asking a disk takes a thread, so first rule out all that is known.
        if size is None or size > _SMALL or self.inside.version is None or not self._is_local:
            return None
        checksum = Checksum.of(key)
        if checksum is None:
            return None
        return await ask_disk(self._verified, key, checksum)

    def _verified(self, key: Key, checksum: Checksum) -> bytes | None:
        content = self._objects.read(key, _SMALL)
        if content is None:
            return None
        checksum.update(content)
        return content if checksum.matches() else None

    @cached_property
    def _is_local(self) -> bool:
        return is_local(self._directory)


class InMemory(Download):
    """Content that has been read and verified."""

    def __init__(self, content: memoryview, origin: UUID | None = None) -> None:
        self.length = len(content)
        self._content = content
        self._origin = origin

    @property
    def origin(self) -> UUID | None:
        return self._origin

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        content, self._content = self._content, memoryview(b"")
        if content:
            yield content

    async def valid(self) -> bool:
        return True


# annex.pidlock


class Serialised(Wrapper):
    """Run one request at a time on a repository whose git-annex uses one lock for everything."""

    def __init__(self, inside: Session, lock: anyio.Lock) -> None:
        super().__init__(inside)
        self._lock = lock

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Session]:
        async with self._lock, super()._use() as inside:
            yield inside


def uses_pidlock(directory: Path) -> bool:
    """Return whether git-annex uses one lock for everything in a repository on this machine (annex.pidlock).

    False if the disk does not answer; the session will report that.
    """
    return bool(ask_disk_and_wait(str(directory), partial(_configures_pidlock, directory), _CONFIG))


def _configures_pidlock(directory: Path) -> bool:
    for file in (directory / ".git" / "config", directory / "config"):
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        return any(line.strip().replace(" ", "").lower() in ("pidlock=true", "pidlock") for line in text.splitlines())
    return False


# Several remotes for one repository


class Failover(Session):
    """One repository through several remotes: use the cheapest reachable one, as long as it is reachable."""

    def __init__(self, factories: Sequence[Callable[[], Session]]) -> None:
        """`factories` create sessions, the cheapest first; there is at least one."""
        self._factories = factories
        self._sessions: list[Session | None] = [None] * len(factories)
        self._current = 0

    def _session(self, index: int) -> Session:
        session = self._sessions[index]
        if session is None:
            session = self._sessions[index] = self._factories[index]()
        return session

    @property
    def name(self) -> str:
        return self._session(self._current).name

    @property
    def version(self) -> int | None:
        return self._session(self._current).version

    async def _connected(self) -> Session:
        """Return a connected session. Raises the error of the first attempt if all fail."""
        count = len(self._factories)
        failure: SessionError | None = None
        for index in [self._current, *(each for each in range(count) if each != self._current)]:
            try:
                session = self._session(index)
                await session.open()
            except Unreachable as error:
                failure = failure or error
            except ValueError as error:
                failure = failure or Unreachable(str(error))
            else:
                self._current = index
                return session
        assert failure is not None
        raise failure

    async def _ask(self, request: Callable[[Session], Awaitable[T]]) -> T:
        return await request(await self._connected())

    async def open(self) -> UUID:
        return await self._ask(lambda session: session.open())

    async def check_present(self, key: Key) -> bool:
        return await self._ask(lambda session: session.check_present(key))

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        return await self._ask(lambda session: session.check_all(keys))

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        return await self._ask(lambda session: session.remove(key, before))

    async def timestamp(self) -> int:
        return await self._ask(lambda session: session.timestamp())

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        return await self._ask(lambda session: session.store(key, file, source, progress))

    @asynccontextmanager
    async def _within(self, request: Callable[[Session], AbstractAsyncContextManager[T]]) -> AsyncIterator[T]:
        async with AsyncExitStack() as stack:
            yield await stack.enter_async_context(request(await self._connected()))

    def upload(self, key: Key, file: AssociatedFile) -> AbstractAsyncContextManager[Present | Upload]:
        return self._within(lambda session: session.upload(key, file))

    def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AbstractAsyncContextManager[Download]:
        return self._within(lambda session: session.download(key, file, offset))

    def lock(self, key: Key) -> AbstractAsyncContextManager[bool]:
        return self._within(lambda session: session.lock(key))

    async def aclose(self) -> None:
        for session in self._sessions:
            if session is not None:
                await session.aclose()
