"""A connection over file descriptors: a socket's, or the two pipes of a child process.

Reading and writing go straight to the descriptors and the event loop is only asked when there is nothing to be
done; between requests nobody reads, so whether the peer is still there can be seen without waiting.
"""

from __future__ import annotations

import os

import anyio
import anyio.lowlevel

from cluster_remote.p2p.errors import ConnectionLost
from cluster_remote.p2p.stream import Connection

__all__ = ["DescriptorConnection"]


class DescriptorConnection(Connection):
    """Owns both descriptors (which may be the same one)."""

    def __init__(self, reading: int, writing: int) -> None:
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        self._reading = reading
        self._writing = writing
        self._open = True
        self._good = True

    async def receive(self, max_bytes: int) -> bytes:
        while True:
            self._check_open()
            try:
                data = os.read(self._reading, max_bytes)
            except BlockingIOError:
                await anyio.wait_readable(self._reading)
            except OSError as error:
                raise ConnectionLost(f"the connection broke: {error.strerror}") from None
            else:
                # Others get their turn even if this peer is never slower than we are.
                await anyio.lowlevel.checkpoint()
                return data

    async def send_some(self, data: memoryview) -> int:
        while True:
            self._check_open()
            try:
                sent = os.write(self._writing, data)
            except BlockingIOError:
                await anyio.wait_writable(self._writing)
            except OSError as error:
                raise ConnectionLost(f"the connection broke: {error.strerror}") from None
            else:
                await anyio.lowlevel.checkpoint()
                return sent

    def ended(self) -> bool:
        if self._open and self._good:
            try:
                # Something unasked is as bad as the end: it would be taken for the answer to the next request.
                os.read(self._reading, 1)
            except BlockingIOError:
                return False
            except OSError:
                pass
            self._good = False
        return True

    def close_writing(self) -> None:
        """Closes the writing side where it is a descriptor of its own: the peer sees the end of its input."""
        if self._open and self._writing != self._reading:
            os.close(self._writing)
            self._writing = self._reading

    async def aclose(self, patience: float) -> None:
        if self._open:
            self._open = False
            for descriptor in {self._reading, self._writing}:
                os.close(descriptor)

    def _check_open(self) -> None:
        if not self._open:
            raise ConnectionLost("the connection has been closed")
