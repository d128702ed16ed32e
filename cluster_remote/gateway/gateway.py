"""The gateway: lets clients in that have a token, and serves each of them for as long as it stays.

No client can keep others out for long: whoever does not authenticate is dropped soon, there may only be so many of
them and so many clients, and who is one too many is told so. Each client has a session of its own.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from cluster_remote.annex.errors import AnnexError
from cluster_remote.gateway.behind import Behind
from cluster_remote.gateway.errors import CannotListen
from cluster_remote.gateway.listeners import Listener, SocketConnection
from cluster_remote.gateway.tokens import Token, Tokens, read_claim
from cluster_remote.p2p.messages import Auth, AuthFailure, Error, describe
from cluster_remote.p2p.relay import Client, ClientGone, ClientMisbehaved
from cluster_remote.p2p.server import LOCK_RETENTION, Closing, Served, serve
from cluster_remote.p2p.stream import MessageStream
from cluster_remote.p2p.text import printable

__all__ = ["Gateway", "Limits"]

# Seconds for a client to take in what it was told last, before the connection is closed.
_LINGER = 1.0
# How many that were one too many are told so at the same time; any more are hung up on.
_MOST_REFUSALS = 32


@dataclass(frozen=True)
class Limits:
    """How many `clients` may be connected, and besides how many `strangers`, who have not authenticated yet.

    Times are in seconds: `to_authenticate` is what a stranger may take, `after_wrong_token` how long its refusal takes,
    which makes guessing slow; `to_finish` is for requests that are under way when the gateway is told to stop.
    """

    clients: int = 64
    strangers: int = 64
    to_authenticate: float = 10.0
    after_wrong_token: float = 1.0
    to_finish: float = 10.0
    lock_retention: float = LOCK_RETENTION


@dataclass
class _Count:
    number: int = 0
    connections: int = 0
    strangers: int = 0
    refusals: int = 0

    @property
    def clients(self) -> int:
        return self.connections - self.strangers


@dataclass
class Gateway:
    """`log` takes a line at a time; `timeout` is in seconds without progress within a request."""

    behind: Behind
    tokens: Tokens
    timeout: float
    log: Callable[[str], None]
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        self._count = _Count()
        self._closing = Closing()
        self._nobody_left = anyio.Event()
        self.stopping = anyio.Event()
        """Set when the gateway has been told to stop."""

    async def run(self, listeners: Sequence[Listener], signals: AsyncIterator[signal.Signals]) -> None:
        """Serves until there is a signal; then lets requests finish, for some time; a second signal ends them.

        Closes the listeners. Raises CannotListen if one of them stops working.
        """
        async with anyio.create_task_group() as connections:
            connections.start_soon(self.behind.log.commit_in_time, self.log)
            failures: list[CannotListen] = []
            try:
                async with anyio.create_task_group() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, connections, failures, accepting)
                    async for received in signals:
                        self.log(f"{signal.Signals(received).name}: finishing what is under way")
                        accepting.cancel_scope.cancel()
                        break
            finally:
                for listener in listeners:
                    listener.close()
            self._closing.begin()
            self.stopping.set()
            await self._finish(signals)
            connections.cancel_scope.cancel()
        if failures:
            raise failures[0]

    async def _finish(self, signals: AsyncIterator[signal.Signals]) -> None:
        if not self._count.connections:
            return
        async with anyio.create_task_group() as waiting:

            async def hurry() -> None:
                async for received in signals:
                    self.log(f"{signal.Signals(received).name} again: stopping at once")
                    break
                waiting.cancel_scope.cancel()

            waiting.start_soon(hurry)
            with anyio.move_on_after(self.limits.to_finish) as patience:
                await self._nobody_left.wait()
            if patience.cancelled_caught:
                self.log(f"{self._count.connections} connections are cut off")
            waiting.cancel_scope.cancel()

    async def _accept(
        self, listener: Listener, connections: TaskGroup, failures: list[CannotListen], accepting: TaskGroup
    ) -> None:
        while True:
            try:
                connection = await listener.accept()
            except CannotListen as failure:
                # Better to end, and be started again, than to go on half deaf.
                failures.append(failure)
                accepting.cancel_scope.cancel()
                return
            self._count.number += 1
            name = f"{listener.name} #{self._count.number}"
            if self._count.strangers < self.limits.strangers:
                self._count.connections += 1
                self._count.strangers += 1
                connections.start_soon(self._connection, connection, name)
                continue
            full = f"{self._count.strangers} others are waiting to authenticate"
            self.log(f"{name}: refused: {full}")
            if self._count.refusals < _MOST_REFUSALS:
                self._count.refusals += 1
                connections.start_soon(self._refuse, connection, f"{full}; try again later")
            else:
                await connection.aclose(0)

    async def _refuse(self, connection: SocketConnection, why: str) -> None:
        try:
            await Client(MessageStream(connection, _LINGER)).send(Error(why))
        except ClientGone:
            # It did not wait to hear it.
            return
        finally:
            self._count.refusals -= 1
            await connection.aclose(_LINGER)

    async def _connection(self, connection: SocketConnection, name: str) -> None:
        """One client from first to last, and its line in the log."""
        began = time.monotonic()
        story = "cut off"
        try:
            story = await self._talk(connection, name)
        except Exception as error:  # noqa: BLE001 -- a mistake in the program must not end the others' conversations
            story = f"internal error: {type(error).__name__}: {error}"
        finally:
            await connection.aclose(0 if story == "cut off" else _LINGER)
            self.log(f"{name}: {printable(story, 2000)} ({time.monotonic() - began:.1f} s)")
            self._count.connections -= 1
            if self._closing.begun and not self._count.connections:
                self._nobody_left.set()

    async def _talk(self, connection: SocketConnection, name: str) -> str:
        def note(text: str) -> None:
            self.log(f"{name}: {printable(text, 2000)}")

        stream = MessageStream(connection, self.limits.to_authenticate)
        async with self._as_stranger():
            try:
                with self._closing.idle():
                    served, who = await self._let_in(Client(stream), note)
                if self._closing.begun:
                    return "let go: the gateway stops"
            except ClientGone as gone:
                return f"not let in: {gone}"
            except ClientMisbehaved as fault:
                await _say_last(stream, Error(fault.answer or "protocol error"))
                return f"not let in: {fault}"
            except _WrongToken as wrong:
                await anyio.sleep(self.limits.after_wrong_token)
                await _say_last(stream, AuthFailure())
                return f"not let in: {wrong}"
        stream.timeout = self.timeout
        ended = await serve(stream, served, closing=self._closing, lock_retention=self.limits.lock_retention, note=note)
        requests = f"{ended.requests} request{'' if ended.requests == 1 else 's'}"
        return f"{who}, to {served.uuid}: {requests}" + (f"; {ended.fault}" if ended.fault else "")

    @asynccontextmanager
    async def _as_stranger(self) -> AsyncIterator[None]:
        try:
            yield
        finally:
            self._count.strangers -= 1

    async def _let_in(self, client: Client, note: Callable[[str], None]) -> tuple[Served, str]:
        """What the client gets, and who it is. Raises ClientGone, ClientMisbehaved, _WrongToken."""
        match await client.receive("waiting for AUTH"):
            case Auth(uuid, text):
                claim = read_claim(text)
                who = "a client without a UUID" if uuid is None else str(uuid)
                try:
                    token = None if claim is None else self.tokens.check(claim.token)
                except AnnexError as error:
                    # Not a stranger's business.
                    raise ClientMisbehaved(str(error), "this gateway cannot check tokens; see its log") from None
                if claim is None or token is None:
                    raise _WrongToken(f"wrong token from {who}")
                try:
                    served = await self.behind.served(claim.wanted, uuid, token.mode, with_git=True, note=note)
                except AnnexError as error:
                    raise ClientMisbehaved(str(error), printable(str(error))) from None
                if self._count.clients >= self.limits.clients:
                    full = f"this gateway has {self._count.clients} clients already"
                    raise ClientMisbehaved(full, f"{full}; try again later")
                return served, f"{who} with {_named(token)}"
            case other:
                raise ClientMisbehaved(f"{describe(other)[:100]} in place of AUTH", "expected AUTH")


class _WrongToken(Exception):
    """The client does not have what it takes."""


def _named(token: Token) -> str:
    return f"token {token.id}" + (f" ({token.note})" if token.note else "") + f", {token.mode.value}"


async def _say_last(stream: MessageStream, message: Error | AuthFailure) -> None:
    try:
        await Client(stream).send(message)
    except ClientGone:
        # It did not wait to hear it.
        return
