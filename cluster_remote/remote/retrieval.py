"""A file that a content is downloaded into, which may hold a part of it already.

Where git-annex is itself a gateway it passes on a file that grows, so nothing may be written twice. A content without
a checksum, which is begun anew when its node fails, lies beside until it is whole and is renamed then. So does one that
is not large and whose key names a checksum: it is checked before git-annex gets it, since a damaged copy on one node
must not hide the good ones. Other contents go straight into the file, and git-annex checks them as they come; when it
does not like what a node gave, it asks again, and another node is asked.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import anyio.to_thread

from cluster_remote.p2p.checksum import Checksum
from cluster_remote.p2p.errors import Damaged, SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Progress, Session

__all__ = ["CannotWrite", "NotRetrieved", "can_be_looked_at", "retrieve", "retrieve_apart", "retrieve_whole"]

# Bytes of a content up to which it is looked at here: reading it twice takes no time that anybody notices.
_LOOKED_AT = 8 * 1024 * 1024


class CannotWrite(Exception):
    """The file that was to receive the content cannot be written."""


class NotRetrieved(SessionError):
    """The server sent what it does not vouch for, or does not have the content."""


def can_be_looked_at(key: Key) -> bool:
    """Whether a content is checked here before git-annex gets it."""
    size = key.content_size
    return size is not None and size <= _LOOKED_AT and Checksum.of(key) is not None


async def retrieve_whole(session: Session, key: Key, path: bytes, progress: Progress) -> None:
    """Download a content whose key has a checksum beside the file at `path`, and rename it there if it is right.

    Raises Damaged, then nothing is left at `path`; NotRetrieved, CannotWrite, SessionError.
    """
    beside = _beside(path)
    try:
        # That it can be written to shows now, not when all has come. An earlier download may have left a part in it.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666))
        os.replace(path, beside)  # noqa: PTH105 -- bytes
        while True:
            resumed = _length(beside) > 0
            origin = await _kept(session, key, beside, path, progress)
            if await anyio.to_thread.run_sync(_is_right, key, beside):
                os.replace(beside, path)  # noqa: PTH105 -- bytes
                return
            os.unlink(beside)  # noqa: PTH108 -- bytes
            if not resumed:
                break
    except OSError as error:
        raise _cannot_write(path, error) from None
    raise Damaged(f"{session.name} gave a damaged copy of {key}", origin)


async def retrieve_apart(session: Session, key: Key, path: bytes, progress: Progress) -> None:
    """Download a content without a checksum beside the file at `path`, and rename it there when it is whole.

    When its node fails it is begun anew at another one, and git-annex may be passing on what is at `path` meanwhile.
    Raises NotRetrieved, CannotWrite, SessionError.
    """
    beside = _beside(path)
    try:
        with suppress(FileNotFoundError):
            os.unlink(path)  # noqa: PTH108 -- bytes
        await retrieve(session, key, beside, progress)
        os.replace(beside, path)  # noqa: PTH105 -- bytes
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        with suppress(OSError):
            os.unlink(beside)  # noqa: PTH108 -- bytes


def _beside(path: bytes) -> bytes:
    folder, _, name = path.rpartition(b"/")
    return (folder or b".") + b"/.cluster-remote-" + name[-200:]


def _length(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 -- bytes
    except FileNotFoundError:
        return 0


async def _kept(session: Session, key: Key, beside: bytes, path: bytes, progress: Progress) -> UUID | None:
    """Download into `beside`; what has come of a download that breaks off is left at `path`, for the next one."""
    try:
        return await retrieve(session, key, beside, progress)
    except BaseException:
        with suppress(OSError):
            os.replace(beside, path)  # noqa: PTH105 -- bytes
        raise


def _is_right(key: Key, path: bytes) -> bool:
    checksum = Checksum.of(key)
    assert checksum is not None
    with open(path, "rb") as file:
        while chunk := file.read(1024 * 1024):
            checksum.update(chunk)
    return checksum.matches()


async def retrieve(session: Session, key: Key, path: bytes, progress: Progress, *, spread: bool = False) -> UUID | None:
    """Download the content of `key` into the file at `path`, from where the file ends.

    With `spread` several nodes may give parts of it at the same time. Returns the repository that the whole file came
    from; None where that cannot be told.

    On success the file has exactly the content's length. Where the server does not vouch for what it sent, the file is
    left as long as it was before. git-annex verifies the content as a whole afterwards.
    Raises NotRetrieved, CannotWrite, SessionError.
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
) -> UUID | None:
    size = key.content_size
    offset = os.fstat(descriptor).st_size
    if size is None or offset > size or not key.is_verifiable:
        # It is too long, or nothing tells whether it is; or nobody knows which node it came from, and no checksum
        # would show that another node's content is not the same.
        os.ftruncate(descriptor, 0)
        offset = 0
    async with session.download(key, AssociatedFile(), offset) as download:
        if spread:
            download.may_spread(path.rpartition(b"/")[0] or b".")
        await download.save(descriptor, offset, progress)
        valid = await download.valid()
    if not valid:
        os.ftruncate(descriptor, offset)
        raise NotRetrieved(
            f"{session.name} does not have the content of {key}"
            if download.length == 0 and size != 0
            else f"{session.name} sent content of {key} that it says is not valid; it may have changed meanwhile"
        )
    os.ftruncate(descriptor, offset + download.length)
    return None if offset else download.origin


def _cannot_write(path: bytes, error: OSError) -> CannotWrite:
    return CannotWrite(f"cannot write {str(Path(os.fsdecode(path)))!r}: {error.strerror}")
