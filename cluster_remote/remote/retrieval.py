"""Download content into a file, which may already contain part of it.

If git-annex itself is a gateway, it forwards the file while it grows, so nothing may be written twice. Content without
a checksum, which starts over when its node fails, is downloaded to a temporary file and renamed when complete. So is
small content with a checksum: it is verified before git-annex gets it, because a damaged copy on one node must not hide
the good ones. All other content goes straight into the file, and git-annex verifies it as it arrives; if it rejects one
node's copy, it asks again, and another node is used.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import anyio.to_thread

from cluster_remote.annex.disk import free_bytes
from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Damaged, SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Progress, Session

__all__ = [
    "CannotWrite",
    "NotRetrieved",
    "Retrieved",
    "is_verified_here",
    "matches_checksum",
    "retrieve",
    "retrieve_apart",
    "retrieve_whole",
]

# The largest content to verify here, in bytes: reading it twice takes no noticeable time.
_MAX_VERIFIED = 8 * 1024 * 1024
# The largest content to verify without a thread, in bytes: other jobs wait half a millisecond.
_SMALL = 256 * 1024


class CannotWrite(Exception):
    """The destination file cannot be written."""


class NotRetrieved(SessionError):
    """The server called the content that it sent invalid, or does not have it."""


@dataclass(frozen=True, slots=True)
class Retrieved:
    """A complete download.

    `origin` is the repository that sent the whole file, None if unknown; `verified` says that its checksum matched.
    """

    origin: UUID | None
    verified: bool


def is_verified_here(key: Key) -> bool:
    """Return whether content is verified here before git-annex gets it."""
    size = key.content_size
    return size is not None and size <= _MAX_VERIFIED and Checksum.of(key) is not None


async def retrieve_whole(session: Session, key: Key, path: bytes, progress: Progress) -> None:
    """Download content whose key has a checksum to a temporary file, and rename it to `path` if it is valid.

    Raises Damaged, leaving nothing at `path`; NotRetrieved, CannotWrite, SessionError.
    """
    temporary = _temporary_path(path)
    try:
        # Fail now, not at the end, if it is not writable. An earlier download may have left part of the content.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        os.replace(path, temporary)  # noqa: PTH105 -- bytes
        while True:
            resumed = _length(temporary) > 0
            origin = (await _retrieve_or_keep_part(session, key, temporary, path, progress)).origin
            if await _is_valid(key, temporary):
                os.replace(temporary, path)  # noqa: PTH105 -- bytes
                return
            os.unlink(temporary)  # noqa: PTH108 -- bytes
            if not resumed:
                break
    except OSError as error:
        raise _cannot_write(path, error) from None
    raise Damaged(f"{session.name} sent a damaged copy of {key}", origin)


async def retrieve_apart(
    session: Session, key: Key, path: bytes, progress: Progress, is_wanted: Callable[[Path], bool] = lambda file: True
) -> bool:
    """Download content without a checksum to a temporary file, and rename it to `path` when it is complete.

    Returns False, leaving nothing, if the downloaded file is not wanted. Uses a temporary file because the download
    starts over when its node fails, and git-annex may be forwarding `path` meanwhile. Raises NotRetrieved, CannotWrite,
    SessionError.
    """
    temporary = _temporary_path(path)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 -- bytes
        await retrieve(session, key, temporary, progress)
        if not await anyio.to_thread.run_sync(is_wanted, Path(os.fsdecode(temporary))):
            return False
        os.replace(temporary, path)  # noqa: PTH105 -- bytes
        return True
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            os.unlink(temporary)  # noqa: PTH108 -- bytes


def _temporary_path(path: bytes) -> bytes:
    folder, _, name = path.rpartition(b"/")
    return (folder or b".") + b"/.cluster-remote-" + name[-200:]


def _length(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 -- bytes
    except FileNotFoundError:
        return 0


async def _retrieve_or_keep_part(
    session: Session, key: Key, temporary: bytes, path: bytes, progress: Progress
) -> Retrieved:
    """Download to `temporary`; if that fails, leave the partial content at `path` for the next attempt."""
    try:
        return await retrieve(session, key, temporary, progress)
    except BaseException:
        with suppress(OSError):
            os.replace(temporary, path)  # noqa: PTH105 -- bytes
        raise


async def _is_valid(key: Key, path: bytes) -> bool:
    # Handing small content to a thread takes longer than hashing it.
    small = _length(path) <= _SMALL
    return bool(matches_checksum(key, path) if small else await anyio.to_thread.run_sync(matches_checksum, key, path))


def matches_checksum(key: Key, path: bytes) -> bool | None:
    """Return whether a file has the key's checksum; None for keys of a backend that is not a known hash."""
    checksum = Checksum.of(key)
    if checksum is None:
        return None
    with open(path, "rb") as file:
        while chunk := file.read(1024 * 1024):
            checksum.update(chunk)
    return checksum.matches()


async def retrieve(session: Session, key: Key, path: bytes, progress: Progress, *, spread: bool = False) -> Retrieved:
    """Download the content of `key` into the file at `path`, resuming at its end.

    With `spread`, several nodes may send parts of it at once.

    On success, the file has exactly the content's length. If the server calls it invalid, the file is truncated to its
    old length. git-annex verifies the complete content afterwards. Raises NotRetrieved, CannotWrite, SessionError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        return await _retrieve(session, key, path, descriptor, progress, spread)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        os.close(descriptor)


async def _retrieve(
    session: Session, key: Key, path: bytes, descriptor: int, progress: Progress, spread: bool
) -> Retrieved:
    size = key.content_size
    offset = os.fstat(descriptor).st_size
    if size is None or offset > size or not key.is_verifiable:
        # The file may be too long; or its part may come from a different copy, and no checksum would detect that.
        os.ftruncate(descriptor, 0)
        offset = 0
    async with session.download(key, AssociatedFile(), offset) as download:
        if size is None:
            _check_room(session, download.length, descriptor)
        if spread:
            download.may_spread(path.rpartition(b"/")[0] or b".")
        await download.save(descriptor, offset, progress)
        valid = await download.valid()
    if not valid:
        os.ftruncate(descriptor, offset)
        raise NotRetrieved(
            f"{session.name} does not have the content of {key}"
            if download.length == 0 and size != 0
            else f"{session.name} sent the content of {key} and then called it invalid; it may have changed meanwhile"
        )
    os.ftruncate(descriptor, offset + download.length)
    return Retrieved(None if offset else download.origin, download.verified)


def _check_room(session: Session, length: int, descriptor: int) -> None:
    """Raise NotRetrieved for content that would fill the disk: if the key has no size, a peer can announce any."""
    room = free_bytes(os.fstatvfs(descriptor))
    if room is not None and length > room:
        raise NotRetrieved(f"{session.name} announces {length} bytes, and there is room for {room} on the disk")


def _cannot_write(path: bytes, error: OSError) -> CannotWrite:
    return CannotWrite(f"cannot write {str(Path(os.fsdecode(path)))!r}: {error.strerror}")
