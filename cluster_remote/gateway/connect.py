"""CONNECT: a client's git talks to the gateway's own git repository, through DATA messages in both directions.

The client cannot close only one direction, so the conversation ends when git exits on the gateway: with CONNECTDONE and
its exit code, after which the gateway hangs up.

A refusal is sent in git's own protocol: ERROR would make git-remote-p2p-annex wait forever (observed with git-annex
10.20261026), while git shows its user an ERR packet from the server.
"""

from __future__ import annotations

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
"""The services that a client may request, and git's command for each."""

# Seconds of silence from both sides before both are stopped. A hook may take its time.
_SILENCE = 3600.0
# Seconds for git to exit by itself after its client has disconnected; then the same again after SIGTERM.
_EXIT_WAIT = 10.0
_CHUNK = 64 * 1024


@dataclass(frozen=True)
class GitService:
    """Access to a git repository. `note` gets what git wrote to standard error, if it failed.

    `before_fetch` updates the repository's branches before a fetch.
    """

    repository: Repository
    before_fetch: Callable[[], Awaitable[None]]
    note: Callable[[str], None] | None = None
    denied: str | None = None
    """Why this client has no access at all."""
    silence: float = _SILENCE

    async def __call__(self, stream: MessageStream, service: str, refusal: str | None) -> None:
        """Handle a client's CONNECT to its end; with a `refusal`, only send that.

        Raises ClientGone, ClientMisbehaved.
        """
        client = Client(stream)
        if service not in SERVICES:
            raise ClientMisbehaved(f"{describe(Connect(service))[:100]}: no such service")
        if (why := self.denied or refusal) is not None:
            await _refuse(client, why)
            return
        if service == "git-upload-pack":
            try:
                await self.before_fetch()
            except AnnexError as error:
                # The fetch then gets old records, but no wrong ones.
                self._log(str(error))
        command = ("git", SERVICES[service], str(self.repository.git_dir))
        try:
            process = await child.start(command, cwd=None, env=foreign_environment())
        except CommandFailed as error:
            self._log(str(error))
            await _refuse(client, f"the gateway cannot start {service}")
            return
        tail = child.Tail()
        try:
            await _Relay(client, process, self.silence, tail).run()
        finally:
            with anyio.CancelScope(shield=True):
                await _end(process)
        if process.returncode:
            self._log(f"{service} exited with code {process.returncode}: {tail.text()}")

    def _log(self, text: str) -> None:
        if self.note is not None:
            self.note(text)


class _Relay:
    """Both directions of one conversation. When one ends, the other does too."""

    def __init__(self, client: Client, process: Process, silence: float, tail: child.Tail) -> None:
        self._client = client
        self._process = process
        self._silence = silence
        self._tail = tail
        self._silence_scope = anyio.CancelScope()
        self._failure: ClientGone | ClientMisbehaved | None = None

    async def run(self) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with self._silence_scope:
            self._extend_deadline()
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
        if self._silence_scope.cancelled_caught:
            raise ClientMisbehaved(f"neither git nor its client sent anything for {self._silence:.3g} seconds", None)

    def _extend_deadline(self) -> None:
        self._silence_scope.deadline = anyio.current_time() + self._silence

    async def _to_git(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        git_reads = True
        while True:
            match await self._client.receive("relaying to git", unhurried=True):
                case Data(length):
                    async for chunk in self._client.stream.receive_data(length):
                        self._extend_deadline()
                        if git_reads:
                            try:
                                await stdin.send(chunk)
                            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                                # Still pass on git's output.
                                git_reads = False
                case other:
                    raise ClientMisbehaved(f"{describe(other)[:100]} instead of DATA")

    async def _from_git(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        while True:
            try:
                chunk = await stdout.receive(_CHUNK)
            except anyio.EndOfStream:
                break
            self._extend_deadline()
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
    """Terminate git, which may be in the middle of receiving a push: give it time to finish, then to clean up."""
    if process.returncode is None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdin.aclose()
        with anyio.move_on_after(_EXIT_WAIT):
            async with anyio.create_task_group() as tasks:
                # Discard git's output, so that git does not block on a full pipe.
                tasks.start_soon(child.drain, process.stdout, child.Tail())
                tasks.start_soon(child.drain, process.stderr, child.Tail())
                await process.wait()
                tasks.cancel_scope.cancel()
    if process.returncode is None:
        child.send_signal(process.pid, signal.SIGTERM)
        with anyio.move_on_after(_EXIT_WAIT):
            await process.wait()
    await child.kill(process)
