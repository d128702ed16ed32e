"""The ASYNC extension: with it, one process serves all of git-annex's jobs.

Every line in both directions begins with the number of a job (`J n …`). A job is a thread in which a Master listens,
exactly as it would to git-annex itself; what comes in for it is put into its queue, what it says gets its number. So
the special remote is the same with and without the extension, and its jobs share connections, logs and event loop.
"""

from __future__ import annotations

import queue
import threading
from typing import TYPE_CHECKING

from cluster_remote.remote.loop import EventLoop
from cluster_remote.remote.protocol import AnnexMaster
from cluster_remote.remote.remote import ClusterRemote, Shared
from cluster_remote.transport.tracing import JOB

if TYPE_CHECKING:
    import io

__all__ = ["serve"]

# Seconds that jobs get to notice that git-annex is gone and their requests are cancelled.
_PARTING = 10.0


class _Lines:
    """What git-annex says to one job, as something to read lines from."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def put(self, line: str) -> None:
        """The empty text is the end."""
        self._lines.put(line)

    def readline(self) -> str:
        return self._lines.get()


class _JobMaster(AnnexMaster):
    """Speaks for one job over the line that all of them share."""

    def __init__(self, whole: AnnexMaster, number: str) -> None:
        super().__init__(whole.output)
        self._whole = whole
        self._prefix = f"J {number} "

    def _write(self, lines: list[str]) -> None:
        self._whole.say("\n".join(self._prefix + line for line in lines))


def serve(stdin: io.TextIOWrapper, stdout: io.TextIOWrapper) -> None:
    """Answers git-annex until it hangs up, then closes everything."""
    loop = EventLoop()
    shared = Shared(loop)
    whole = AnnexMaster(stdout)
    whole.LinkRemote(ClusterRemote(whole, shared))
    jobs: dict[str, tuple[_Lines, threading.Thread]] = {}
    try:
        whole.greet()
        whole.input = stdin
        while line := stdin.readline():
            tag, _space, rest = line.partition(" ")
            number, space, request = rest.partition(" ")
            if tag == "J" and space and whole.asynchronous:
                if number not in jobs:
                    jobs[number] = _start(whole, number, shared)
                jobs[number][0].put(request)
            elif not whole.answer(line):
                break
    finally:
        for lines, _thread in jobs.values():
            lines.put("")
        try:
            if jobs:
                # Nobody is left to hear how the requests under way end.
                shared.abandon()
            for _lines, thread in jobs.values():
                thread.join(_PARTING)
        finally:
            shared.close()
            loop.close()


def _start(whole: AnnexMaster, number: str, shared: Shared) -> tuple[_Lines, threading.Thread]:
    lines = _Lines()
    master = _JobMaster(whole, number)
    master.LinkRemote(ClusterRemote(master, shared))
    # What git-annex offered was said before there were jobs.
    master.protocol.extensions = whole.protocol.extensions

    def listen() -> None:
        # What a thread sets here is seen in the requests that it has the event loop run.
        JOB.set(number)
        try:
            master.Listen(lines)
        except BrokenPipeError:
            # git-annex is gone; the thread that reads from it sees that too, and ends everything.
            return

    thread = threading.Thread(target=listen, name=f"job {number}", daemon=True)
    thread.start()
    return lines, thread
