"""Extend annexremote's external special remote protocol to arbitrary keys and file names, and to ASYNC.

annexremote strips any whitespace from git-annex's lines, including a control character at the end of a file name; and
it mistakes a TypeError in the program for a protocol error by git-annex.
"""

from __future__ import annotations

import io
import sys
import threading
from contextlib import contextmanager

from annexremote import Master, ProtocolError, RemoteError, SpecialRemote, UnsupportedRequest
from annexremote.annexremote import AnnexError, Protocol

from cluster_remote.p2p.text import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    import typing
    from collections.abc import Callable, Coroutine, Iterator
    from typing import Any

    class Lines(typing.Protocol):
        """What a Master reads from."""

        def readline(self) -> str:
            """Return a line with its newline; empty at the end."""


__all__ = ["AnnexMaster", "Questions", "is_error", "one_line", "standard_streams"]


def one_line(text: str) -> str:
    """Return a message that fits on a line of the protocol, and is safe to print."""
    return printable(text, _MAX_MESSAGE) or "unknown error"


# Maximum characters of one message to git-annex: enough for every node of a large cluster.
_MAX_MESSAGE = 16_000
# The most debug messages to hold back.
_MAX_HELD = 64

# Requests that are handled in the event loop, and those that need it for a session.
_IN_THE_LOOP = frozenset({"CHECKPRESENT", "REMOVE", "TRANSFER"})
_WITH_SESSIONS = _IN_THE_LOOP | {"INITREMOTE", "WHEREIS"}
# The extensions of git-annex that we use.
_EXTENSIONS = ("INFO", "ASYNC", "UNAVAILABLERESPONSE")


def is_error(line: str) -> bool:
    """Return whether a line is an ERROR, which has no job number in either direction."""
    return line.startswith("ERROR ")


def _word(line: str) -> str:
    return line.rstrip("\n").partition(" ")[0].upper()


class _Protocol(Protocol):  # type: ignore[misc] # annexremote has no types
    def check_key(self, key: str) -> None:
        # The key is checked where it is parsed, by git-annex's rules rather than Python's.
        pass

    def do_EXTENSIONS(self, offered: str = "") -> str:
        self.extensions = offered.split(" ")
        return " ".join(["EXTENSIONS", *(name for name in _EXTENSIONS if name in self.extensions)])

    def do_GETAVAILABILITY(self) -> str:
        return f"AVAILABILITY {self.remote.getavailability().upper()}"

    def do_GETORDERED(self) -> str:
        # Files are written from start to end, or appear as a whole.
        return "ORDERED"

    def do_ERROR(self, message: str = "") -> str:
        raise ProtocolError(f"git-annex sent an error: {message}")

    def command(self, line: str) -> Any:
        word, _space, parameters = line.partition(" ")
        method = self.lookupMethod(word) or self.do_UNKNOWN
        try:
            reply = method(parameters) if parameters else method()
        except TypeError as error:
            # Only for an error in the call itself, not inside the method.
            if error.__traceback__ is None or error.__traceback__.tb_next is not None:
                raise
            raise ProtocolError(f"{word} came with {'too many' if parameters else 'no'} parameters") from None
        if method != self.do_EXPORT:
            self.exporting = False
        return reply

    async def transact(self, line: str) -> str:
        """Handle a request about content, like annexremote's blocking methods."""
        word, _space, parameters = line.partition(" ")
        first, _space, rest = parameters.partition(" ")
        key, _space, file = rest.partition(" ")
        remote = self.remote
        if not parameters:
            raise ProtocolError(f"{word} came without parameters")
        try:
            match word.upper(), first:
                case "CHECKPRESENT", _:
                    answer = "SUCCESS" if await remote.checkpresent(parameters) else "FAILURE"
                    return f"CHECKPRESENT-{answer} {parameters}"
                case "REMOVE", _:
                    await remote.remove(parameters)
                    return f"REMOVE-SUCCESS {parameters}"
                case "TRANSFER", "STORE" | "RETRIEVE" if file:
                    await (remote.transfer_store if first == "STORE" else remote.transfer_retrieve)(key, file)
                    return f"TRANSFER-SUCCESS {first} {key}"
        except RemoteError as error:
            match word.upper():
                case "CHECKPRESENT":
                    return f"CHECKPRESENT-UNKNOWN {parameters} {error}"
                case "REMOVE":
                    return f"REMOVE-FAILURE {parameters} {error}"
                case _:
                    return f"TRANSFER-FAILURE {first} {key} {error}"
        if first in ("STORE", "RETRIEVE"):
            raise ProtocolError(f"TRANSFER {first} came without a key and a file")
        raise UnsupportedRequest


class Questions:
    """Allow one question to git-annex at a time, from any job: an ERROR in reply does not name the job."""

    def __init__(self) -> None:
        self._one = threading.Lock()
        self.asking: AnnexMaster | None = None

    @contextmanager
    def asked_by(self, master: AnnexMaster) -> Iterator[None]:
        """Hold while a question has no reply."""
        with self._one:
            self.asking = master
            try:
                yield
            finally:
                self.asking = None


class AnnexMaster(Master):  # type: ignore[misc] # annexremote has no types
    """Exchange messages with git-annex, for all or for one of its jobs."""

    input: Lines

    def __init__(self, output: io.TextIOWrapper, questions: Questions) -> None:
        super().__init__(output)
        self._questions = questions
        # Most messages come from the event loop, but some requests are handled by threads.
        self._sending = threading.Lock()
        self._held: list[str] = []
        self._conversations = 0

    @property
    def asynchronous(self) -> bool:
        """Return whether git-annex and this program have agreed on the ASYNC extension."""
        return "ASYNC" in self.protocol.extensions

    @property
    def talking(self) -> bool:
        """Return whether git-annex's next message to this job is a reply to a question."""
        return self._conversations > 0

    def LinkRemote(self, remote: SpecialRemote) -> None:
        self.remote = remote
        self.protocol = _Protocol(remote)

    def _ask(self, request: str, keyword: str, count: int) -> Any:
        with self._questions.asked_by(self):
            return super()._ask(request, keyword, count)

    def greet(self) -> None:
        """Send the first line of the protocol."""
        self.say(self.protocol.version)

    def needs_sessions(self, line: str) -> bool:
        """Return whether a request needs the event loop."""
        word = _word(line)
        if word == "GETINFO":
            try:
                return bool(self.remote.info_needs_sessions())
            except RemoteError:
                # The answer will report the error.
                return True
        return word in _WITH_SESSIONS

    def answer(self, line: str) -> bool:
        """Answer one request; return False if the conversation cannot continue."""
        return self._send_reply(*self._reply_to(line))

    async def answer_in_the_loop(self, line: str, converse: Callable[..., Coroutine[Any, Any, Any]]) -> bool:
        """Answer one request concurrently with others; `converse` runs code that may ask git-annex in a thread."""
        if _word(line) not in _IN_THE_LOOP:
            return self._send_reply(*await converse(self, self._reply_to, line))
        try:
            reply = await self.protocol.transact(line.removesuffix("\n"))
        except Exception as error:  # noqa: BLE001 -- a job that ended silently would leave git-annex waiting
            return self._send_reply(*_last_reply(error))
        return self._send_reply(reply, True)

    @contextmanager
    def conversation(self) -> Iterator[None]:
        """Treat git-annex's messages to this job as replies, until the end of the context."""
        self._conversations += 1
        try:
            yield
        finally:
            self._conversations -= 1

    def _reply_to(self, line: str) -> tuple[str, bool]:
        try:
            return self.protocol.command(line.removesuffix("\n")) or "", True
        except RemoteError as error:
            # This kind of request has no way to report a failure.
            self.debug(one_line(str(error)))
            return "UNSUPPORTED-REQUEST", True
        except Exception as error:  # noqa: BLE001 -- see above
            return _last_reply(error)

    def _send_reply(self, reply: str, go_on: bool) -> bool:
        if reply:
            self.say(reply)
        return go_on

    def debug(self, *args: object) -> None:
        """Send a debug message like annexremote, but possibly later, together with the next message.

        Most users never see these messages, so each must not cost a context switch. The code that waits for requests
        flushes them periodically.
        """
        with self._sending:
            self._held.append(" ".join(["DEBUG", *map(str, args)]))
            is_full = len(self._held) >= _MAX_HELD
        if is_full:
            self.flush()

    def flush(self) -> None:
        """Send the held debug messages."""
        self.say("")

    def say(self, line: str) -> None:
        """Send one message, or several on a line each, after the held debug messages."""
        with self._sending:
            lines = [*self._held, *(line.split("\n") if line else [])]
            self._held = []
            if lines:
                self._write(lines)

    def _write(self, lines: list[str]) -> None:
        self.output.write("".join(f"{line}\n" for line in lines))
        self.output.flush()

    def _send(self, *args: object, **_keywords: object) -> None:
        self.say(" ".join(map(str, args)))


def _last_reply(error: Exception) -> tuple[str, bool]:
    """Return the reply to a request that failed unexpectedly, and whether to continue."""
    match error:
        case BrokenPipeError():
            # git-annex has exited.
            raise error
        case UnsupportedRequest():
            return "UNSUPPORTED-REQUEST", True
        case AnnexError() | SyntaxError():
            # git-annex has violated the protocol; the only option is to exit.
            return f"ERROR {one_line(str(error))}", False
        case _:
            return f"ERROR {one_line(f'internal error: {type(error).__name__}: {error}')}", False


def standard_streams() -> tuple[int, io.TextIOWrapper]:
    """Take over standard input as a descriptor, and standard output as text that preserves any byte.

    Anything printed by mistake goes to standard error from now on.
    """
    output = io.TextIOWrapper(sys.stdout.buffer, encoding="utf-8", errors="surrogateescape", newline="\n")
    sys.stdout = sys.stderr
    return sys.stdin.fileno(), output
