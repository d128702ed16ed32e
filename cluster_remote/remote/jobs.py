"""git-annex's requests, from the first line to the last: one process, one event loop, any number of jobs.

With the ASYNC extension every line in both directions begins with the number of a job (`J n …`); without it there is
one job, whose lines have no beginning of their own. What moves, checks or removes content is answered in the event
loop, which is where the sessions live. All else is answered by code that may ask git-annex in its turn and waits for
the reply: by the main thread itself before the loop runs, by a thread for each such request from then on. The loop
begins with the first request that needs it, since most runs of the program (LISTCONFIGS, GETCOST) do not.
"""

from __future__ import annotations

import os
import queue
import sys
from collections import deque

from annexremote import RemoteError

from cluster_remote.remote.protocol import AnnexMaster, is_error
from cluster_remote.remote.remote import ClusterRemote, Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable

    from anyio.abc import TaskGroup

__all__ = ["serve"]

# Seconds that requests get to notice that git-annex is gone.
_PARTING = 10.0
# Seconds that debug messages wait at most.
_NOW_AND_THEN = 0.5
_CHUNK = 64 * 1024
# Bytes of one line from git-annex; keys and paths are far shorter.
_LONGEST_LINE = 1024 * 1024


class _Input:
    """Lines from git-annex, as text in which any byte survives."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: deque[str] = deque()
        self._rest = b""
        self._ended = False

    def take(self) -> str:
        """The next line with its newline; the empty text at the end. Waits, and everything with it."""
        while not self._lines and not self._ended:
            self._read()
        return self._lines.popleft() if self._lines else ""

    def put_back(self, line: str) -> None:
        """Makes a line the next one again."""
        self._lines.appendleft(line)

    async def take_in_the_loop(self) -> str:
        """As `take`, but others go on meanwhile."""
        import anyio.lowlevel

        while not self._lines and not self._ended:
            try:
                await anyio.wait_readable(self._descriptor)
            except PermissionError:
                # A file, in which all that there is can be read at any time.
                await anyio.lowlevel.checkpoint()
            self._read()
        return self._lines.popleft() if self._lines else ""

    def _read(self) -> None:
        data = os.read(self._descriptor, _CHUNK)
        self._ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _LONGEST_LINE:
            print(f"git-annex sent a line of more than {_LONGEST_LINE} bytes; this ends here", file=sys.stderr)
            self._rest, self._ended = b"", True
        self._lines += [f"{line.decode('utf-8', 'surrogateescape')}\n" for line in lines]


class _Job:
    """One of git-annex's jobs: what it asks comes one after the other."""

    def __init__(self, master: AnnexMaster, replied: Callable[[_Job], str]) -> None:
        self.master = master
        self.replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        """What git-annex replies to a thread that has asked it, once the loop runs; the empty text at the end."""
        self._replied = replied
        master.input = self

    def readline(self) -> str:
        """What git-annex replies to a question; the empty text at the end. Raises RemoteError for an ERROR."""
        reply = self._replied(self)
        if is_error(reply):
            raise RemoteError(f"git-annex does not tell what it was asked: {reply[len('ERROR ') :].strip()}")
        return reply


class _JobMaster(AnnexMaster):
    """Speaks for one job over the line that all of them share. An ERROR is for all of them, and the end."""

    def __init__(self, whole: AnnexMaster, number: str, shared: Shared) -> None:
        super().__init__(whole.output, shared.questions)
        self.number = number
        self._whole = whole
        self._prefix = f"J {number} "
        self.LinkRemote(ClusterRemote(self, shared))
        # What git-annex offered was said before there were jobs.
        self.protocol.extensions = whole.protocol.extensions

    def _write(self, lines: list[str]) -> None:
        self._whole.say("\n".join(line if is_error(line) else self._prefix + line for line in lines))


class _Service:
    """Everything that is under way for one git-annex."""

    def __init__(self, stdin: int, stdout: io.TextIOWrapper) -> None:
        self._input = _Input(stdin)
        self._shared = Shared()
        self._whole = AnnexMaster(stdout, self._shared.questions)
        self._whole.LinkRemote(ClusterRemote(self._whole, self._shared))
        # The only job there is, unless there are numbers.
        self._only = _Job(self._whole, self._replied)
        self._numbered: dict[str, _Job] = {}
        self._looping = False
        self._hung_up = False

    # Before the loop

    def answer_what_is_simple(self) -> bool:
        """Answers requests until git-annex hangs up, or wants something that needs the event loop; whether it does."""
        self._whole.greet()
        while line := self._input.take():
            job, request = self._job_of(line)
            if job.master.needs_sessions(request):
                self._input.put_back(line)
                return True
            if not job.master.answer(request):
                break
        return False

    def _job_of(self, line: str) -> tuple[_Job, str]:
        """Whose line it is, and the line as that job knows it."""
        tag, _space, rest = line.partition(" ")
        number, space, request = rest.partition(" ")
        if is_error(line) and self._shared.questions.asking is not None:
            # With ASYNC as well, it has no number.
            return next(job for job in self._jobs() if job.master is self._shared.questions.asking), line
        if not (self._whole.asynchronous and tag == "J" and space):
            return self._only, line
        if number not in self._numbered:
            self._numbered[number] = _Job(_JobMaster(self._whole, number, self._shared), self._replied)
        return self._numbered[number], request

    def _replied(self, asking: _Job) -> str:
        if self._looping:
            return "" if self._hung_up else asking.replies.get()
        others: list[str] = []
        try:
            while line := self._input.take():
                job, reply = self._job_of(line)
                if job is asking:
                    return reply
                others.append(line)
            return ""
        finally:
            for line in reversed(others):
                self._input.put_back(line)

    # In the loop

    async def answer_everything(self) -> None:
        """Answers requests until git-annex hangs up, many at once, and closes everything."""
        import anyio

        self._looping = True
        self._listening = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as flushing:
                flushing.start_soon(self._flush_now_and_then)
                async with anyio.create_task_group() as requests:
                    try:
                        with self._listening:
                            await self._listen(requests)
                    finally:
                        # However it came to that: threads that wait for a reply would keep the program from ending.
                        self._hung_up = True
                        for job in self._jobs():
                            job.replies.put("")
                    # Nobody is left to hear how the requests under way end.
                    requests.cancel_scope.deadline = anyio.current_time() + _PARTING
                    self._shared.abandon()
                flushing.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._shared.aclose()

    def _jobs(self) -> list[_Job]:
        return [self._only, *self._numbered.values()]

    async def _listen(self, requests: TaskGroup) -> None:
        while line := await self._input.take_in_the_loop():
            job, text = self._job_of(line)
            if job.master.talking:
                job.replies.put(text)
            else:
                requests.start_soon(self._answer, job, text)

    async def _answer(self, job: _Job, request: str) -> None:
        from cluster_remote.transport.tracing import JOB

        if isinstance(job.master, _JobMaster):
            JOB.set(job.master.number)
        try:
            if not await job.master.answer_in_the_loop(request):
                self._listening.cancel()
        except BrokenPipeError:
            # git-annex is gone, which its end of our input may not show.
            self._listening.cancel()

    async def _flush_now_and_then(self) -> None:
        import anyio

        while True:
            await anyio.sleep(_NOW_AND_THEN)
            try:
                for job in self._jobs():
                    job.master.flush()
            except BrokenPipeError:
                self._listening.cancel()
                return


def serve(stdin: int, stdout: io.TextIOWrapper) -> None:
    """Answers git-annex until it hangs up, then closes everything. `stdin` is a descriptor."""
    service = _Service(stdin, stdout)
    if service.answer_what_is_simple():
        import anyio

        anyio.run(service.answer_everything)
