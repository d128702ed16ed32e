"""CONNECT: a client's git talks to the gateway's own git repository, by way of DATA messages in both directions.

The client cannot close one direction alone, so the conversation ends when git has ended here: with CONNECTDONE and
its exit code, after which the gateway hangs up.

A client that may not have what it asks for is told so in git's own way: ERROR instead makes git-remote-p2p-annex wait
for ever (observed with git-annex 10.20261026), while git shows its user what a server sends it in an ERR packet.
"""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import anyio
from anyio.abc import Process

from cluster_remote.annex import child
from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.annex.repository import Repository, foreign_environment
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.messages import Connect, ConnectDone, Data, describe
from cluster_remote.p2p.relay import Client, ClientGone, ClientMisbehaved
from cluster_remote.p2p.session import SourceReading
from cluster_remote.p2p.stream import MessageStream

__all__ = ["SERVICES", "GitService"]

SERVICES = {"git-upload-pack": "upload-pack", "git-receive-pack": "receive-pack"}
"""What a client may ask for, and git's command for it."""

# Seconds in which neither side says anything, after which both are given up. A hook may take its time.
_SILENCE = 3600.0
# Seconds that git gets to end by itself once its client has gone, before it is told to, and before it is made to.
_PATIENCE = 10.0
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class GitService:
    """The way to a git repository. `note` is told what git said on its standard error, if it failed.

    `before_fetch` brings the repository's branches up to date, before somebody fetches them.
    """

    repository: Repository
    before_fetch: Callable[[], Awaitable[None]]
    note: Callable[[str], None] | None = None
    denied: str | None = None
    """Why this client may not have it at all."""
    silence: float = _SILENCE

    async def __call__(self, stream: MessageStream, service: str, refusal: str | None) -> None:
        """Carries a client's CONNECT to its end; with a `refusal`, all that it gets is that.

        Raises ClientGone, ClientMisbehaved.
        """
        client = Client(stream)
        if service not in SERVICES:
            raise ClientMisbehaved(f"{describe(Connect(service))[:100]}: there is no such service")
        if (why := self.denied or refusal) is not None:
            await _refuse(client, why)
            return
        if service == "git-upload-pack":
            try:
                await self.before_fetch()
            except AnnexError as error:
                # What can be fetched is old, then, but not wrong.
                self._noted(str(error))
        command = ("git", SERVICES[service], str(self.repository.git_dir))
        try:
            process = await child.start(command, cwd=None, env=foreign_environment())
        except CommandFailed as error:
            self._noted(str(error))
            await _refuse(client, f"{service} cannot be started on the gateway")
            return
        tail = child.Tail()
        try:
            await _Relay(client, process, self.silence, tail).run()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
        if process.returncode:
            self._noted(f"{service} ended with exit code {process.returncode}: {tail.text()}")

    def _noted(self, text: str) -> None:
        if self.note is not None:
            self.note(text)


class _Relay:
    """Both directions of one conversation. Where one of them ends, all is over."""

    def __init__(self, client: Client, process: Process, silence: float, tail: child.Tail) -> None:
        self._client = client
        self._process = process
        self._silence = silence
        self._tail = tail
        self._heard = anyio.CancelScope()
        self._failure: ClientGone | ClientMisbehaved | None = None

    async def run(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with self._heard:
            self._something_moved()
            async with anyio.create_task_group() as tasks:

                async def one_way(relay: Callable[[], Awaitable[None]]) -> None:
                    try:
                        await relay()
                    except (ClientGone, ClientMisbehaved) as failure:
                        self._failure = failure
                    except SessionError as error:
                        self._failure = ClientGone(str(error))
                    tasks.cancel_scope.cancel()

                tasks.start_soon(child.drain, stderr, self._tail)
                tasks.start_soon(one_way, self._to_git)
                tasks.start_soon(one_way, self._from_git)
        if self._failure is not None:
            raise self._failure
        if self._heard.cancelled_caught:
            raise ClientMisbehaved(f"neither git nor its client said anything for {self._silence:.3g} seconds", None)

    def _something_moved(self) -> None:
        self._heard.deadline = anyio.current_time() + self._silence

    async def _to_git(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        listening = True
        while True:
            match await self._client.receive("relaying to git", unhurried=True):
                case Data(length):
                    async for chunk in self._client.stream.receive_data(length):
                        self._something_moved()
                        if listening:
                            try:
                                await stdin.send(chunk)
                            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                                # git has heard enough. What it says is still to be passed on.
                                listening = False
                case other:
                    raise ClientMisbehaved(f"{describe(other)[:100]} in place of DATA")

    async def _from_git(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                chunk = await stdout.receive(_CHUNK)
            except anyio.EndOfStream:
                break
            self._something_moved()
            await self._client.send_content(_Chunk(chunk), with_validity=False)
        await self._client.send(ConnectDone(await self._process.wait()))


async def _refuse(client: Client, why: str) -> None:
    packet = f"ERR {why}".encode()
    await client.send_content(_Chunk(b"%04x" % (len(packet) + 4) + packet), with_validity=False)
    await client.send(ConnectDone(1))


class _Chunk(SourceReading):
    def __init__(self, chunk: bytes) -> None:
        self.length = len(chunk)
        self._chunk = chunk

    async def chunks(self) -> AsyncIterator[bytes]:
        yield self._chunk

    async def valid(self) -> bool:
        return True


async def _end(process: Process) -> None:
    """Ends git, which may be in the middle of taking a push: it is given time to finish, then to tidy up."""
    if process.returncode is None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdin.aclose()
        with anyio.move_on_after(_PATIENCE):
            async with anyio.create_task_group() as tasks:
                # Nobody wants to hear it any more, but git must be able to say it.
                tasks.start_soon(child.drain, process.stdout, child.Tail())
                tasks.start_soon(child.drain, process.stderr, child.Tail())
                await process.wait()
                tasks.cancel_scope.cancel()
    if process.returncode is None:
        try:
            os.killpg(process.pid, signal.SIGTERM)
        except ProcessLookupError:
            pass
        with anyio.move_on_after(_PATIENCE):
            await process.wait()
    await child.kill(process)
