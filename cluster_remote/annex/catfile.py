"""Parse the output of `git cat-file --batch`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import BadAnswer, CommandFailed
from cluster_remote.p2p.key import decode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["BLOB_LIMIT", "CUT", "LINE_LIMIT", "Blobs", "TooLarge", "read_blobs"]

BLOB_LIMIT = 16 * 2**20
"""Maximum bytes of one log, which has at most a few lines per repository."""
LINE_LIMIT = 2**20
"""Maximum bytes of a line in a log larger than `BLOB_LIMIT`. The longest line lists the nodes of a cluster."""
CUT = b"\0"
"""The line in place of one that is longer. No log has such a line, so parsers skip it."""

# Others can put a directory in the place of a log. git-annex parses whatever is there, also the names in it.
_KINDS = frozenset({b"blob", b"tree", b"commit", b"tag"})


class TooLarge(BadAnswer):
    """A log has more lines than any should have."""


class Blobs:
    """An incremental parser. Of a log larger than `BLOB_LIMIT`, only lines up to `LINE_LIMIT` are kept."""

    def __init__(self) -> None:
        self._buffer = b""
        self._large: _Large | None = None

    def feed(self, chunk: bytes) -> Iterator[bytes | None]:
        """Yield each object that is now complete, None for a missing one. Raises BadAnswer, TooLarge."""
        if self._large is not None:
            chunk = self._large.feed(chunk)
            if not self._large.complete:
                return
            yield self._large.content
            self._large = None
        buffer = self._buffer + chunk if self._buffer else chunk
        position = 0
        while (end := buffer.find(b"\n", position)) >= 0:
            header = buffer[position:end]
            if header.endswith((b" missing", b" submodule")):
                position = end + 1
                yield None
                continue
            kind, _, size = header[header.find(b" ") + 1 :].partition(b" ")
            if kind not in _KINDS or not size.isdigit() or len(size) > 19:
                raise BadAnswer(f"answered with {header[:200]!r}, which is not a log")
            if int(size) > BLOB_LIMIT:
                self._large = _Large(int(size))
                self._buffer = b""
                yield from self.feed(buffer[end + 1 :])
                return
            after = end + 1 + int(size)
            if len(buffer) <= after:
                break
            yield buffer[end + 1 : after]
            position = after + 1
        self._buffer = buffer[position:]


class _Large:
    """A log that is too large to keep as a whole, because someone may have added an endless line."""

    def __init__(self, size: int) -> None:
        # The blob, and the newline that git adds.
        self._left = size + 1
        self._kept = bytearray()
        self._line = bytearray()
        self._overlong = False

    @property
    def complete(self) -> bool:
        return not self._left

    @property
    def content(self) -> bytes:
        return bytes(self._kept)

    def feed(self, chunk: bytes) -> bytes:
        """Take the next part; return what follows the blob. Raises TooLarge."""
        part, rest = chunk[: self._left], chunk[self._left :]
        self._left -= len(part)
        *ended, beginning = part.split(b"\n")
        for piece in ended:
            self._add(piece)
            if self._overlong or self._line:
                self._kept += (CUT if self._overlong else self._line) + b"\n"
            self._line.clear()
            self._overlong = False
        self._add(beginning)
        if len(self._kept) > BLOB_LIMIT:
            raise TooLarge(
                f"has more than {BLOB_LIMIT >> 20} MiB of lines, so it is not read; git log --stat git-annex shows who "
                "filled it"
            )
        return rest

    def _add(self, piece: bytes) -> None:
        self._overlong = self._overlong or len(self._line) + len(piece) > LINE_LIMIT
        if self._overlong:
            self._line.clear()
        else:
            self._line += piece


async def read_blobs(repository: Repository, names: Sequence[bytes]) -> list[bytes | None]:
    """Return blobs by name (`branch:path`) with a single command; None where there is none.

    Raises CommandFailed, BadAnswer; TooLarge, which names the log.
    """
    request = b"".join(name + b"\n" for name in names)
    blobs, found = Blobs(), list[bytes | None]()
    faults: list[BadAnswer] = []

    def take(chunk: bytes) -> bool:
        try:
            found.extend(blobs.feed(chunk))
        except TooLarge as error:
            faults.append(TooLarge(f"{decode(names[len(found)])} {error}"))
        except BadAnswer as error:
            faults.append(error)
        return not faults

    try:
        await repository.run("git", "cat-file", "--batch", input=request, take=take)
    except CommandFailed:
        if faults:
            raise faults[0] from None
        raise
    if len(found) != len(names):
        raise BadAnswer(f"answered with {len(found)} blobs instead of {len(names)}")
    return found
