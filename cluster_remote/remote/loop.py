"""Answer git-annex's requests concurrently in an event loop, until git-annex hangs up."""

from __future__ import annotations

import anyio
import anyio.lowlevel
from anyio.abc import TaskGroup

from cluster_remote.remote.jobs import Job, JobMaster, Service
from cluster_remote.remote.requests import Requests, converse
from cluster_remote.transport.tracing import JOB

__all__ = ["run"]

# Seconds for requests to notice that git-annex has exited.
_CANCELLING = 10.0
# Maximum delay of debug messages, in seconds.
_FLUSH_INTERVAL = 0.5


def run(service: Service) -> None:
    """Answer requests until git-annex hangs up, and close everything."""
    anyio.run(_Loop(service).answer_all)


class _Loop:
    def __init__(self, service: Service) -> None:
        self._service = service
        self._requests = service.shared.requests = Requests()

    async def answer_all(self) -> None:
        service = self._service
        service.looping = True
        self._listening = anyio.CancelScope()
        try:
            async with anyio.create_task_group() as flushing:
                flushing.start_soon(self._flush_periodically)
                async with anyio.create_task_group() as requests:
                    try:
                        with self._listening:
                            await self._listen(requests)
                    finally:
                        # Release threads that wait for a reply, which would keep the program from exiting.
                        service.hung_up = True
                        for job in service.jobs():
                            job.replies.put("")
                    # git-annex has exited, so the results of running requests do not matter.
                    requests.cancel_scope.deadline = anyio.current_time() + _CANCELLING
                    self._requests.abandon()
                flushing.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await self._requests.aclose()

    async def _listen(self, requests: TaskGroup) -> None:
        while line := await self._take():
            job, text = self._service.job_of(line)
            if job.master.talking:
                job.replies.put(text)
            else:
                requests.start_soon(self._answer, job, text)

    async def _take(self) -> str:
        """Return the next line from git-annex, without blocking the event loop."""
        lines = self._service.input
        while not lines.ready:
            try:
                await anyio.wait_readable(lines.descriptor)
            except PermissionError:
                # A regular file, which can always be read.
                await anyio.lowlevel.checkpoint()
            lines.read()
        return lines.take()

    async def _answer(self, job: Job, request: str) -> None:
        if isinstance(job.master, JobMaster):
            JOB.set(job.master.number)
        try:
            if not await job.master.answer_in_the_loop(request, converse):
                self._listening.cancel()
        except BrokenPipeError:
            # git-annex has exited; another process may still hold our input open.
            self._listening.cancel()

    async def _flush_periodically(self) -> None:
        while True:
            await anyio.sleep(_FLUSH_INTERVAL)
            try:
                for job in self._service.jobs():
                    job.master.flush()
            except BrokenPipeError:
                self._listening.cancel()
                return
