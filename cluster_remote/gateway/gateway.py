"""The gateway: authenticates clients by token, and serves each of them until it hangs up.

All clients share its sessions with the nodes: see `SessionPool`. No client can starve the others: see `Slots`.
"""

from __future__ import annotations

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

import anyio
from anyio.abc import TaskGroup

from cluster_remote.annex.errors import AnnexError
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.budget import DescriptorBudget
from cluster_remote.gateway.errors import CannotListen
from cluster_remote.gateway.listeners import Accepted, Listener, SocketConnection
from cluster_remote.gateway.ratelimit import RateLimitedLog
from cluster_remote.gateway.sessions import SessionPool
from cluster_remote.gateway.slots import Connection, FailedLogins, OrphanedLocks, Slots
from cluster_remote.gateway.tokens import Token, Tokens, read_claim
from cluster_remote.p2p.errors import TRY_LATER, ConnectionLost
from cluster_remote.p2p.exhaustion import exhausted_resource
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.messages import Auth, AuthFailure, Error, describe
from cluster_remote.p2p.relay import Client, ClientGone, ClientMisbehaved
from cluster_remote.p2p.server import LOCK_RETENTION, Closing, Endpoint, LockKeeper, serve
from cluster_remote.p2p.stream import MessageStream
from cluster_remote.p2p.text import printable
from cluster_remote.transport.tls import ServerCertificate

if TYPE_CHECKING:
    from cluster_remote.gateway.web import Web

__all__ = ["Gateway", "Limits"]

# Seconds for a client to read its last message before the connection is closed.
_LINGER = 1.0
# Seconds that another connection with the same token waits for a slot.
_SHORT_WAIT = 0.5
# Seconds in which a new connection does not give way to others, so that its first request arrives.
_FIRST_REQUEST = 1.0
# Lines in the log per minute about the connections of one token.
_LINES_PER_TOKEN = 100
# Seconds between checks for revoked or expired tokens.
_TOKEN_CHECK = 0.5


@dataclass(frozen=True)
class Limits:
    """How many `clients` may be connected, plus how many `strangers`, which have not authenticated yet.

    Times are in seconds: `to_authenticate` is a stranger's deadline; `after_wrong_token` is the initial delay of a
    refusal, which slows down guessing; `to_finish` is the deadline of running requests when the gateway stops;
    `slot_wait` is how long a request over HTTP, or the first connection with a token, waits for a slot (clients wait
    for a minute without progress). `orphaned_locks` is how many locks of one token may outlast their connections; all
    tokens together may have four times as many.
    """

    clients: int = 64
    strangers: int = 64
    to_authenticate: float = 10.0
    after_wrong_token: float = 1.0
    to_finish: float = 10.0
    lock_retention: float = LOCK_RETENTION
    orphaned_locks: int = 64
    slot_wait: float = 30.0


@dataclass
class Gateway:
    """A gateway with its clients.

    `log` takes a line at a time; `timeout` is in seconds without progress within a request; `public_read` allows
    reading over HTTP without a token.
    """

    backend: Backend
    tokens: Tokens
    timeout: float
    log: Callable[[str], None]
    limits: Limits = field(default_factory=Limits)
    certificate: ServerCertificate | None = None
    """For the listeners with TLS."""
    public_read: bool = False
    public_own: bool = False
    """Whether `public_read` includes the contents in the gateway's own repository."""

    def __post_init__(self) -> None:
        descriptors = DescriptorBudget()
        self._sessions = SessionPool(descriptors, self.backend.node_count, self.backend.nodes_version)
        self._slots = Slots(self.limits.clients, descriptors.strangers(self.limits.strangers))
        self._orphaned_locks = OrphanedLocks(self.limits.orphaned_locks, 4 * self.limits.orphaned_locks)
        self._failed_logins = FailedLogins(self.limits.after_wrong_token)
        self._limited_log = RateLimitedLog(self.log)
        self._arrived = 0
        self._connections = 0
        self._closing = Closing()
        self._all_closed = anyio.Event()

    async def run(self, listeners: Sequence[Listener], signals: AsyncIterator[signal.Signals]) -> None:
        """Serve until a signal arrives; then give running requests time to finish. A second signal cuts them off.

        Closes the listeners. Raises CannotListen if one of them stops working.
        """
        async with AsyncExitStack() as stack, anyio.create_task_group() as connections:
            connections.start_soon(self.backend.log.commit_in_time, partial(self._limited_log.say, "commits"))
            connections.start_soon(self.backend.commit_under_load, partial(self._limited_log.say, "commits"))
            connections.start_soon(self._limited_log.sum_up_regularly)
            connections.start_soon(self._end_invalid)
            connections.start_soon(self._sessions.close_unused)
            stack.push_async_callback(self._sessions.aclose)
            webs = self._web_servers(listeners, connections)
            failures: list[CannotListen] = []
            try:
                async with anyio.create_task_group() as accepting:
                    for listener in listeners:
                        accepting.start_soon(self._accept, listener, webs, connections, failures, accepting)
                    async for received in signals:
                        self.log(f"{signal.Signals(received).name}: finishing running requests")
                        accepting.cancel_scope.cancel()
                        break
            finally:
                for listener in listeners:
                    listener.close()
            self._closing.begin()
            for web in webs.values():
                await web.stop()
            await self._finish(signals)
            connections.cancel_scope.cancel()
        self._limited_log.sum_up()
        if failures:
            raise failures[0]

    async def _finish(self, signals: AsyncIterator[signal.Signals]) -> None:
        if not self._connections:
            return
        async with anyio.create_task_group() as waiting:

            async def stop_on_signal() -> None:
                async for received in signals:
                    self.log(f"{signal.Signals(received).name} again: stopping now")
                    break
                waiting.cancel_scope.cancel()

            waiting.start_soon(stop_on_signal)
            with anyio.move_on_after(self.limits.to_finish) as deadline:
                await self._all_closed.wait()
            if deadline.cancelled_caught:
                self.log(f"cutting off {self._connections} connections")
            waiting.cancel_scope.cancel()

    def _web_servers(self, listeners: Sequence[Listener], tasks: TaskGroup) -> dict[str, Web]:
        """Return the HTTP servers, by the path they serve."""
        paths = {listener.path for listener in listeners if listener.path is not None}
        if not paths:
            return {}
        from cluster_remote.gateway.web import TokenAccess, Web

        access = TokenAccess(
            self.backend,
            self.tokens,
            self._slots,
            self._failed_logins,
            slot_wait=self.limits.slot_wait,
            public_read=self.public_read,
            public_own=self.public_own,
        )
        return {
            path: Web(
                self.backend,
                access,
                tasks,
                self._sessions,
                self._orphaned_locks,
                path=path,
                timeout=self.timeout,
                to_begin=self.limits.to_authenticate,
                lock_retention=self.limits.lock_retention,
            )
            for path in paths
        }

    async def _accept(
        self,
        listener: Listener,
        webs: Mapping[str, Web],
        connections: TaskGroup,
        failures: list[CannotListen],
        accepting: TaskGroup,
    ) -> None:
        web = None if listener.path is None else webs[listener.path]
        while True:
            try:
                accepted = await (listener.accept() if web is None else listener.accept_web())
            except CannotListen as failure:
                # Exit, and be restarted, rather than go on with a dead listener.
                failures.append(failure)
                accepting.cancel_scope.cancel()
                return
            self._arrived += 1
            name = f"{listener.name} #{self._arrived} ({accepted.peer})"
            serve_client: Callable[[], Awaitable[str]]
            if isinstance(accepted, SocketConnection):
                connection = Connection(name, accepted.address, has_unread=accepted.has_unread)
                serve_client = partial(self._serve_socket, accepted, connection, listener.tls)
            else:
                assert web is not None
                from cluster_remote.gateway.webserver import WebConnection

                connection = web_connection = WebConnection(name, accepted.address, has_unread=accepted.has_unread)
                web_connection.say = partial(self._note, connection)
                serve_client = partial(web.serve, accepted, web_connection, self.certificate if listener.tls else None)
            self._slots.arrive(connection)
            self._connections += 1
            connections.start_soon(self._connection, accepted, connection, serve_client)

    async def _end_invalid(self) -> None:
        """End connections whose token is revoked or has expired, until cancelled."""
        seen: object = ()
        ids: frozenset[str] = frozenset()
        while True:
            try:
                if (version := self.tokens.version()) != seen:
                    seen, ids = version, frozenset(token.id for token in self.tokens.all())
                # Each time: a client may have waited for its slot since the last change.
                self._slots.end_invalid(partial(_is_one_of, ids), "its token was revoked")
            except AnnexError as error:
                # The file is unreadable at the moment; this must not disconnect everybody.
                self._limited_log.say("problems with the token file", str(error))
            self._slots.end_invalid(lambda token: not token.has_expired(), "its token has expired")
            await anyio.sleep(_TOKEN_CHECK)

    async def _connection(
        self, accepted: SocketConnection | Accepted, connection: Connection, serve_client: Callable[[], Awaitable[str]]
    ) -> None:
        """Serve one client, then write its line in the log."""
        summary = "cut off"
        try:
            with connection.scope:
                summary = await serve_client()
        except Exception as error:  # noqa: BLE001 -- a bug must not end other clients' connections
            full = exhausted_resource(error)
            summary = f"ended: no room: {full}" if full else f"internal error: {type(error).__name__}: {error}"
        finally:
            self._slots.leave(connection)
            if connection.ended is not None:
                summary = f"ended: {connection.ended}"
            line = f"{connection.name}: {printable(summary, 2000)} ({time.monotonic() - connection.began:.1f} s)"
            if connection.token is None:
                self._limited_log.say("rejected connections", line)
            else:
                self._limited_log.say(f"connections with token {connection.token.id}", line, _LINES_PER_TOKEN)
            if isinstance(accepted, SocketConnection):
                await accepted.aclose(_LINGER if summary != "cut off" and connection.ended is None else 0)
            self._connections -= 1
            if self._closing.begun and not self._connections:
                self._all_closed.set()

    def _note(self, connection: Connection, text: str) -> None:
        kind = "notes" if connection.token is None else f"notes about clients with token {connection.token.id}"
        self._limited_log.say(kind, f"{connection.name}: {printable(text, 2000)}")

    async def _serve_socket(self, accepted: SocketConnection, connection: Connection, tls: bool) -> str:
        stream = MessageStream(accepted, self.limits.to_authenticate)
        if tls:
            assert self.certificate is not None
            try:
                with anyio.fail_after(self.limits.to_authenticate):
                    stream = MessageStream(
                        await accepted.secured(self.certificate.context), self.limits.to_authenticate
                    )
            except (ConnectionLost, TimeoutError) as error:
                return f"rejected: {error or 'no TLS in time'}"
        try:
            with self._closing.idle():
                endpoint, who = await self._authenticate(Client(stream), connection, partial(self._note, connection))
            if self._closing.begun:
                return "closed: the gateway is stopping"
        except ClientGone as gone:
            return f"rejected: {gone}"
        except ClientMisbehaved as fault:
            await _send_last(stream, Error(fault.answer or "protocol error"))
            return f"rejected: {fault}"
        except _WrongToken as wrong:
            await anyio.sleep(self._failed_logins.add(connection.address))
            await _send_last(stream, AuthFailure())
            return f"rejected: {wrong}"
        assert connection.token is not None
        stream.timeout = self.timeout
        shared = replace(endpoint, session=partial(self._sessions.session, endpoint, connection.token.id))
        async with self._sessions.client():
            ended = await serve(
                stream,
                shared,
                closing=_IdleTracking(self._closing, connection),
                lock_retention=self.limits.lock_retention,
                locks=_Locks(self._slots, self._orphaned_locks, connection, connection.token, endpoint.uuid),
                note=partial(self._note, connection),
            )
        requests = f"{ended.requests} request{'' if ended.requests == 1 else 's'}"
        return f"{who}, to {endpoint.uuid}: {requests}" + (f"; {ended.fault}" if ended.fault else "")

    async def _authenticate(
        self, client: Client, connection: Connection, note: Callable[[str], None]
    ) -> tuple[Endpoint, str]:
        """Authenticate a client; return what it gets and its name. Raises ClientGone, ClientMisbehaved, _WrongToken."""
        match await client.receive("authenticating"):
            case Auth(uuid, text):
                claim = read_claim(text)
                who = "a client without a UUID" if uuid is None else str(uuid)
                try:
                    token = None if claim is None else self.tokens.check(claim.token)
                except AnnexError as error:
                    # A stranger must not learn the details.
                    raise ClientMisbehaved(str(error), "this gateway cannot check tokens; see its log") from None
                if claim is None or token is None:
                    raise _WrongToken(f"wrong token from {who}")
                # Clients with several connections do not wait long: they have others to use meanwhile.
                longest = _SHORT_WAIT if self._slots.has_any(token) else self.limits.slot_wait
                seconds = min(longest, self.limits.slot_wait, self.timeout / 2)
                if (full := await self._slots.wait(connection, token, seconds)) is not None:
                    raise ClientMisbehaved(full, full + TRY_LATER)
                wanted = claim.wanted or token.only or self.backend.cluster
                if (refusal := token.refusal(wanted, self.backend.own)) is not None:
                    raise ClientMisbehaved(refusal, refusal)
                try:
                    endpoint = await self.backend.endpoint(wanted, uuid, token.mode, with_git=token.git, note=note)
                except AnnexError as error:
                    raise ClientMisbehaved(str(error), printable(str(error))) from None
                return endpoint, f"{who} with {_named(token)}"
            case other:
                raise ClientMisbehaved(f"{describe(other)[:100]} instead of AUTH", "expected AUTH")


class _WrongToken(Exception):
    """The client's token is not valid."""


class _IdleTracking(Closing):
    """The gateway's closing, as one connection sees it; notes when the connection is idle."""

    def __init__(self, closing: Closing, connection: Connection) -> None:
        self._closing = closing
        self._connection = connection
        self._grace = _FIRST_REQUEST

    @property
    def begun(self) -> bool:  # type: ignore[override]
        return self._closing.begun

    @contextmanager
    def idle(self) -> Iterator[None]:
        self._connection.idle_since = time.monotonic() + self._grace
        self._grace = 0.0
        try:
            with self._closing.idle():
                yield
        finally:
            self._connection.idle_since = None


class _Locks(LockKeeper):
    """The locks of one client. Once it has disconnected, they take no slot."""

    def __init__(
        self, slots: Slots, orphaned_locks: OrphanedLocks, connection: Connection, token: Token, where: UUID
    ) -> None:
        self._slots = slots
        self._orphaned_locks = orphaned_locks
        self._connection = connection
        self._token = token
        self._where = where

    def refusal(self) -> str | None:
        return self._orphaned_locks.refusal(self._token.id)

    @contextmanager
    def keeping(self, key: Key) -> Iterator[None]:
        self._slots.leave(self._connection)
        forget = self._orphaned_locks.add(
            self._token.id,
            (self._where, key),
            lambda: self._connection.end("a newer lock holds the same content"),
        )
        try:
            yield
        finally:
            forget()


def _is_one_of(ids: frozenset[str], token: Token) -> bool:
    return token.id in ids


def _named(token: Token) -> str:
    return f"token {token.id}" + (f" ({token.note})" if token.note else "") + f", {token.mode.value}"


async def _send_last(stream: MessageStream, message: Error | AuthFailure) -> None:
    try:
        await Client(stream).send(message)
    except ClientGone:
        # The client has hung up already.
        return
