"""A long-lived child that answers one question after another, such as `git annex … --batch`.

Starting git-annex takes 35 ms or more, a question to one that runs already under one. So what is asked for every file
goes straight to the child's pipes, and the event loop is only needed for waiting.
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

# An answer is a line; git-annex's JSON about one key repeats it a few times.
_LINE_LIMIT = 2**20
# Bytes that are read at once.
_CHUNK = 2**16
# Seconds that a child which has closed its output may take to end and to say why.
_LAST_WORDS = 2.0


class _Ended(Exception):
    """The child has closed its output."""


class Answers:
    """What a child writes. Every method may also find that the child has ended, which only its owner has to know."""

    def __init__(self, child: PipedChild) -> None:
        self._child = child
        self._buffer = bytearray()

    async def receive(self) -> bytes:
        """Some bytes, at least one."""
        if not self._buffer:
            await self._more()
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    async def receive_line(self, limit: int = _LINE_LIMIT) -> bytes:
        """A line without its newline. Raises BadAnswer if it has more than `limit` bytes."""
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            searched = len(self._buffer)
            if searched > limit:
                raise BadAnswer(f"answered with a line longer than {limit} bytes")
            await self._more()
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def receive_exactly(self, length: int) -> bytes:
        """So many bytes."""
        while len(self._buffer) < length:
            await self._more()
        data = bytes(self._buffer[:length])
        del self._buffer[:length]
        return data

    async def _more(self) -> None:
        data = await self._child.receive(_CHUNK)
        if not data:
            raise _Ended
        self._buffer += data


class BatchProcess:
    """A child that is started with the first question and restarted when it has died since the last one.

    One question at a time: further callers wait. Between questions nothing reads the child's output, so it can never
    hold more than a pipe does.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        self._argv = tuple(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._lock = anyio.Lock(fast_acquire=True)
        self._child: PipedChild | None = None
        self._answers: Answers | None = None
        self._last_words = ""
        self._closed = False

    async def __aenter__(self) -> BatchProcess:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def pid(self) -> int | None:
        """The child's process id while one runs."""
        return None if self._child is None else self._child.pid

    def start(self) -> None:
        """Starts the child if none runs, so that it is ready when the first question comes. Raises CommandFailed."""
        if self._child is None and not self._closed:
            self._last_words = ""
            self._child = PipedChild(self._argv, cwd=self._cwd, env=self._env)
            self._answers = Answers(self._child)

    async def ask(self, line: bytes, timeout: float) -> bytes:
        """Writes `line` (without its newline) and gives back one line of answer, without its newline.

        Raises BatchFailed if there is none within `timeout` seconds; the child is then gone, and the next question
        starts another. The same holds for a cancellation: no later question can get this one's answer.
        """
        return (await self.ask_all([line], timeout))[0]

    async def ask_all(self, lines: Sequence[bytes], timeout: float) -> list[bytes]:
        """Several questions at once, of one line each way; the answers in the order of the questions."""
        for line in lines:
            if b"\n" in line:
                raise ValueError("a question to a batch process is one line")

        async def read(answers: Answers) -> list[bytes]:
            return [await answers.receive_line() for _ in lines]

        return await self.converse(b"".join(line + b"\n" for line in lines), read, timeout)

    async def converse(self, request: bytes, read: Callable[[Answers], Awaitable[T]], timeout: float) -> T:
        """Writes `request` and lets `read` take the answer off the stream; all else is as with `ask`.

        `read` raises nothing but what the stream raises, and BadAnswer. A question may be put twice, so it must be one
        that does no harm the second time.
        """
        with anyio.move_on_after(timeout) as deadline:
            async with self._lock:
                if self._closed:
                    raise BatchFailed(self._argv, None, "was asked after it was closed")
                fresh = self._child is None
                try:
                    return await self._converse_once(request, read)
                except BatchFailed:
                    if fresh:
                        raise
                # It had answered before, so it may have died while nobody asked: that is no failure of this question.
                return await self._converse_once(request, read)
        assert deadline.cancelled_caught
        raise BatchFailed(self._argv, None, f"gave no answer within {timeout:g} seconds", self._last_words)

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
            with anyio.move_on_after(_LAST_WORDS):
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
            self._last_words = child.complaint()
            await child.kill()

    async def aclose(self, grace: float = 60.0) -> None:
        """Lets the child end by itself for `grace` seconds (it may have to write what it knows), then ends it.

        Waits for a question that is under way. Cancelled, it ends the child at once. May be called again.
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
    """What `read` gives, for a question that does not fit into a pipe: the child may answer before it has all of it."""
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
