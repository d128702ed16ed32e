"""Read the location logs of many keys: all known keys, those of the files below a directory, or given keys.

Keys come in batches, so that a million need no more memory than a thousand. Each batch is a snapshot of its logs.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import anyio
from anyio.abc import ByteReceiveStream, Process
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

from cluster_remote.annex import child, logformat
from cluster_remote.annex.batch import Answers, BatchProcess
from cluster_remote.annex.branchlog import BRANCH, JOURNALS, journalled
from cluster_remote.annex.catfile import BLOB_LIMIT, Blobs, TooLarge
from cluster_remote.annex.contents import keys_of
from cluster_remote.annex.errors import BadAnswer, BatchFailed, BranchUnreadable, CommandFailed, NotAKey
from cluster_remote.p2p.key import UUID, Key, decode, encode

if TYPE_CHECKING:
    from types import TracebackType

    from cluster_remote.annex.repository import Repository

__all__ = ["Batches", "Located", "LocationReader", "Selection", "estimate", "located", "output_of", "read_log"]

# Keys in a batch: enough to make the cost per batch negligible, few enough that the first batch arrives at once.
BATCH = 256
# Maximum bytes of all logs in a batch.
_BATCH_LIMIT = 64 * 2**20
# Batches to read ahead.
_AHEAD = 2
_CHUNK = 64 * 1024
# git's exit code for an unknown option.
_USAGE = 129
_LOG = re.compile(rb"[0-9a-f]{3}/(?:[0-9a-f]{3}/)?([^/]+)\.log")
_LISTED = re.compile(rb"[0-7]+ blob ([0-9a-f]+)\t([^\0]*)\0")
# The usual form of a log, which can simply be split at its spaces.
_USUAL = re.compile(rb"(?:[0-9]{1,20}(?:\.[0-9]{1,100})?s [01X] [0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\n)*")
_ESCAPED = re.compile(r"&([asc])|%")
_UNESCAPED = {"&a": "&", "&s": "%", "&c": ":", "%": "/"}


@dataclass(frozen=True, slots=True)
class Located:
    """A key, and the repositories that have its content according to the location log.

    `dead` keys are lost, and need no more warnings (`git annex dead --key`). `file` is the work tree file, if the key
    was selected by file.
    """

    key: Key
    holders: frozenset[UUID]
    dead: bool = False
    file: str | None = None

    @property
    def name(self) -> str:
        """Return the display name: the file if there is one, otherwise the key."""
        return self.key.text if self.file is None else self.file


Batches: TypeAlias = MemoryObjectReceiveStream[list[Located]]


@dataclass(frozen=True, slots=True)
class Selection:
    """A choice of keys: all in the location log, given ones, or those of files.

    By default, those of the files below the working directory.
    """

    everything: bool = False
    keys: tuple[Key, ...] = ()
    files: tuple[str, ...] = ()


@lru_cache(maxsize=4096)
def _uuid(raw: bytes) -> UUID:
    return UUID(raw.decode("ascii"))


def read_log(raw: bytes) -> tuple[frozenset[UUID], bool]:
    """Parse a location log: return the repositories that have the content, and whether the key is dead.

    Gives the same as `logformat.presence`, at a tenth of the cost for a log in the usual form.
    """
    if _USUAL.fullmatch(raw):
        words = raw.split()
        uuids, statuses = words[2::3], words[1::3]
        if len(set(uuids)) == len(uuids):
            holders = frozenset(_uuid(uuid) for uuid, status in zip(uuids, statuses, strict=True) if status == b"1")
            return holders, bool(statuses) and all(status == b"X" for status in statuses)
    return logformat.presence(raw), _dead(raw)


def _dead(raw: bytes) -> bool:
    entries = [(clock, *rest.partition(" ")[::2]) for clock, rest in logformat.dated(raw)]
    newest = logformat.newest((clock, uuid, status) for clock, status, uuid in reversed(entries))
    return bool(newest) and all(status == "X" for status in newest.values())


def _key_of(path: bytes) -> Key | None:
    """Return the key whose location log is at a path of the branch; None if it is another kind of log."""
    match = _LOG.fullmatch(path)
    if match is None:
        return None
    try:
        return Key(_ESCAPED.sub(lambda found: _UNESCAPED[found[0]], decode(match[1])))
    except ValueError:
        return None


def _located(key: Key, raw: bytes, file: str | None = None) -> Located:
    holders, dead = read_log(raw)
    return Located(key, holders, dead, file)


class LocationReader:
    """Read the location logs of given keys. Close it after use.

    Uses `git cat-file --batch-command`, which can tell whether the branch has changed without listing all of its
    directories; git before version 2.36 only has `--batch`. May be used by several tasks at once.
    """

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._git = self._cat_file("--batch-command")
        self._has_batch_command = True
        self._lock = anyio.Lock(fast_acquire=True)
        # The branch's tree and its top directories when last read; empty if there is no branch. None if there are too
        # many: git finds the logs itself then.
        self._tree = b""
        self._directories: Mapping[bytes, bytes] | None = {}

    def _cat_file(self, mode: str) -> BatchProcess:
        repository = self._repository
        return BatchProcess(("git", "cat-file", mode), cwd=repository.cwd, env=repository.environment())

    async def __aenter__(self) -> LocationReader:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """End the child."""
        await self._git.aclose()

    async def read(self, keys: Sequence[Key], timeout: float = 60.0) -> list[Located]:
        """Return the current locations of each key. Raises BatchFailed, BranchUnreadable."""
        found: list[Located] = []
        levels = await self._repository.log_levels()
        # The requests of one batch fit into a pipe.
        for start in range(0, len(keys), BATCH):
            batch = keys[start : start + BATCH]
            paths = [logformat.branch_path(key, levels=levels) for key in batch]
            # Read the journal first, because git-annex moves its content to the branch.
            recent = [journalled(self._repository.annex_dir, path) for path in paths]
            async with self._lock:
                committed = await self._committed(paths, timeout)
            found += [_located(key, new + old) for key, new, old in zip(batch, recent, committed, strict=True)]
        return found

    async def _committed(self, paths: Sequence[bytes], timeout: float) -> list[bytes]:
        """Return the content of files on the branch, empty for missing ones.

        Their directories are resolved here: git would search the branch's 4096 directories for each file, which takes
        a millisecond.
        """
        if self._has_batch_command:
            try:
                return await self._read_and_check_tree(paths, timeout)
            except BatchFailed as error:
                if error.returncode != _USAGE:
                    raise
            await self._git.aclose()
            self._git, self._has_batch_command = self._cat_file("--batch"), False
        await self._git.converse(BRANCH + b"^{tree}\n", self._read_tree, timeout)
        return await self._read_files(paths, b"", timeout)

    async def _read_and_check_tree(self, paths: Sequence[bytes], timeout: float) -> list[bytes]:
        """Read files and the branch's current tree in one round trip; repeat if the known tree was outdated."""
        while True:
            request = b"info " + BRANCH + b"^{tree}\n"
            latest: list[tuple[bytes, int]] = []

            async def current(stream: Answers, latest: list[tuple[bytes, int]] = latest) -> None:
                latest.append(_tree_of(await stream.receive_line(_CHUNK)))

            found = await self._read_files(paths, b"contents ", timeout, request, current)
            identity, size = latest[-1]
            if identity == self._tree:
                return found
            self._tree, self._directories = b"", {}
            if size > BLOB_LIMIT:
                self._tree, self._directories = identity, None
            elif identity:
                await self._git.converse(b"contents " + identity + b"\n", self._read_tree, timeout)

    async def _read_files(
        self,
        paths: Sequence[bytes],
        command: bytes,
        timeout: float,
        first: bytes = b"",
        read_first: Callable[[Answers], Awaitable[None]] | None = None,
    ) -> list[bytes]:
        """Read files in the known directories; `first` is sent before, and `read_first` reads its answer."""
        requests: list[bytes] = []
        for path in paths:
            if self._directories is None:
                identity, rest = self._tree, path
            else:
                directory, _, rest = path.partition(b"/")
                identity = self._directories.get(directory, b"")
            requests.append(command + identity + b":" + rest + b"\n" if identity else b"")
        requested = [path for path, request in zip(paths, requests, strict=True) if request]

        async def answers(stream: Answers) -> list[bytes]:
            if read_first is not None:
                await read_first(stream)
            blobs = Blobs()
            read: list[bytes] = []
            size = 0
            while len(read) < len(requested):
                try:
                    for raw in blobs.feed(await stream.receive()):
                        # Missing and corrupt files count as empty, as in git-annex.
                        read.append(raw or b"")
                        size += len(read[-1])
                except TooLarge as error:
                    raise TooLarge(f"{decode(requested[len(read)])} {error}") from None
                if size > _BATCH_LIMIT:
                    name = decode(requested[len(read) - 1])
                    raise TooLarge(f"{name} and others have more than {_BATCH_LIMIT >> 20} MiB")
            return read

        read = iter(await self._git.converse(first + b"".join(requests), answers, timeout))
        return [next(read) if request else b"" for request in requests]

    async def _read_tree(self, stream: Answers) -> None:
        """Read the top directories of the branch, and parse them if its tree has changed."""
        identity, size = _tree_of(await stream.receive_line(_CHUNK))
        if not identity:
            self._tree, self._directories = b"", {}
            return
        if size > BLOB_LIMIT:
            raise TooLarge(
                f"the top directory of the git-annex branch has more than {BLOB_LIMIT >> 20} MiB of names, with which "
                "git before version 2.36 is too slow; git log --stat git-annex shows who filled it"
            )
        content = await stream.receive_exactly(size)
        await stream.receive_exactly(1)
        if identity != self._tree:
            self._tree, self._directories = identity, dict(_entries(content, len(identity) // 2))


def _tree_of(header: bytes) -> tuple[bytes, int]:
    """Parse the header of an answer about the branch's tree: its hash, empty if there is no branch, and its bytes.

    Raises BadAnswer.
    """
    if header.endswith(b" missing"):
        return b"", 0
    identity, _, rest = header.partition(b" ")
    kind, _, size = rest.partition(b" ")
    if kind != b"tree" or not size.isdigit():
        raise BadAnswer(f"answered with {header[:200]!r} instead of the git-annex branch")
    return identity, int(size)


def _entries(tree: bytes, length: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the entries of a git tree object, name and hash; `length` is that of a hash in bytes."""
    position = 0
    while position < len(tree):
        space = tree.index(b" ", position)
        end = tree.index(b"\0", space)
        position = end + 1 + length
        yield tree[space + 1 : end], tree[end + 1 : position].hex().encode()


@asynccontextmanager
async def located(repository: Repository, selection: Selection) -> AsyncIterator[Batches]:
    """Yield the selected keys with their locations, in batches, while the context is open.

    Raises NotAKey for a file that is not annexed, CommandFailed and BranchUnreadable; errors while batches are read
    leave the context in an exception group.
    """
    plain, directories = await _keys_of_files(repository, selection.files)
    given = [(key, None) for key in selection.keys] + plain
    searched = not (selection.everything or given or directories)
    send, receive = anyio.create_memory_object_stream[list[Located]](_AHEAD)

    async def produce() -> None:
        async with send:
            if selection.everything:
                await _walk(repository, send)
                return
            async with LocationReader(repository) as reader:
                for start in range(0, len(given), BATCH):
                    await _look_up(reader, given[start : start + BATCH], send)
                if directories or searched:
                    await _find(repository, directories, reader, send)

    async with anyio.create_task_group() as tasks, receive:
        tasks.start_soon(produce)
        yield receive
        tasks.cancel_scope.cancel()


async def estimate(repository: Repository, selection: Selection) -> int:
    """Estimate the number of keys in a selection, for a progress bar. Raises CommandFailed."""
    if selection.everything:
        argv = ["git", "ls-tree", "-r", "-z", "--name-only", "--full-tree", decode(BRANCH)]
    elif selection.keys and not selection.files:
        return len(selection.keys)
    else:
        argv = ["git", "ls-files", "-z", "--", *selection.files]
    count, rest = len(selection.keys), b""
    async with output_of(repository, argv) as names:
        async for chunk in names:
            *paths, rest = (rest + chunk).split(b"\0")
            count += sum(1 for path in paths if _LOG.fullmatch(path)) if selection.everything else len(paths)
    return count


async def _look_up(
    reader: LocationReader,
    named: Sequence[tuple[Key, str | None]],
    send: MemoryObjectSendStream[list[Located]],
) -> None:
    found = await reader.read([key for key, _ in named])
    await send.send([replace(each, file=file) for each, (_, file) in zip(found, named, strict=True)])


# Files


async def _keys_of_files(
    repository: Repository, files: Sequence[str]
) -> tuple[list[tuple[Key, str | None]], list[str]]:
    """Return the keys of those that are files, and those that are directories. Raises NotAKey."""
    plain, directories = _files_and_directories(repository.working_directory, files)
    keys = await keys_of(repository, plain) if plain else []
    return list(zip(keys, plain, strict=True)), directories


def _files_and_directories(base: Path, files: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate files from directories. Raises NotAKey for a path that does not exist."""
    for file in files:
        # A broken symlink exists too: it is an annexed file without its content.
        if not os.path.lexists(base / file):
            raise NotAKey(f"there is no file {file!r} here")
    directories = [file for file in files if (base / file).is_dir()]
    return [file for file in files if file not in set(directories)], directories


async def _find(
    repository: Repository,
    directories: Sequence[str],
    reader: LocationReader,
    send: MemoryObjectSendStream[list[Located]],
) -> None:
    """Send the locations of all annexed files below directories, or below the working directory if there are none."""
    argv = ("git", "annex", "find", "--anything", "--format=${key}\\000${file}\\000", "--", *directories)
    async with output_of(repository, argv) as stdout:
        rest = b""
        found: list[tuple[Key, str | None]] = []
        async for chunk in stdout:
            *words, rest = (rest + chunk).split(b"\0")
            if len(words) % 2:
                rest = words.pop() + b"\0" + rest
            for key, file in zip(words[::2], words[1::2], strict=True):
                found.append((Key(decode(key)), decode(file)))
            while len(found) >= BATCH:
                await _look_up(reader, found[:BATCH], send)
                del found[:BATCH]
        if found:
            await _look_up(reader, found, send)


# Everything


def _journal(annex_dir: Path) -> dict[bytes, bytes]:
    """Return the location logs that are currently in the journals, by path on the branch."""
    found: dict[bytes, bytes] = {}
    for journal in JOURNALS:
        try:
            files = list((annex_dir / journal).iterdir())
        except (FileNotFoundError, NotADirectoryError):
            continue
        for file in files:
            # The inverse of logformat.journal_name.
            path = re.sub(rb"__|_", lambda match: b"_" if match[0] == b"__" else b"/", encode(file.name))
            if path not in found and _key_of(path) is not None:
                found[path] = journalled(annex_dir, path)
    return found


async def _walk(repository: Repository, send: MemoryObjectSendStream[list[Located]]) -> None:
    """Send every key in the location log, in no particular order."""
    # Read the journal first, because git-annex moves its content to the branch.
    journal = _journal(repository.annex_dir)
    keys: deque[tuple[Key, bytes]] = deque()
    batch: list[Located] = []
    listing = ("git", "ls-tree", "-r", "-z", "--full-tree", decode(BRANCH))
    async with (
        output_of(repository, listing) as names,
        _running(repository, ("git", "cat-file", "--batch", "--buffer")) as git,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(_request_logs, names, git, keys, journal)
        assert git.stdout is not None
        blobs = Blobs()
        async for chunk in git.stdout:
            for raw in _complete(blobs, chunk, keys):
                key, recent = keys.popleft()
                if raw is None:
                    raise BranchUnreadable(
                        f"the location log of {key} is damaged on the git-annex branch; try git fsck"
                    )
                batch.append(_located(key, recent + raw))
                if len(batch) >= BATCH:
                    await send.send(batch)
                    batch = []
    if keys:
        raise BranchUnreadable("the git-annex branch could not be read to its end; try git fsck")
    batch += [_located(known, recent) for path, recent in journal.items() if (known := _key_of(path)) is not None]
    for start in range(0, len(batch), BATCH):
        await send.send(batch[start : start + BATCH])


def _complete(blobs: Blobs, chunk: bytes, keys: deque[tuple[Key, bytes]]) -> Iterator[bytes | None]:
    """Feed the parser of the logs of `keys`. Raises BadAnswer; BranchUnreadable for a log that is too large."""
    try:
        yield from blobs.feed(chunk)
    except TooLarge as error:
        raise BranchUnreadable(f"the location log of {keys[0][0]} {error}") from None


async def _request_logs(
    names: ByteReceiveStream, git: Process, keys: deque[tuple[Key, bytes]], journal: dict[bytes, bytes]
) -> None:
    """Request all location logs that `names` lists from git; append each requested key to `keys`."""
    assert git.stdin is not None
    rest = b""
    async for chunk in names:
        rest += chunk
        end = rest.rfind(b"\0") + 1
        wanted: list[bytes] = []
        for identity, path in _LISTED.findall(rest[:end]):
            key = _key_of(path)
            if key is not None:
                keys.append((key, journal.pop(path, b"") if journal else b""))
                wanted.append(identity)
        rest = rest[end:]
        if wanted:
            await git.stdin.send(b"\n".join(wanted) + b"\n")
    await git.stdin.aclose()


# Children


@asynccontextmanager
async def _running(repository: Repository, argv: Sequence[str]) -> AsyncIterator[Process]:
    """Run a child in the repository while the context is open; kill it if the context is left early.

    Raises CommandFailed if it exits with an error.
    """
    tail = child.Tail()
    process = await child.start(argv, cwd=repository.cwd, env=repository.environment())
    assert process.stderr is not None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child.drain, process.stderr, tail)
            yield process
            await process.wait()
        if process.returncode:
            raise CommandFailed(argv, process.returncode, f"ended with exit code {process.returncode}", tail.text())
    finally:
        await child.kill(process)


@asynccontextmanager
async def output_of(repository: Repository, argv: Sequence[str]) -> AsyncIterator[ByteReceiveStream]:
    """Yield the output of a child whose standard input is empty. See `_running` for errors."""
    async with _running(repository, argv) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        await process.stdin.aclose()
        yield process.stdout
