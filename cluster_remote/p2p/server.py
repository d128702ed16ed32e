"""Serve the protocol: a loop between one client and one session.

Answers, and when a conversation ends, follow git-annex 10.20261026 proxying a repository (git-annex-shell p2pstdio),
wherever it answers at all; docs/differences.md lists the rest.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from enum import Enum

import anyio

from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import SessionError, SourceError, TimedOut, Unreachable
from cluster_remote.p2p.exhaustion import Exhausted, exhaustion_as_session_error
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import (
    AlreadyHave,
    AlreadyHavePlus,
    AuthSuccess,
    Bypass,
    CheckPresent,
    Connect,
    Data,
    DataPresent,
    Error,
    Failure,
    FailurePlus,
    Get,
    GetTimestamp,
    LockContent,
    Message,
    Put,
    PutFrom,
    Remove,
    RemoveBefore,
    Success,
    SuccessPlus,
    Timestamp,
    UnlockContent,
    Version,
    describe,
    since,
)
from cluster_remote.p2p.relay import Client, ClientGone, ClientMisbehaved, ClientSource, SessionFailed, relayed
from cluster_remote.p2p.session import Present, Session, Stored, Upload
from cluster_remote.p2p.stream import MessageStream
from cluster_remote.p2p.text import printable
from cluster_remote.p2p.uploads import Uploads, Yielding

__all__ = ["LOCK_RETENTION", "Closing", "Ended", "Endpoint", "LockKeeper", "Mode", "serve"]

LOCK_RETENTION = 600.0
"""Seconds that a lock outlasts a client whose connection broke (P2P protocol: at least 10 minutes)."""

_SESSION_REQUESTS = (CheckPresent, Remove, RemoveBefore, GetTimestamp, Put, Get, LockContent)
# Seconds between checks whether a client that waits for nodes is still connected.
_HANG_UP_CHECK = 1.0
# Most CHECKPRESENT requests to forward at once. Their answers wait for each other, and nodes may be slow.
_MAX_BATCH = 16
# Most characters of an error to send to a client.
_ERROR_LIMIT = 2000


class Mode(Enum):
    """What a client may do. The texts are git-annex's."""

    READ_WRITE = "read-write"
    APPEND_ONLY = "append-only"
    READ_ONLY = "read-only"

    def refusal(self, request: Message) -> str | None:
        """Return the error for a request that this mode denies; None if it is allowed."""
        match self, request:
            case Mode.READ_ONLY, Put() | Remove() | RemoveBefore() | Connect("git-receive-pack"):
                return "this repository is read-only; write access denied"
            case Mode.APPEND_ONLY, Remove() | RemoveBefore():
                return "this repository is append-only; removal denied"
            case Mode.APPEND_ONLY, Connect("git-receive-pack"):
                # A push can delete files or history.
                return "this repository is append-only; git push denied"
        return None


@dataclass(frozen=True)
class Endpoint:
    """What an authenticated client talks to.

    `uuid` is the repository or cluster that answers. `session` creates an unconnected session that bypasses the given
    gateways, or raises SessionError; the server closes it. `connect` handles CONNECT: it relays the service to the git
    repository until the service ends, or, given a refusal, reports that to git; it raises ClientGone and
    ClientMisbehaved. None if CONNECT is not supported.
    """

    uuid: UUID
    session: Callable[[frozenset[UUID]], Awaitable[Session]]
    mode: Mode = Mode.READ_WRITE
    connect: Callable[[MessageStream, str, str | None], Awaitable[None]] | None = None
    uploads: Uploads = field(default_factory=Uploads)
    """The uploads of all clients, to anything that this server serves."""
    client: UUID | None = None
    """The client, if the repository takes note of who asks: then clients cannot share a session."""

    @asynccontextmanager
    async def upload(self, session: Session, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        """Offer content to the session; an append-only client may not replace content that is already present.

        Some nodes, such as special remotes, accept content that they already have, and without a checksum nothing would
        detect that it differs.
        """
        append_only = self.mode is Mode.APPEND_ONLY
        with self.uploads.running(key) as running:
            if append_only and await session.check_everywhere(key):
                yield Present()
                return
            async with session.upload(key, file) as offer:
                yield offer if isinstance(offer, Present) else Yielding(offer, self.uploads, running, append_only)


class LockKeeper:
    """Policy for locks whose clients are gone. This one keeps any number of them."""

    def refusal(self) -> str | None:
        """Return why this client cannot get a lock now; None if it can."""
        return None

    @contextmanager
    def keeping(self, key: Key) -> Iterator[None]:
        """Wrap the time that a lock outlives its client; the body may be cancelled."""
        yield


@dataclass(frozen=True)
class Ended:
    """How a conversation ended: the number of requests, and the fault (None if the client hung up)."""

    requests: int
    fault: str | None = None


class Closing:
    """Shut down a server's conversations: idle ones at once, the others after their current request."""

    def __init__(self) -> None:
        self.begun = False
        self._idle: set[anyio.CancelScope] = set()

    def begin(self) -> None:
        """Stop accepting requests."""
        self.begun = True
        for scope in self._idle:
            scope.cancel()

    @contextmanager
    def idle(self) -> Iterator[None]:
        """Wrap a wait that is cancelled when the server shuts down."""
        with anyio.CancelScope() as scope:
            if self.begun:
                scope.cancel()
            self._idle.add(scope)
            try:
                yield
            finally:
                self._idle.discard(scope)


async def serve(
    stream: MessageStream,
    endpoint: Endpoint,
    *,
    closing: Closing | None = None,
    lock_retention: float = LOCK_RETENTION,
    locks: LockKeeper | None = None,
    note: Callable[[str], None] | None = None,
) -> Ended:
    """Serve an authenticated client until it hangs up or misbehaves, or the server shuts down.

    `note` is called with the reason why a request failed, because FAILURE cannot carry one.

    Does not close the connection. Nothing that the client does raises an exception; only bugs and cancellation do.

    Between requests, and while it holds a lock, a client may take as long as it likes; within a request `stream`'s
    timeout applies. If it hangs up while a request is running, the request is cancelled.
    """
    server = _Server(Client(stream), endpoint, closing or Closing(), lock_retention, locks or LockKeeper(), note)
    fault: str | None = None
    bug: Exception | None = None
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.watch)
            try:
                fault = await server.converse()
            except Exception as error:  # noqa: BLE001
                # Raised below, outside of the task group, so that it is not wrapped in an exception group.
                bug = error
            tasks.cancel_scope.cancel()
    finally:
        await server.close_session()
    if bug is not None:
        raise bug
    return Ended(server.requests, fault)


class _Server:
    def __init__(
        self,
        client: Client,
        endpoint: Endpoint,
        closing: Closing,
        lock_retention: float,
        locks: LockKeeper,
        note: Callable[[str], None] | None,
    ) -> None:
        self.requests = 0
        self._note = note
        self._begun = False
        self._client = client
        self._endpoint = endpoint
        self._closing = closing
        self._lock_retention = lock_retention
        self._locks = locks
        # The message that followed a batch of checks, and has not been handled yet.
        self._next: Message | ClientMisbehaved | None = None
        self._bypass: frozenset[UUID] = frozenset()
        self._session: Session | None = None
        # Set while nodes are asked on behalf of a client that must wait for the answer.
        self._asking: anyio.CancelScope | None = None
        self._asked = anyio.Event()

    async def watch(self) -> None:
        """Cancel the request in progress if the client hangs up."""
        while True:
            await self._asked.wait()
            await anyio.sleep(_HANG_UP_CHECK)
            if self._asking is None:
                self._asked = anyio.Event()
            elif self._client.stream.connection.hung_up():
                self._asking.cancel()

    async def _forward_watched(self, request: Message) -> None:
        """Forward a request, see `_forward`. Also raises ClientGone if the client hangs up meanwhile."""
        with anyio.CancelScope() as self._asking:
            self._asked.set()
            try:
                await self._forward(request)
            finally:
                self._asking = None
            return
        raise ClientGone("the client hung up while its request was running")

    async def converse(self) -> str | None:
        """Run the whole conversation and return the fault that ended it, if any."""
        try:
            await self._client.send(AuthSuccess(self._endpoint.uuid))
            while (request := await self._next_request()) is not None:
                if not await self._handle(request):
                    return None
                self._begun = True
        except ClientGone as gone:
            return str(gone)
        except ClientMisbehaved as fault:
            if fault.answer is not None:
                await self._send_last(Error(fault.answer))
            return str(fault)
        except SessionFailed as failure:
            # DATA has been announced: hanging up is the only way to report the failure.
            return f"a download broke off: {failure}"
        return None

    async def _next_request(self) -> Message | None:
        """Return the next request; None if the client has hung up or the server is shutting down."""
        if self._next is not None and not self._closing.begun:
            following, self._next = self._next, None
            if isinstance(following, ClientMisbehaved):
                raise following
            return following
        with self._closing.idle():
            try:
                return await self._client.receive("waiting for a request", unhurried=True)
            except ClientGone:
                return None
        return None

    async def _send_last(self, message: Message) -> None:
        try:
            await self._client.send(message)
        except ClientGone:
            # Report the misbehaviour, not that it is gone.
            return

    async def close_session(self) -> None:
        session, self._session = self._session, None
        if session is not None:
            with anyio.CancelScope(shield=True):
                await session.aclose()

    async def _opened(self) -> Session:
        if self._session is None:
            self._session = await self._endpoint.session(self._bypass)
        return self._session

    async def _handle(self, request: Message) -> bool:
        """Answer a request and return whether another one may follow."""
        if not isinstance(request, Version | Bypass):
            self.requests += 1
        refusal = self._endpoint.mode.refusal(request)
        if isinstance(request, Connect):
            await self._relay(request.service, refusal)
            return False
        if refusal is not None:
            await self._client.send(Error(refusal))
            return True
        match request:
            case Version(number) if not self._begun:
                self._client.version = min(number, MAX_VERSION)
                await self._client.send(Version(self._client.version))
            case Bypass(uuids):
                if uuids != self._bypass:
                    self._bypass = uuids
                    await self.close_session()
            case _:
                try:
                    with exhaustion_as_session_error():
                        await self._forward_watched(request)
                except SessionError as error:
                    if isinstance(error, Exhausted):
                        # The session may be half initialised.
                        await self.close_session()
                    self._report(str(error))
                    await self._client.send(_error(error))
        return True

    def _report(self, *reasons: str) -> None:
        if self._note is not None:
            for reason in reasons:
                self._note(printable(reason, _ERROR_LIMIT))

    async def _forward(self, request: Message) -> None:
        """Forward a request to the session. Raises SessionError only if the client is still waiting for an answer."""
        if not isinstance(request, _SESSION_REQUESTS):
            raise ClientMisbehaved(f"unexpected {describe(request)[:100]}")
        session = await self._opened()
        match request:
            case CheckPresent(key):
                keys = [key, *await self._pipelined_keys()] if session.pipelines_checks else [key]
                self.requests += len(keys) - 1
                await self._client.send(*await self._check(session, keys))
            case Remove(key):
                await self._remove(session, key, None)
            case RemoveBefore(timestamp, key):
                await self._remove(session, key, timestamp)
            case GetTimestamp():
                await self._client.send(Timestamp(await session.timestamp()))
            case Put(file, key):
                await self._put(session, file, key)
            case Get(offset, file, key):
                await self._get(session, offset, file, key)
            case LockContent(key):
                await self._lock(session, key)

    async def _pipelined_keys(self) -> list[Key]:
        """Take the CHECKPRESENT requests that the client has sent ahead."""
        keys: list[Key] = []
        while len(keys) < _MAX_BATCH - 1 and self._client.stream.has_line():
            try:
                following = await self._client.receive("waiting for a request")
            except ClientMisbehaved as fault:
                self._next = fault
                break
            if not isinstance(following, CheckPresent):
                self._next = following
                break
            keys.append(following.key)
        return keys

    async def _check(self, session: Session, keys: Sequence[Key]) -> list[Message]:
        """Return the answer for each key. Raises SessionError if there is only one."""
        if len(keys) == 1:
            return [_presence(await session.check_present(keys[0]))]
        try:
            return [_presence(answer) for answer in await session.check_all(keys)]
        except (TimedOut, Unreachable) as error:
            # Each of them would fail the same way, and take as long.
            self._report(str(error))
            return [_error(error)] * len(keys)
        except SessionError:
            # Perhaps only one of the keys made the node hang up.
            return [await self._check_one(session, key) for key in keys]

    async def _check_one(self, session: Session, key: Key) -> Message:
        try:
            return _presence(await session.check_present(key))
        except SessionError as error:
            self._report(str(error))
            return _error(error)

    async def _remove(self, session: Session, key: Key, before: int | None) -> None:
        removal = await session.remove(key, before)
        self._report(*removal.reasons)
        uuids = removal.uuids
        if removal.removed and not self._endpoint.uuid.is_cluster:
            # A gateway that proxies a single repository need not know that it is not a cluster.
            uuids |= {self._endpoint.uuid}
        plain, plus = (Success(), SuccessPlus(uuids)) if removal.removed else (Failure(), FailurePlus(uuids))
        await self._client.send(plus if uuids and self._speaks(SuccessPlus) else plain)

    def _speaks(self, message: type[Message]) -> bool:
        return self._client.version >= since(message)

    async def _lock(self, session: Session, key: Key) -> None:
        if (refusal := self._locks.refusal()) is not None:
            self._report(refusal)
            await self._client.send(Error(refusal))
            return
        answered = False
        try:
            async with session.lock(key) as locked:
                self._asking = None
                await self._client.send(Success() if locked else Failure())
                answered = True
                if locked:
                    await self._hold(key)
        except SessionError as error:
            if not answered:
                raise
            # Unlocking failed, or the node was lost. UNLOCKCONTENT has no answer to report it in.
            self._report(str(error))

    async def _hold(self, key: Key) -> None:
        """Hold a lock until the client's next message, or for the retention time if its connection breaks."""
        try:
            message = await self._client.receive("waiting for UNLOCKCONTENT", unhurried=True)
        except ClientGone:
            # The client may rely on the lock, for instance to drop its own copy.
            with self._locks.keeping(key):
                await anyio.sleep(self._lock_retention)
            raise
        if not isinstance(message, UnlockContent):
            raise ClientMisbehaved(f"{describe(message)[:100]} instead of UNLOCKCONTENT")

    async def _get(self, session: Session, offset: int, file: AssociatedFile, key: Key) -> None:
        answered = False
        try:
            async with session.download(key, file, offset) as download:
                self._asking = None
                await self._client.send_content(relayed(download), with_validity=self._client.version > 0)
                answered = True
        except SessionError as error:
            if not answered:
                raise
            self._report(str(error))
        # Nothing here depends on the client's verdict, so it may take its time, for instance to hash the content.
        with self._closing.idle():
            match await self._client.receive("waiting to hear whether the content arrived", unhurried=True):
                case Success() | SuccessPlus() | Failure() | FailurePlus():
                    return
                case other:
                    raise ClientMisbehaved(f"{describe(other)[:100]} instead of SUCCESS or FAILURE")

    async def _put(self, session: Session, file: AssociatedFile, key: Key) -> None:
        source: ClientSource | None = None
        outcome: Present | Stored = Stored(False)
        try:
            with exhaustion_as_session_error():
                async with self._endpoint.upload(session, key, file) as offer:
                    if isinstance(offer, Present):
                        outcome = offer
                    else:
                        source = await self._request_content(offer)
                        outcome = await (offer.check_arrived() if source is None else offer.send(source))
        except SourceError as error:
            # Usually the client's fault; `finish` below raises again if it ended the conversation.
            outcome = Stored(False, reasons=(str(error),))
        except SessionError as error:
            if source is not None:
                await source.finish(_error(error).text)
            raise
        if source is not None:
            await source.finish("the content could not be stored")
        match outcome:
            case Present(uuids):
                with_uuids = uuids and self._speaks(AlreadyHavePlus)
                await self._client.send(AlreadyHavePlus(uuids) if with_uuids else AlreadyHave())
            case Stored(uuids=uuids, reasons=reasons) if outcome.newly_stored:
                self._report(*reasons)
                with_uuids = uuids and self._speaks(SuccessPlus)
                await self._client.send(SuccessPlus(uuids) if with_uuids else Success())
            case Stored(reasons=reasons):
                self._report(*reasons)
                await self._client.send(Failure())

    async def _request_content(self, offer: Upload) -> ClientSource | None:
        """Ask the client for the content; return None if it says that the nodes already have it (DATA-PRESENT)."""
        self._asking = None
        await self._client.send(PutFrom(offer.offset))
        match await self._client.receive("waiting for the content"):
            case Data(length):
                return ClientSource(self._client, offer.offset, length)
            case DataPresent():
                return None
            case other:
                raise ClientMisbehaved(f"{describe(other)[:100]} instead of DATA")

    async def _relay(self, service: str, refusal: str | None) -> None:
        if self._endpoint.connect is None:
            raise ClientMisbehaved("relaying to git is not supported on this connection", None)
        await self._endpoint.connect(self._client.stream, service, refusal)


def _presence(answer: bool | SessionError) -> Message:
    if isinstance(answer, SessionError):
        return _error(answer)
    return Success() if answer else Failure()


def _error(error: SessionError) -> Error:
    return Error(printable(str(error), _ERROR_LIMIT))
