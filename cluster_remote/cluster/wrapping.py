"""Sessions around sessions, which apply the user's git-annex settings for a remote to a node.

Each is a session itself, so they can be nested, and callers don't notice. The settings are those of git-annex(1),
`remote.<name>.*`.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TypeVar

import anyio

from cluster_remote.annex.disk import ask_disk
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.looking import look
from cluster_remote.annex.objects import Objects
from cluster_remote.annex.repository import Repository
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
    SourceReading,
    Stored,
    Upload,
)
from cluster_remote.transport.mountcheck import is_local

__all__ = [
    "AskedDirectly",
    "AtHand",
    "Commands",
    "FirstThatAnswers",
    "OneAtATime",
    "Rates",
    "Started",
    "Throttled",
    "pidlocked",
]

T = TypeVar("T")

# The largest content, in bytes, that is read at once.
_SMALL = 1024 * 1024
# Seconds for a start or stop command; waking up a machine takes a while.
_COMMAND = 300.0
# Seconds for a repository's configuration to be read; nothing else happens meanwhile.
_AT_ONCE = 0.5


class _Around(Session):
    """Forwards everything to the session inside."""

    def __init__(self, inside: Session) -> None:
        self.inside = inside
        self.asks_ahead = inside.asks_ahead

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
        """Open while a request about a content is answered; gives the session inside. Raises SessionError."""
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


class AskedDirectly(_Around):
    """Asks a node directly whether it has many contents; everything else goes through its proxy.

    The proxy slows down many questions. Changes go through it, since it keeps the log.
    """

    def __init__(self, inside: Session, direct: Callable[[], Session]) -> None:
        """`direct` creates a session with the node. Raises ValueError."""
        super().__init__(inside)
        self.asks_ahead = True
        self._make = direct
        self._direct: Session | None = None

    async def check_present(self, key: Key) -> bool:
        # A caller that asks about a single key is likely to transfer it next.
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


class AtHand(_Around):
    """Reads small contents from the node's directory, as git-annex does with a remote on a local disk.

    Only once git-annex-shell has been started there: then it is the right repository, and the user trusts it.
    """

    def __init__(self, inside: Session, directory: str) -> None:
        super().__init__(inside)
        self._directory = directory
        self._objects = Objects(directory)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        content = await self._read(key)
        if content is None or offset > len(content):
            async with super().download(key, file, offset) as download:
                yield download
        else:
            yield _InMemory(memoryview(content)[offset:])

    async def _read(self, key: Key) -> bytes | None:
        # Only what has a checksum, and where git-annex-shell, too, would only wait for a disk and not for a server.
        checksum = Checksum.of(key)
        if checksum is None or self.inside.version is None or not self._is_local:
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


class _InMemory(Download):
    """A content that has been read and verified."""

    def __init__(self, content: memoryview) -> None:
        self.length = len(content)
        self._content = content

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        content, self._content = self._content, memoryview(b"")
        if content:
            yield content

    async def valid(self) -> bool:
        return True


# annex-start-command, annex-stop-command


@dataclass
class Commands:
    """The commands to run before a remote is used, and after its last use. Shared by all sessions with it.

    As in git-annex (observed with 10.20261026), the start command runs once per process, regardless of other users of
    the remote, and the stop command in the last process, which the lock file determines.
    """

    repository: Repository
    uuid: UUID
    start: str | None
    stop: str | None
    _users: int = 0
    _descriptor: int | None = None
    _starting: anyio.Lock = field(default_factory=anyio.Lock)

    async def begin(self) -> None:
        """Run the start command on first use. Raises Unreachable if the lock file cannot be created."""
        async with self._starting:
            self._users += 1
            if self._descriptor is None:
                self._descriptor = self._locked()
                await self._run(self.start)

    async def end(self) -> None:
        """Run the stop command after the last use, here and in other processes."""
        async with self._starting:
            self._users -= 1
            if self._users or self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                await self._run(self.stop)
            except OSError:
                # Another process still uses the remote, and will stop it.
                pass
            finally:
                os.close(descriptor)

    def _locked(self) -> int:
        file = self.repository.annex_dir / "remotes" / f"{self.uuid}.lck"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Unreachable(f"cannot open {file}: {error.strerror}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            # Another process is running the stop command. The start command, which comes next, may run at any time.
            pass
        return descriptor

    async def _run(self, command: str | None) -> None:
        if command is not None:
            try:
                # As in git-annex, the command's exit code does not matter; the remote answers or does not.
                await self.repository.run("sh", "-c", command, timeout=_COMMAND, accept=range(256))
            except AnnexError as error:
                raise Unreachable(str(error)) from None


class Started(_Around):
    """Runs the remote's start command before its first use, and the stop command after its last."""

    def __init__(self, inside: Session, commands: Commands) -> None:
        super().__init__(inside)
        self._commands = commands
        self._begun = False

    async def _before(self) -> None:
        if not self._begun:
            self._begun = True
            await self._commands.begin()

    async def aclose(self) -> None:
        await super().aclose()
        if self._begun:
            self._begun = False
            await self._commands.end()


# annex-bwlimit


@dataclass(frozen=True)
class Rates:
    """Maximum bytes per second; None for no limit."""

    up: float | None = None
    down: float | None = None


class _Pacing:
    """Waits so that the average since the start never exceeds the rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._began = anyio.current_time()
        self._passed = 0

    async def passed(self, count: int) -> None:
        self._passed += count
        await anyio.sleep_until(self._began + self._passed / self._rate)


class Throttled(_Around):
    """Applies the remote's bandwidth limits."""

    def __init__(self, inside: Session, rates: Rates) -> None:
        super().__init__(inside)
        self._rates = rates

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self.inside.upload(key, file) as offer:
            limited = self._rates.up is not None and isinstance(offer, Upload)
            yield _SlowUpload(offer, self._rates.up) if limited else offer  # type: ignore[arg-type]

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        slowed = source if self._rates.up is None else _SlowSource(source, self._rates.up)
        return await self.inside.store(key, file, slowed, progress)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self.inside.download(key, file, offset) as download:
            yield download if self._rates.down is None else _SlowDownload(download, self._rates.down)


class _SlowUpload(Upload):
    def __init__(self, inside: Upload, rate: float) -> None:
        self.offset = inside.offset
        self._inside = inside
        self._rate = rate

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        return await self._inside.send(_SlowSource(source, self._rate), progress)

    async def look(self) -> Stored:
        return await self._inside.look()


class _SlowSource(Source):
    def __init__(self, inside: Source, rate: float) -> None:
        self.repeatable = inside.repeatable
        self._inside = inside
        self._rate = rate

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        async with self._inside.read(offset) as reading:
            yield _SlowReading(reading, self._rate)


class _SlowReading(SourceReading):
    def __init__(self, inside: SourceReading, rate: float) -> None:
        self.length = inside.length
        self._inside = inside
        self._pacing = _Pacing(rate)

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._inside.chunks():
            await self._pacing.passed(len(chunk))
            yield chunk

    async def valid(self) -> bool:
        return await self._inside.valid()


class _SlowDownload(Download):
    def __init__(self, inside: Download, rate: float) -> None:
        self.length = inside.length
        self._inside = inside
        self._rate = rate

    @property
    def origin(self) -> UUID | None:
        return self._inside.origin

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        pacing = _Pacing(self._rate)
        async for chunk in self._inside.chunks():
            await pacing.passed(len(chunk))
            yield chunk

    async def valid(self) -> bool:
        return await self._inside.valid()


# annex.pidlock


class OneAtATime(_Around):
    """Runs one request at a time on a repository whose git-annex has one lock for everything."""

    def __init__(self, inside: Session, turn: anyio.Lock) -> None:
        super().__init__(inside)
        self._turn = turn

    @asynccontextmanager
    async def _use(self) -> AsyncIterator[Session]:
        async with self._turn, super()._use() as inside:
            yield inside


# Several remotes for one repository


class FirstThatAnswers(Session):
    """One repository through several remotes: the cheapest reachable one. Sticks to the one that was found."""

    def __init__(self, ways: Sequence[Callable[[], Session]]) -> None:
        """`ways` create sessions, the cheapest first; there is at least one."""
        self._ways = ways
        self._sessions: list[Session | None] = [None] * len(ways)
        self._current = 0

    def _session(self, place: int) -> Session:
        session = self._sessions[place]
        if session is None:
            session = self._sessions[place] = self._ways[place]()
        return session

    @property
    def name(self) -> str:
        return self._session(self._current).name

    @property
    def version(self) -> int | None:
        return self._session(self._current).version

    async def _connected(self) -> Session:
        """Return a connected session. Raises the error of the first one that was tried."""
        count = len(self._ways)
        failure: SessionError | None = None
        for place in [self._current, *(each for each in range(count) if each != self._current)]:
            try:
                session = self._session(place)
                await session.open()
            except Unreachable as error:
                failure = failure or error
            except ValueError as error:
                failure = failure or Unreachable(str(error))
            else:
                self._current = place
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


def pidlocked(directory: Path) -> bool:
    """Return whether git-annex uses one lock for everything in a repository on this machine (annex.pidlock).

    False if the disk does not answer; its session will say so.
    """
    return bool(look(str(directory), partial(_says_pidlock, directory), _AT_ONCE))


def _says_pidlock(directory: Path) -> bool:
    for file in (directory / ".git" / "config", directory / "config"):
        try:
            text = file.read_text("utf-8", "replace")
        except OSError:
            continue
        return any(line.strip().replace(" ", "").lower() in ("pidlock=true", "pidlock") for line in text.splitlines())
    return False
