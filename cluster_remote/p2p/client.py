"""A session with a peer at the other end of a byte stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress

import anyio

from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import (
    TRY_LATER,
    AuthenticationFailed,
    ConnectionLost,
    NoRoom,
    NotReached,
    NotTheProtocol,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
    Unreachable,
    WrongRepository,
)
from cluster_remote.p2p.exchange import Exchange, StreamDownload, StreamUpload, stderr_suffix, unexpected
from cluster_remote.p2p.exhaustion import exhaustion_as_session_error
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import (
    AlreadyHavePlus,
    Auth,
    AuthFailure,
    AuthSuccess,
    Bypass,
    CheckPresent,
    Data,
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
    Version,
    since,
)
from cluster_remote.p2p.session import (
    Download,
    Present,
    Removal,
    Session,
    Upload,
)
from cluster_remote.p2p.stream import Connection, MessageStream, Trace
from cluster_remote.p2p.text import printable
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT, extra_timeout_for, reading_time

__all__ = ["StreamSession", "Transport"]

# Seconds for a child process or a socket to shut down: after a clean conversation, and after a failed one.
_GRACE, _SHORT_GRACE = 5.0, 0.5
# Maximum characters of a peer's text to quote.
_MAX_QUOTED = 500


class Transport(ABC):
    """How to reach one peer."""

    name: str
    """Display name: the address without secrets."""
    token: str | None = None
    """Token to authenticate with; None if the transport authenticates the client itself (a process, ssh)."""

    @abstractmethod
    async def connect(self) -> Connection:
        """Return a new connection. Raises Unreachable. The caller sets the deadline."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to connect, held until the peer has authenticated us. Has no deadline."""
        return nullcontext()

    def retry_delay(self, attempts: int, complaint: str) -> float | None:
        """Return the seconds to wait before retrying after `attempts` refused attempts; None to give up."""
        return None


class StreamSession(Session):
    """Implement Session over a stream: connect on the first request, and reconnect if the connection died while idle.

    A connection that dies during a request fails only that request.
    """

    pipelines_checks = True

    def __init__(
        self,
        transport: Transport,
        *,
        client: UUID,
        expected: UUID | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        bypass: frozenset[UUID] = frozenset(),
        trace: Trace | None = None,
    ) -> None:
        """Create a session; `client` is the UUID of the asking repository, `expected` the peer's if known."""
        self.transport = transport
        self.expected = expected
        self.timeout = timeout
        self.bypass = bypass
        self._client = client
        self._trace = trace
        self._stream: MessageStream | None = None
        self._version: int | None = None
        self.uuid: UUID | None = None
        self._busy = False
        self.has_answered = False
        """Whether the peer has answered a request on this connection."""

    @property
    def name(self) -> str:
        return self.transport.name

    @property
    def version(self) -> int | None:
        return self._version

    async def open(self) -> UUID:
        async with self._request("connecting"):
            pass
        assert self.uuid is not None
        return self.uuid

    async def aclose(self) -> None:
        await self._close(_GRACE)

    # Connecting

    async def _close(self, grace: float) -> None:
        stream, self._stream = self._stream, None
        self._version, self.has_answered = None, False
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await stream.connection.aclose(grace)

    async def reconnect(self) -> MessageStream:
        """Replace the connection with a new one."""
        await self._close(_SHORT_GRACE)
        return await self._connect()

    async def _connect(self) -> MessageStream:
        attempts = 0
        while True:
            try:
                async with self.transport.turn():
                    return await self._connect_once()
            except NotReached as error:
                attempts += 1
                pause = self.transport.retry_delay(attempts, str(error))
                if pause is None:
                    raise
            await anyio.sleep(pause)

    async def _connect_once(self) -> MessageStream:
        try:
            with anyio.fail_after(self.timeout), exhaustion_as_session_error():
                connection = await self.transport.connect()
        except TimeoutError:
            raise TimedOut(f"no connection within {self.timeout:.3g} seconds") from None
        stream = MessageStream(connection, self.timeout, self._trace)
        try:
            await self._handshake(stream)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                tail = await stderr_suffix(stream, error)
                await connection.aclose(_SHORT_GRACE)
            match error:
                case Unreachable():
                    raise type(error)(f"{error}{tail}") from None
                case ConnectionLost():
                    raise NotReached(f"{error}{tail}") from None
                case ProtocolError():
                    raise NotTheProtocol(f"{error}{tail}") from None
            if tail:
                raise type(error)(f"{error}{tail}") from None
            raise
        self._stream = stream
        return stream

    async def _handshake(self, stream: MessageStream) -> None:
        if self.transport.token is not None:
            await stream.send(Auth(self._client, self.transport.token))
        match await stream.receive("authenticating"):
            case AuthSuccess(uuid):
                pass
            case AuthFailure():
                raise AuthenticationFailed("the server did not accept the token")
            case Error(text):
                refusal = NoRoom if text.endswith(TRY_LATER) else AuthenticationFailed
                raise refusal(f"the server refused access: {self.redacted(text)}")
            case other:
                raise unexpected(other, "AUTH-SUCCESS")
        if self.expected is not None and uuid != self.expected:
            raise WrongRepository(f"the server is repository {uuid}, not {self.expected} as it should be", uuid)
        await stream.send(Version(MAX_VERSION))
        match await stream.receive("agreeing on the protocol's version"):
            case Version(number) if number <= MAX_VERSION:
                self._version = number
            case Error():
                # The server predates protocol versions.
                self._version = 0
            case other:
                raise unexpected(other, f"VERSION {MAX_VERSION} or lower")
        self.uuid = uuid
        if self.bypass and self._version >= since(Bypass):
            await stream.send(Bypass(self.bypass))

    def redacted(self, text: str) -> str:
        """Return a peer's text, safe to print and with the token redacted."""
        if self.transport.token:
            text = text.replace(self.transport.token, "[token]")
        return printable(text[:_MAX_QUOTED])

    @asynccontextmanager
    async def _request(self, doing: str) -> AsyncIterator[Exchange]:
        """Run one request on a usable connection, and close the connection unless the request completes.

        The body of a lock, upload or download may fail for reasons unrelated to this peer; those errors pass through
        unchanged.
        """
        if self._busy:
            raise RuntimeError(f"{self.name}: a session takes one request at a time")
        self._busy = True
        exchange = Exchange(self, printable(doing[:_MAX_QUOTED]))
        try:
            async with exchange.error_context():
                if self._stream is not None and self._stream.ended():
                    await self._close(_SHORT_GRACE)
                exchange.may_have_given_way = self.has_answered and self.transport.token is not None
                exchange.stream = self._stream or await self._connect()
            yield exchange
        finally:
            if not exchange.settled:
                await self._close(_SHORT_GRACE)
            self._busy = False

    # Requests

    async def check_present(self, key: Key) -> bool:
        async with self._request(f"checking {key}") as exchange, exchange.error_context():
            return isinstance(await exchange.ask(CheckPresent(key)), Success)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        async with self._request(f"checking {len(keys)} keys") as exchange, exchange.error_context():
            return await exchange.ask_all(keys)

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        async with self._request(f"removing {key}") as exchange, exchange.error_context():
            if before is not None:
                self._require(RemoveBefore)
            request = Remove(key) if before is None else RemoveBefore(before, key)
            answer = await exchange.ask(request, extra_timeout=reading_time(key.size))
            match answer:
                case Success():
                    return Removal(True)
                case SuccessPlus(uuids):
                    return Removal(True, uuids)
                case FailurePlus(uuids):
                    return Removal(False, uuids, (f"{self.name} did not remove it everywhere",))
                case _:
                    return Removal(False, reasons=(f"{self.name} did not remove it",))

    async def timestamp(self) -> int:
        async with self._request("asking for the time") as exchange, exchange.error_context():
            self._require(GetTimestamp)
            answer = await exchange.ask(GetTimestamp())
            assert isinstance(answer, Timestamp)
            return answer.seconds

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        async with self._request(f"locking {key}") as exchange:
            async with exchange.error_context():
                locked = isinstance(await exchange.ask(LockContent(key)), Success)
            if not locked:
                yield False
                return
            try:
                yield True
            except BaseException:
                # Report the original error, not that unlocking failed too.
                with suppress(SessionError):
                    await exchange.unlock()
                raise
            async with exchange.error_context():
                await exchange.unlock()

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self._request(f"uploading {key}") as exchange:
            offer: Present | Upload
            async with exchange.error_context():
                answer = await exchange.ask(Put(file, key), extra_timeout=reading_time(key.size))
                if isinstance(answer, PutFrom) and answer.offset > 0 and key.is_encrypted:
                    await exchange.start_over(key)
                    answer = await exchange.put_again(file, key)
                size = key.content_size
                if isinstance(answer, PutFrom) and size is not None and answer.offset > size:
                    await exchange.discard_overlong()
                    answer = await exchange.put_again(file, key)
                match answer:
                    case PutFrom(offset):
                        # The peer now waits for DATA; hanging up is the only way to cancel.
                        offer = StreamUpload(exchange, key, file, offset)
                    case AlreadyHavePlus(uuids):
                        offer = Present(uuids)
                    case _:
                        offer = Present()
            yield offer

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self._request(f"downloading {key}") as exchange:
            size = key.content_size
            async with exchange.error_context():
                # Version 0 answers DATA 0 both if nothing is left to send and if the content is missing.
                unclear = self._version == 0 and (size is None or offset >= size)
                if unclear and isinstance(await exchange.ask(CheckPresent(key)), Failure):
                    raise Refused("the server does not have the content")
                answer = await exchange.ask(Get(offset, file, key), extra_timeout=extra_timeout_for(size))
                assert isinstance(answer, Data)
                length = answer.length
                if size is not None and length > max(0, size - offset):
                    raise ProtocolError(
                        f"the server announces {length} bytes from offset {offset}, but the content has {size} bytes"
                    )
            download = StreamDownload(exchange, key, offset, length)
            yield download
            if download.verdict is not None:
                async with exchange.error_context():
                    await exchange.stream.send(Success() if download.verdict else Failure())
                    exchange.settled = True

    def _require(self, request: type[Message]) -> None:
        assert self._version is not None
        if self._version < since(request):
            raise Refused(
                f"the server speaks version {self._version} of the protocol; this needs version {since(request)}"
            )
