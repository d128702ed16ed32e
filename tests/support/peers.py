"""Peers that do what a real one cannot be made to do: stall, disconnect midway, send garbage."""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from .shells import limit_version

__all__ = [
    "Close",
    "Drain",
    "Expect",
    "Pause",
    "Read",
    "Reset",
    "Script",
    "ScriptedPeer",
    "Send",
    "Stall",
    "Step",
    "limit_version",
    "opening",
]

STEP_SECONDS = 60.0
"""Seconds that a scripted peer waits for what it expects before it fails."""

LINE_LIMIT = 1 << 20


@dataclass(frozen=True)
class Expect:
    """Read one line; it must be these bytes, or match the pattern in full. The line's end is not part of it."""

    line: bytes | re.Pattern[bytes]


@dataclass(frozen=True)
class Send:
    """Send exactly these bytes: a message needs its `\\n`."""

    data: bytes


@dataclass(frozen=True)
class Read:
    """Read exactly `size` bytes, a DATA body for instance."""

    size: int


@dataclass(frozen=True)
class Pause:
    """Do nothing for so many seconds, then go on."""

    seconds: float


@dataclass(frozen=True)
class Stall:
    """Neither read nor send, until the other side closes or the peer is ended."""


@dataclass(frozen=True)
class Drain:
    """Read and forget whatever comes, answering nothing, until the other side closes."""


@dataclass(frozen=True)
class Close:
    """Close the connection cleanly. The end of a script does the same."""


@dataclass(frozen=True)
class Reset:
    """Reset the connection, so that the other side sees an error (on TCP)."""


Step = Expect | Send | Read | Pause | Stall | Drain | Close | Reset
Script = Sequence[Step]


def opening(uuid: str, *, token: str | None = None, version: int = 4) -> list[Step]:
    """How a conversation with a peer of this UUID and version begins, as far as the agreement on a version.

    Args:
        uuid: what the peer says it is.
        token: that of AUTH, as on a socket; None for a peer that greets unasked, as git-annex-shell does.
        version: from 1 to 4, the one agreed on.
    """
    said: list[Step] = []
    if token is not None:
        said.append(Expect(re.compile(rb"AUTH [-0-9a-f]{36} " + re.escape(token.encode()))))
    return [
        *said,
        Send(f"AUTH-SUCCESS {uuid}\n".encode()),
        Expect(re.compile(rb"VERSION \d+")),
        Send(b"VERSION %d\n" % version),
    ]


class ScriptedPeer:
    """A socket server that follows a script for each connection, in a thread of its own.

    Attributes:
        received: the lines read by `Expect`, of all connections, without their ends, in order.
        bodies: the bytes read by each `Read`.
        connections: how many were made so far.
        failures: where the other side did not do what the script expects; leaving `with` raises for them.
        address: the unix socket's path as text, or host and port.
    """

    def __init__(
        self,
        script: Script | Callable[[int], Script],
        *,
        unix: Path | None = None,
        tcp: bool = False,
        port: int = 0,
    ) -> None:
        """Prepare a peer; `with` runs it.

        Args:
            script: for every connection; or, given the number of a connection (from 0), the script for it.
            unix: where its unix socket is to be.
            tcp: that it is to listen on 127.0.0.1 instead.
            port: on which port there; by default on a free one.
        """
        if (unix is None) != tcp:
            raise ValueError("a scripted peer listens either on a unix socket or on TCP")
        self._script = script
        self._unix = unix
        self._port = port
        self.received: list[bytes] = []
        self.bodies: list[bytes] = []
        self.failures: list[str] = []
        self.connections = 0
        self.address: str | tuple[str, int] = ""
        self._ending = threading.Event()
        self._threads: list[threading.Thread] = []

    @property
    def port(self) -> int:
        """The TCP port."""
        assert isinstance(self.address, tuple)
        return self.address[1]

    def __enter__(self) -> ScriptedPeer:
        if self._unix is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            host, port = self._listener.getsockname()
            self.address = (host, port)
        else:
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(str(self._unix))
            self._listener.listen()
            self.address = str(self._unix)
        self._acceptor = threading.Thread(target=self._accept, name="scripted peer")
        self._acceptor.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending.set()
        # Wakes the thread that accepts.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join(STEP_SECONDS)
        self._listener.close()
        if self._unix is not None:
            self._unix.unlink()
        for thread in self._threads:
            thread.join(STEP_SECONDS)
        assert not any(thread.is_alive() for thread in self._threads), "a scripted peer did not end"
        if error is None and self.failures:
            raise AssertionError("\n".join(self.failures))

    def _accept(self) -> None:
        while not self._ending.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:  # closed by __exit__
                return
            number = self.connections
            self.connections += 1
            script = self._script(number) if callable(self._script) else self._script
            thread = threading.Thread(
                target=self._act, args=(connection, number, script), name=f"scripted peer {number}"
            )
            self._threads.append(thread)
            thread.start()

    def _act(self, connection: socket.socket, number: int, script: Script) -> None:
        with connection:
            conversation = _Conversation(connection, self._ending)
            for place, step in enumerate(script):
                try:
                    self._take(step, conversation)
                except _End:
                    return
                except _Unexpected as failure:
                    self.failures.append(f"connection {number}, step {place}, {step}: {failure}")
                    return

    def _take(self, step: Step, conversation: _Conversation) -> None:
        match step:
            case Expect(wanted):
                line = conversation.read_line()
                self.received.append(line)
                fits = line == wanted if isinstance(wanted, bytes) else wanted.fullmatch(line) is not None
                if not fits:
                    raise _Unexpected(f"got {line!r}")
            case Read(size):
                self.bodies.append(conversation.read(size))
            case Send(data):
                conversation.send(data)
            case Pause(seconds):
                self._ending.wait(seconds)
            case Stall():
                conversation.stall()
            case Drain():
                conversation.drain()
            case Reset():
                conversation.reset()
                raise _End
            case Close():
                raise _End


class _End(Exception):
    """The conversation is over without a failure."""


class _Unexpected(Exception):
    """The other side did not do what the script says."""


@dataclass
class _Conversation:
    """One connection; every wait on it ends when the peer does."""

    connection: socket.socket
    ending: threading.Event
    buffer: bytearray = field(default_factory=bytearray)

    def _wait(self, events: int, deadline: float) -> int:
        poll = select.poll()
        poll.register(self.connection, events)
        while not self.ending.is_set():
            if ready := poll.poll(50):
                return ready[0][1]
            if time.monotonic() > deadline:
                raise _Unexpected(f"nothing happened for {STEP_SECONDS} s")
        raise _End

    def _receive(self) -> bytes:
        self._wait(select.POLLIN, time.monotonic() + STEP_SECONDS)
        try:
            data = self.connection.recv(1 << 16)
        except OSError as error:
            raise _Unexpected(f"the other side broke off: {error}") from error
        if not data:
            raise _Unexpected(f"the other side closed, after {bytes(self.buffer)!r}")
        return data

    def read_line(self) -> bytes:
        while b"\n" not in self.buffer:
            if len(self.buffer) > LINE_LIMIT:
                raise _Unexpected(f"a line longer than {LINE_LIMIT} bytes")
            self.buffer += self._receive()
        line, _, rest = bytes(self.buffer).partition(b"\n")
        self.buffer[:] = rest
        return line

    def read(self, size: int) -> bytes:
        while len(self.buffer) < size:
            self.buffer += self._receive()
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        return data

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        self.connection.setblocking(False)
        try:
            while view:
                self._wait(select.POLLOUT, time.monotonic() + STEP_SECONDS)
                view = view[self.connection.send(view) :]
        except OSError as error:
            # To give up on a peer that sends nonsense is right: what comes of it is for the test to say.
            raise _End from error
        finally:
            self.connection.setblocking(True)

    def stall(self) -> None:
        while not self._wait(select.POLLRDHUP, float("inf")) & (select.POLLRDHUP | select.POLLHUP):
            pass
        raise _End

    def drain(self) -> None:
        while True:
            self._wait(select.POLLIN, float("inf"))
            try:
                if not self.connection.recv(1 << 16):
                    raise _End
            except OSError as error:
                raise _End from error

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
