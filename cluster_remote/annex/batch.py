"""A long-lived child that answers one question after another, such as `git annex … --batch`.

Starting git-annex takes 35 ms or more, a question to one that runs already under one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import anyio
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from cluster_remote.annex import child
from cluster_remote.annex.errors import BadAnswer, BatchFailed

__all__ = ["BatchProcess"]

T = TypeVar("T")

# An answer is a line; git-annex's JSON about one key repeats it a few times.
_LINE_LIMIT = 2**20
# Seconds that a child which has closed its output may take to end and to say why.
_LAST_WORDS = 2.0


class BatchProcess:
    """A child that is started with the first question and restarted when it has died since the last one.

    One question at a time: further callers wait. Between questions nothing reads the child's output, so it can never
    hold more than a pipe does; during one, standard error is read along with the answer.
    """

    def __init__(self, argv: Sequence[str], *, cwd: Path | None, env: Mapping[str, str]) -> None:
        self._argv = tuple(argv)
        self._cwd = cwd
        self._env = dict(env)
        self._lock = anyio.Lock()
        self._process: Process | None = None
        self._answers: BufferedByteReceiveStream | None = None
        self._tail = child.Tail()
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
        return None if self._process is None else self._process.pid

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

        async def read(answers: BufferedByteReceiveStream) -> list[bytes]:
            return [await answers.receive_until(b"\n", _LINE_LIMIT) for _ in lines]

        return await self.converse(b"".join(line + b"\n" for line in lines), read, timeout)

    async def converse(
        self, request: bytes, read: Callable[[BufferedByteReceiveStream], Awaitable[T]], timeout: float
    ) -> T:
        """Writes `request` and lets `read` take the answer off the stream; all else is as with `ask`.

        `read` raises nothing but what the stream raises, and BadAnswer. A question may be put twice, so it must be one
        that does no harm the second time.
        """
        with anyio.move_on_after(timeout) as deadline:
            async with self._lock:
                if self._closed:
                    raise BatchFailed(self._argv, None, "was asked after it was closed")
                fresh = self._process is None
                try:
                    return await self._converse_once(request, read)
                except BatchFailed:
                    if fresh:
                        raise
                # It had answered before, so it may have died while nobody asked: that is no failure of this question.
                return await self._converse_once(request, read)
        assert deadline.cancelled_caught
        raise BatchFailed(self._argv, None, f"gave no answer within {timeout:g} seconds", self._tail.text())

    async def _converse_once(self, request: bytes, read: Callable[[BufferedByteReceiveStream], Awaitable[T]]) -> T:
        if self._process is None:
            self._tail = child.Tail()
            self._process = await child.start(self._argv, cwd=self._cwd, env=self._env)
            assert self._process.stdout is not None
            self._answers = BufferedByteReceiveStream(self._process.stdout)
        process, answers, tail = self._process, self._answers, self._tail
        assert answers is not None
        assert process.stdin is not None
        assert process.stderr is not None
        stdin, stderr = process.stdin, process.stderr
        answer: list[T] = []
        failure = ""
        complaints_read = anyio.Event()

        async def complaints() -> None:
            await child.drain(stderr, tail)
            complaints_read.set()

        async def write() -> None:
            try:
                await stdin.send(request)
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                # The reading side sees the end of the child and says so.
                return

        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(complaints)
                tasks.start_soon(write)
                try:
                    answer.append(await read(answers))
                except (anyio.EndOfStream, anyio.IncompleteRead, anyio.BrokenResourceError):
                    failure = "ended instead of answering"
                    with anyio.move_on_after(_LAST_WORDS):
                        await complaints_read.wait()
                        await process.wait()
                except BadAnswer as e:
                    failure = str(e)
                except anyio.DelimiterNotFound:
                    failure = f"answered with a line longer than {_LINE_LIMIT} bytes"
                tasks.cancel_scope.cancel()
        finally:
            if not answer:
                code = process.returncode
                await self._discard()
        if answer:
            return answer[0]
        ending = "" if code is None else f" (exit code {code})"
        raise BatchFailed(self._argv, code, failure + ending, tail.text())

    async def _discard(self) -> None:
        process, self._process, self._answers = self._process, None, None
        if process is not None:
            await child.kill(process)

    async def aclose(self, grace: float = 60.0) -> None:
        """Lets the child end by itself for `grace` seconds (it may have to write what it knows), then ends it.

        Waits for a question that is under way. Cancelled, it ends the child at once. May be called again.
        """
        self._closed = True
        try:
            with anyio.move_on_after(grace):
                async with self._lock:
                    process = self._process
                    if process is not None and process.stdin and process.stdout and process.stderr:
                        await process.stdin.aclose()
                        async with anyio.create_task_group() as tasks:
                            tasks.start_soon(child.drain, process.stdout, child.Tail())
                            tasks.start_soon(child.drain, process.stderr, child.Tail())
                            await process.wait()
        finally:
            await self._discard()
