"""A file that a content is downloaded into, which may hold a part of it already."""

from __future__ import annotations

import os
from pathlib import Path

from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Progress, Session

__all__ = ["CannotWrite", "NotRetrieved", "retrieve"]


class CannotWrite(Exception):
    """The file that was to receive the content cannot be written."""


class NotRetrieved(SessionError):
    """The server sent what it does not vouch for, or does not have the content."""


async def retrieve(session: Session, key: Key, path: bytes, progress: Progress) -> UUID | None:
    """Downloads the content of `key` into the file at `path`, from where the file ends.

    Gives the repository that the whole file came from; None where that cannot be told.

    On success the file has exactly the content's length. Where the server does not vouch for what it sent, the file is
    left as long as it was before. git-annex verifies the content as a whole afterwards.
    Raises NotRetrieved, CannotWrite, SessionError.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise _cannot_write(path, error) from None
    try:
        return await _retrieve(session, key, path, descriptor, progress)
    except OSError as error:
        raise _cannot_write(path, error) from None
    finally:
        os.close(descriptor)


async def _retrieve(session: Session, key: Key, path: bytes, descriptor: int, progress: Progress) -> UUID | None:
    size = key.content_size
    offset = os.fstat(descriptor).st_size
    if size is None or offset > size or not key.is_verifiable:
        # It is too long, or nothing tells whether it is; or nobody knows which node it came from, and no checksum
        # would show that another node's content is not the same.
        os.ftruncate(descriptor, 0)
        offset = 0
    async with session.download(key, AssociatedFile(), offset) as download:
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
