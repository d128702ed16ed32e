"""Dispatch git-annex's requests: one process, one event loop, any number of jobs.

With the ASYNC extension, every line in both directions starts with a job number (`J n …`); without it there is one job,
whose lines have no prefix. Requests that transfer, check or remove content are handled in the event loop, where the
sessions live. All others are handled by code that may ask git-annex questions and wait for the reply: in the main
thread before the loop runs, and in one thread per request from then on. The loop starts with the first request that
needs it, because most runs of the program (LISTCONFIGS, GETCOST) do not.
"""

from __future__ import annotations

import os
import queue
import sys
from collections import deque

from annexremote import RemoteError

from cluster_remote.remote.protocol import AnnexMaster, is_error, one_line, standard_streams
from cluster_remote.remote.remote import ClusterRemote, Shared

TYPE_CHECKING = False
if TYPE_CHECKING:
    import io
    from collections.abc import Callable

__all__ = ["Job", "JobMaster", "Service", "serve"]

_CHUNK = 64 * 1024
# Maximum bytes of a line from git-annex; keys and paths are far shorter.
_MAX_LINE = 1024 * 1024


class _Input:
    """Lines from git-annex, as text that preserves any byte."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self._lines: deque[str] = deque()
        self._rest = b""
        self._ended = False

    def take(self) -> str:
        """Return the next line with its newline; empty at the end of input. Blocks the thread."""
        while not self.ready:
            self.read()
        return self._lines.popleft() if self._lines else ""

    def put_back(self, line: str) -> None:
        """Put a line back in front of the others."""
        self._lines.appendleft(line)

    @property
    def ready(self) -> bool:
        """Return whether there is a line, or the end, without waiting."""
        return bool(self._lines) or self._ended

    def read(self) -> None:
        """Read what is available; wait if nothing is."""
        data = os.read(self.descriptor, _CHUNK)
        self._ended = not data
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > _MAX_LINE:
            print(f"git-annex sent a line of more than {_MAX_LINE} bytes; exiting", file=sys.stderr)
            self._rest, self._ended = b"", True
        self._lines += [f"{line.decode('utf-8', 'surrogateescape')}\n" for line in lines]


class Job:
    """One of git-annex's jobs, which sends its requests one after the other."""

    def __init__(self, master: AnnexMaster, replied: Callable[[Job], str]) -> None:
        self.master = master
        self.replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        """git-annex's reply to a thread that asked it, once the loop runs; empty at the end."""
        self._replied = replied
        master.input = self

    def readline(self) -> str:
        """Return git-annex's reply to a question; empty at the end. Raises RemoteError for an ERROR."""
        reply = self._replied(self)
        if is_error(reply):
            raise RemoteError(one_line(f"git-annex did not answer a question: {reply[len('ERROR ') :].strip()}"))
        return reply


class JobMaster(AnnexMaster):
    """Speak for one job on the shared output. An ERROR concerns all jobs and ends the conversation."""

    def __init__(self, whole: AnnexMaster, number: str, shared: Shared) -> None:
        super().__init__(whole.output, shared.questions)
        self.number = number
        self._whole = whole
        self._prefix = f"J {number} "
        self.LinkRemote(ClusterRemote(self, shared))
        # git-annex announced its extensions before there were jobs.
        self.protocol.extensions = whole.protocol.extensions

    def _write(self, lines: list[str]) -> None:
        self._whole.say("\n".join(line if is_error(line) else self._prefix + line for line in lines))


class Service:
    """Serve one git-annex process, with all its jobs."""

    def __init__(self, stdin: int, stdout: io.TextIOWrapper) -> None:
        self.input = _Input(stdin)
        self.shared = Shared()
        self._whole = AnnexMaster(stdout, self.shared.questions)
        self._whole.LinkRemote(ClusterRemote(self._whole, self.shared))
        # The job of lines without a number.
        self._unnumbered = Job(self._whole, self._replied)
        self._numbered: dict[str, Job] = {}
        self.looping = False
        self.hung_up = False

    def answer_without_sessions(self) -> bool:
        """Answer requests until git-annex hangs up or a request needs the event loop; return whether one does."""
        self._whole.greet()
        while line := self.input.take():
            job, request = self.job_of(line)
            if job.master.needs_sessions(request):
                self.input.put_back(line)
                return True
            if not job.master.answer(request):
                break
        return False

    def job_of(self, line: str) -> tuple[Job, str]:
        """Return the job of a line, and the line as that job expects it."""
        tag, _space, rest = line.partition(" ")
        number, space, request = rest.partition(" ")
        if is_error(line) and self.shared.questions.asking is not None:
            # An ERROR has no number, even with ASYNC.
            return next(job for job in self.jobs() if job.master is self.shared.questions.asking), line
        if not (self._whole.asynchronous and tag == "J" and space):
            return self._unnumbered, line
        if number not in self._numbered:
            self._numbered[number] = Job(JobMaster(self._whole, number, self.shared), self._replied)
        return self._numbered[number], request

    def _replied(self, asking: Job) -> str:
        """Return the next line for a job that has asked a question; keep those for other jobs."""
        if self.looping:
            return "" if self.hung_up else asking.replies.get()
        others: list[str] = []
        try:
            while line := self.input.take():
                job, reply = self.job_of(line)
                if job is asking:
                    return reply
                others.append(line)
            return ""
        finally:
            for line in reversed(others):
                self.input.put_back(line)

    def jobs(self) -> list[Job]:
        """Return all jobs that have sent requests so far."""
        return [self._unnumbered, *self._numbered.values()]


def serve() -> None:
    """Answer git-annex on standard input and output until it hangs up, then close everything."""
    service = Service(*standard_streams())
    if service.answer_without_sessions():
        # This imports everything that sessions need.
        from cluster_remote.remote.loop import run

        run(service)
