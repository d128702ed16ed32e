"""Query a long-lived child process, such as `git annex … --batch`.

Starting git-annex takes at least 35 ms, querying a running one less than 1 ms. So per-file queries go straight to the
child's pipes, and the event loop is only used for waiting.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import anyio

from cluster_remote.annex.child import PipedChild
from cluster_remote.annex.errors import BadAnswer, BatchFailed

__all__ = ["Answers", "BatchProcess"]

T = TypeVar("T")

# Maximum bytes of a line. git-annex's JSON about a key repeats the key a few times.
_LINE_LIMIT = 2**20
# Bytes to read at once.
_CHUNK = 2**16
# Seconds for a child that has closed its output to exit and say why.
_EXIT = 2.0


class _Ended(Exception):
    """The child has closed its output."""


class Answers:
    """A child's output. Every method may also raise _Ended, which only the owner handles."""

    def __init__(self, child: PipedChild) -> None:
        self._child = child
        self._buffer = bytearray()

    async def receive(self) -> bytes:
        """Return at least one byte."""
        if not self._buffer:
            await self._fill()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def receive_line(self, limit: int = _LINE_LIMIT) -> bytes:
        """Return a line without its newline. Raises BadAnswer if it has more than `limit` bytes."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise BadAnswer(f"answered with a line longer than {limit} bytes")
            await self._fill()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def receive_exactly(self, length: int) -> bytes:
        """Return exactly `length` bytes."""
        while len(self._buffer) < length:
            await self._fill()
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    async def _fill(self) -> None:
        data = await self._child.receive(_CHUNK)
        if not data:
            raise _Ended
        self._buffer += data


class _Questions:
    """What one caller asks with `ask_all`."""

    def __init__(self, lines: Sequence[bytes]) -> None:
        self.lines = lines
        self.answers: list[bytes] | None = None
        # Whether to ask them alone, because something failed when they were asked together with others'.
        self.alone = False


class BatchProcess:
    """A child that starts with the first question, and is restarted if it has died since the last one.

    Answers one request at a time; other callers wait, and the one-line questions of all who wait are asked together.
    Nothing reads the child's output between requests, so at most a pipe's capacity is buffered.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        self._argv = tuple(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._lock = anyio.Lock(fast_acquire=True)
        # Those without an answer so far, and who may ask them.
        self._asked: list[_Questions] = []
        self._turn = anyio.Lock(fast_acquire=True)
        self._child: PipedChild | None = None
        self._answers: Answers | None = None
        self._stderr_tail = ""
        self._closed = False

    async def __aenter__(self) -> BatchProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def pid(self) -> int | None:
        """Return the child's process id while it is running."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Start the child in advance, so that it is ready for the first question. Raises CommandFailed."""
        if self._child is None and not self._closed:
            self._stderr_tail = ""
            self._child = PipedChild(self._argv, cwd=self._cwd, env=self._env)
            self._answers = Answers(self._child)

    async def ask(self, line: bytes, timeout: float) -> bytes:
        """Send `line` and return one line of answer, both without the newline.

        Raises BatchFailed if there is no answer within `timeout` seconds. A timeout or a cancellation kills the child,
        so that no later question can get this one's answer; the next question starts another child.
        """
        return (await self.ask_all([line], timeout))[0]

    async def ask_all(self, lines: Sequence[bytes], timeout: float) -> list[bytes]:
        """Send several one-line questions at once and return their one-line answers in order."""
        for line in lines:
            if b"\n" in line:
                raise ValueError("a question to a batch process is one line")

        mine = _Questions(lines)
        self._asked.append(mine)
        try:
            with anyio.move_on_after(timeout):
                async with self._turn:
                    while mine.answers is None:
                        await self._ask_waiting(mine, timeout)
                    return mine.answers
        finally:
            self._asked.remove(mine)
        raise self._too_late(timeout)

    async def _ask_waiting(self, mine: _Questions, timeout: float) -> None:
        """Ask everything that waits, or `mine` alone; if that fails for others' sake, `mine` has no answers yet."""
        group = [mine] if mine.alone else [each for each in self._asked if each.answers is None and not each.alone]
        lines = [line for each in group for line in each.lines]

        async def read(answers: Answers) -> list[bytes]:
            return [await answers.receive_line() for _ in lines]

        try:
            found = iter(await self.converse(b"".join(line + b"\n" for line in lines), read, timeout))
        except BatchFailed:
            if len(group) == 1:
                raise
            for each in group:
                each.alone = True
        else:
            for each in group:
                each.answers = [next(found) for _ in each.lines]

    async def converse(self, request: bytes, read: Callable[[Answers], Awaitable[T]], timeout: float) -> T:
        """Send `request` and let `read` parse the answer; otherwise like `ask`.

        `read` may only raise BadAnswer and what the stream raises. The request must be idempotent, because it may be
        sent twice.
        """
        with anyio.move_on_after(timeout) as deadline:
            async with self._lock:
                if self._closed:
                    raise BatchFailed(self._argv, None, "was queried after it was closed")
                fresh = self._child is None
                try:
                    return await self._converse_once(request, read)
                except BatchFailed:
                    if fresh:
                        raise
                # It had answered before, so it probably died while idle; retry with a new child.
                return await self._converse_once(request, read)
        assert deadline.cancelled_caught
        raise self._too_late(timeout)

    def _too_late(self, timeout: float) -> BatchFailed:
        return BatchFailed(self._argv, None, f"gave no answer within {timeout:g} seconds", self._stderr_tail)

    async def _converse_once(self, request: bytes, read: Callable[[Answers], Awaitable[T]]) -> T:
        self.start()
        child, answers = self._child, self._answers
        assert child is not None
        assert answers is not None
        answer: list[T] = []
        failure, code = "", None
        try:
            rest = child.send_at_once(request)
            answer.append(await (_while_sending(child, rest, answers, read) if rest else read(answers)))
        except _Ended:
            failure = "ended instead of answering"
            with anyio.move_on_after(_EXIT):
                await child.wait()
            code = child.returncode
        except BadAnswer as error:
            failure = str(error)
        finally:
            if not answer:
                await self._discard()
        if answer:
            return answer[0]
        ending = "" if code is None else f" (exit code {code})"
        raise BatchFailed(self._argv, code, failure + ending, child.complaint())

    async def _discard(self) -> None:
        child, self._child, self._answers = self._child, None, None
        if child is not None:
            self._stderr_tail = child.complaint()
            await child.kill()

    async def aclose(self, grace: float = 60.0) -> None:
        """Give the child `grace` seconds to exit (it may have to flush data), then kill it.

        Waits for a question in progress. Kills the child at once if cancelled. May be called again.
        """
        self._closed = True
        try:
            with anyio.move_on_after(grace):
                async with self._lock:
                    if self._child is not None:
                        self._child.close_input()
                        while await self._child.receive(_CHUNK):
                            pass
                        await self._child.wait()
        finally:
            await self._discard()


async def _while_sending(
    child: PipedChild, rest: memoryview, answers: Answers, read: Callable[[Answers], Awaitable[T]]
) -> T:
    """Send and read concurrently, for a request larger than a pipe: the child may answer before it has all of it."""
    outcome: list[T] = []
    failure: list[_Ended | BadAnswer] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child.send, rest)
        try:
            outcome.append(await read(answers))
        except (_Ended, BadAnswer) as error:
            failure.append(error)
        tasks.cancel_scope.cancel()
    if failure:
        raise failure[0]
    return outcome[0]
