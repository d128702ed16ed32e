"""Parse the output of `git cat-file --batch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import BadAnswer

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["BLOB_LIMIT", "Blobs", "read_blobs"]

BLOB_LIMIT = 16 * 2**20
"""Maximum bytes of one log, which has at most a few lines per repository."""


class Blobs:
    """An incremental parser."""

    def __init__(self) -> None:
        self._buffer = b""

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield each blob that is now complete, None for a missing one. Raises BadAnswer."""
        buffer = self._buffer + chunk if self._buffer else chunk
        position = 0
        while (end := buffer.find(b"\n", position)) >= 0:
            header = buffer[position:end]
            if header.endswith(b" missing"):
                position = end + 1
                yield None
                continue
            kind, _, size = header[header.find(b" ") + 1 :].partition(b" ")
            if kind != b"blob" or not size.isdigit() or int(size) > BLOB_LIMIT:
                raise BadAnswer(f"answered with {header[:200]!r}, which is not a log of at most {BLOB_LIMIT} bytes")
            after = end + 1 + int(size)
            if len(buffer) <= after:
                break
            yield buffer[end + 1 : after]
            position = after + 1
        self._buffer = buffer[position:]


async def read_blobs(repository: Repository, names: Sequence[bytes]) -> list[bytes | None]:
    """Return blobs by name (`branch:path`) with a single command; None for each missing one.

    Raises CommandFailed, BadAnswer.
    """
    request = b"".join(name + b"\n" for name in names)
    done = await repository.run("git", "cat-file", "--batch", input=request)
    found = list(Blobs().feed(done.stdout))
    if len(found) != len(names):
        raise BadAnswer(f"answered with {len(found)} blobs instead of {len(names)}")
    return found
