"""Child processes that end with their owner.

Each child leads a process group of its own: `git annex` is git running git-annex running git, and whoever
kills only the first leaves the others behind.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from subprocess import PIPE

import anyio
from anyio.abc import ByteReceiveStream, Process

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.p2p.key import decode

__all__ = ["Tail", "drain", "kill", "start"]

# Seconds to wait for a killed child to be gone. Only a process stuck in the kernel takes longer than moments.
_REAP = 10.0


class Tail:
    """The last `limit` bytes of a stream, to quote in an error."""

    def __init__(self, limit: int = 4096) -> None:
        self._limit = limit
        self._end = b""

    def feed(self, chunk: bytes) -> None:
        self._end = (self._end + chunk)[-self._limit :]

    def text(self) -> str:
        """What is kept, without the control characters that could play tricks with a terminal."""
        text = decode(self._end).strip()
        return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


async def start(argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> Process:
    """Starts a child with pipes on all three standard streams.

    Raises CommandFailed where it cannot be started at all.
    """
    try:
        return await anyio.open_process(
            list(argv), stdin=PIPE, stdout=PIPE, stderr=PIPE, cwd=cwd, env=env, start_new_session=True
        )
    except OSError as e:
        raise CommandFailed(argv, None, f"cannot be started: {e.strerror or e}") from e


async def drain(stream: ByteReceiveStream, tail: Tail) -> None:
    """Reads `stream` to its end, so that the child never waits for a reader; keeps the end of it."""
    async for chunk in stream:
        tail.feed(chunk)


async def kill(process: Process) -> None:
    """Ends the child and all that it started, at once, and waits until it is gone. Not interrupted by cancellation.

    Harmless for a child that has already ended.
    """
    with anyio.CancelScope(shield=True), anyio.move_on_after(_REAP):
        if process.returncode is None:
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        await process.aclose()
