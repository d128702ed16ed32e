"""A session with a peer at the other end of a byte stream."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext, suppress
from types import TracebackType

import anyio

from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import (
    AuthenticationFailed,
    BeyondTheEnd,
    ConnectionLost,
    NotReached,
    NotTheProtocol,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    Unreachable,
    WrongRepository,
)
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import (
    ANSWERS,
    AlreadyHavePlus,
    Auth,
    AuthFailure,
    AuthSuccess,
    Bypass,
    CheckPresent,
    Data,
    DataPresent,
    Error,
    Failure,
    FailurePlus,
    Get,
    GetTimestamp,
    Invalid,
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
    Valid,
    Version,
    describe,
    expected_answers,
    since,
)
from cluster_remote.p2p.noroom import no_room_is_a_session_error
from cluster_remote.p2p.session import (
    Download,
    FilePart,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    SourceReading,
    Stored,
    Upload,
)
from cluster_remote.p2p.stream import Connection, MessageStream, Trace
from cluster_remote.p2p.text import printable

__all__ = ["DEFAULT_TIMEOUT", "StreamSession", "Transport", "extra_timeout_for", "reading_time"]

DEFAULT_TIMEOUT = 60.0
# A peer that has received everything may still have to hash it, or upload it to a bucket over a home connection,
# before it answers; no byte moves meanwhile. So the timeout grows with the content, at this rate.
_BYTES_PER_SECOND_OF_PATIENCE = 1024 * 1024
# Speed of a slow disk: a server may hash a partial upload before it says where to resume.
_BYTES_READ_PER_SECOND = 32 * 1024 * 1024
# Seconds for a child process or a socket to shut down: after a clean conversation, and after a failed one.
_GRACE, _SHORT_GRACE = 5.0, 0.5
# Bytes of questions pipelined before reading the previous answers, and overhead of each question besides its key.
_AHEAD, _QUESTION = 8 * 1024, 16
# Maximum characters of a peer's text to quote.
_LONGEST_WORDS = 500


def extra_timeout_for(size: int | None) -> float:
    """Return the extra seconds allowed for a peer to process a whole content of `size` bytes.

    It may have to move it to or from other storage, such as a bucket.
    """
    return (size or 0) / _BYTES_PER_SECOND_OF_PATIENCE


def reading_time(size: int | None) -> float:
    """Return the extra seconds allowed for a peer to read a content of `size` bytes from its disk."""
    return (size or 0) / _BYTES_READ_PER_SECOND


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

    def again_in(self, attempts: int, complaint: str) -> float | None:
        """Return the seconds to wait before retrying after `attempts` refused attempts; None to give up."""
        return None


class StreamSession(Session):
    """Implement Session over a stream: connect on the first request, and reconnect if the connection died while idle.

    A connection that dies during a request fails only that request.
    """

    asks_ahead = True

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
        self._uuid: UUID | None = None
        self._busy = False

    @property
    def name(self) -> str:
        return self.transport.name

    @property
    def version(self) -> int | None:
        return self._version

    async def open(self) -> UUID:
        async with self._request("connecting"):
            pass
        assert self._uuid is not None
        return self._uuid

    async def aclose(self) -> None:
        await self._close(_GRACE)

    # Connecting

    async def _close(self, grace: float) -> None:
        stream, self._stream = self._stream, None
        self._version = None
        if stream is not None:
            with anyio.CancelScope(shield=True):
                await stream.connection.aclose(grace)

    async def _reconnect(self) -> MessageStream:
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
                pause = self.transport.again_in(attempts, str(error))
                if pause is None:
                    raise
            await anyio.sleep(pause)

    async def _connect_once(self) -> MessageStream:
        try:
            with anyio.fail_after(self.timeout), no_room_is_a_session_error():
                connection = await self.transport.connect()
        except TimeoutError:
            raise TimedOut(f"no connection within {self.timeout:.3g} seconds") from None
        stream = MessageStream(connection, self.timeout, self._trace)
        try:
            await self._introduce(stream)
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                words = await _stderr_tail(stream, error)
                await connection.aclose(_SHORT_GRACE)
            match error:
                case Unreachable():
                    raise type(error)(f"{error}{words}") from None
                case ConnectionLost():
                    raise NotReached(f"{error}{words}") from None
                case ProtocolError():
                    raise NotTheProtocol(f"{error}{words}") from None
            if words:
                raise type(error)(f"{error}{words}") from None
            raise
        self._stream = stream
        return stream

    async def _introduce(self, stream: MessageStream) -> None:
        if self.transport.token is not None:
            await stream.send(Auth(self._client, self.transport.token))
        match await stream.receive("authenticating"):
            case AuthSuccess(uuid):
                pass
            case AuthFailure():
                raise AuthenticationFailed("the server did not accept the token")
            case Error(text):
                raise AuthenticationFailed(f"the server refused access: {self._said(text)}")
            case other:
                raise _unexpected(other, "AUTH-SUCCESS")
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
                raise _unexpected(other, f"VERSION {MAX_VERSION} or lower")
        self._uuid = uuid
        if self.bypass and self._version >= since(Bypass):
            await stream.send(Bypass(self.bypass))

    def _said(self, text: str) -> str:
        """Return a peer's text, safe to print and with the token redacted."""
        if self.transport.token:
            text = text.replace(self.transport.token, "[token]")
        return printable(text[:_LONGEST_WORDS])

    @asynccontextmanager
    async def _request(self, doing: str) -> AsyncIterator[_Exchange]:
        """Run one request on a usable connection, and close the connection unless the request completes.

        The body of a lock, upload or download may fail for reasons unrelated to this peer; those errors pass through
        unchanged.
        """
        if self._busy:
            raise RuntimeError(f"{self.name}: a session takes one request at a time")
        self._busy = True
        exchange = _Exchange(self, printable(doing[:_LONGEST_WORDS]))
        try:
            async with exchange.named():
                if self._stream is not None and self._stream.ended():
                    await self._close(_SHORT_GRACE)
                exchange.stream = self._stream or await self._connect()
            yield exchange
        finally:
            if not exchange.settled:
                await self._close(_SHORT_GRACE)
            self._busy = False

    # Requests

    async def check_present(self, key: Key) -> bool:
        async with self._request(f"checking {key}") as exchange, exchange.named():
            return isinstance(await exchange.ask(CheckPresent(key)), Success)

    async def check_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        async with self._request(f"checking {len(keys)} keys") as exchange, exchange.named():
            return await exchange.ask_all(keys)

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        async with self._request(f"removing {key}") as exchange, exchange.named():
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
        async with self._request("asking for the time") as exchange, exchange.named():
            self._require(GetTimestamp)
            answer = await exchange.ask(GetTimestamp())
            assert isinstance(answer, Timestamp)
            return answer.seconds

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        async with self._request(f"locking {key}") as exchange:
            async with exchange.named():
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
            async with exchange.named():
                await exchange.unlock()

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self._request(f"uploading {key}") as exchange:
            offer: Present | Upload
            async with exchange.named():
                answer = await exchange.ask(Put(file, key), extra_timeout=reading_time(key.size))
                if isinstance(answer, PutFrom) and answer.offset > 0 and key.is_encrypted:
                    await exchange.start_over(key)
                    answer = await exchange.put_anew(file, key)
                size = key.content_size
                if isinstance(answer, PutFrom) and size is not None and answer.offset > size:
                    await exchange.end_overlong()
                    answer = await exchange.put_anew(file, key)
                match answer:
                    case PutFrom(offset):
                        # The peer now waits for DATA; hanging up is the only way to cancel.
                        offer = _StreamUpload(exchange, key, file, offset)
                    case AlreadyHavePlus(uuids):
                        offer = Present(uuids)
                    case _:
                        offer = Present()
            yield offer

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self._request(f"downloading {key}") as exchange:
            size = key.content_size
            async with exchange.named():
                # Version 0 answers DATA 0 both if nothing is left to send and if the content is missing.
                unclear = self._version == 0 and (size is None or offset >= size)
                if unclear and isinstance(await exchange.ask(CheckPresent(key)), Failure):
                    raise Refused("the server does not have the content")
                answer = await exchange.ask(Get(offset, file, key), extra_timeout=extra_timeout_for(size))
                assert isinstance(answer, Data)
                length = answer.length
                if size is not None and length > max(0, size - offset):
                    raise ProtocolError(
                        f"the server announces {length} bytes from offset {offset} of a content of {size} bytes"
                    )
            download = _StreamDownload(exchange, key, offset, length)
            yield download
            if download.verdict is not None:
                async with exchange.named():
                    await exchange.stream.send(Success() if download.verdict else Failure())
                    exchange.settled = True

    def _require(self, request: type[Message]) -> None:
        assert self._version is not None
        if self._version < since(request):
            raise Refused(
                f"the server speaks version {self._version} of the protocol; this needs version {since(request)}"
            )


class _Exchange:
    """One request from start to end."""

    stream: MessageStream

    def __init__(self, session: StreamSession, doing: str) -> None:
        self.session = session
        self.doing = doing
        self.settled = True
        """Whether the peer is ready for the next request. If not, the connection must be closed rather than reused."""

    def named(self) -> _Named:
        """Add context to session errors: the session's name, the operation and the peer's standard error, if any."""
        return _Named(self)

    async def ask(self, request: Message, extra_timeout: float = 0) -> Message:
        """Send a request and return its answer. Raises Refused for ERROR, ProtocolError for an unexpected message."""
        self.settled = False
        await self.stream.send(request)
        return self.answered(type(request), await self.stream.receive(extra_timeout=extra_timeout))

    def answered(self, request: type[Message], answer: Message) -> Message:
        """Check an answer against the table of answers, which also says whether it ends the request, and return it.

        Raises Refused for ERROR, which ends any request; ProtocolError for a message that does not answer this one.
        """
        if isinstance(answer, Error):
            self.settled = True
            raise Refused(self.session._said(answer.text))
        over = ANSWERS[request].get(type(answer))
        if over is None:
            raise _unexpected(answer, expected_answers(request))
        self.settled = over
        return answer

    async def start_over(self, key: Key) -> None:
        """Make the peer discard an earlier partial upload of an encrypted content, which it has just offered to resume.

        Encrypting the same content again gives different bytes, so resuming would silently store something that cannot
        be decrypted. No message removes a partial upload: it has to be completed first. Raises Refused if that is not
        possible.
        """
        server = self.session._uuid
        if server is not None and server.is_cluster:
            # Its nodes may have partial uploads of different lengths; only the smallest is known here.
            raise Refused(
                "a node has kept the beginning of an earlier upload of this encrypted content, which cannot be "
                "resumed; in every node, remove the file .git/annex/tmp/KEY (git annex unused lists it, git annex "
                f"dropunused removes it), where KEY is {key}"
            )
        finished: list[Message] = [Data(0)] if self.session.version == 0 else [Data(0), Valid()]
        with anyio.CancelScope(shield=True):
            # Send REMOVE in the same write, so that the peer has it before it can treat the content as complete.
            await self.stream.send(*finished, Remove(key))
            self.answered(type(finished[-1]), await self.stream.receive())
            if isinstance(self.answered(Remove, await self.stream.receive()), Failure | FailurePlus):
                raise Refused(
                    "the beginning of an earlier upload of this encrypted content is there and cannot be removed; "
                    f"what is there of {key} is useless; remove it with git annex drop --from"
                )

    async def end_overlong(self) -> None:
        """Make the peer discard a partial upload that is longer than the content.

        Sending no more bytes, as git-annex does, ends that upload: the peer finds a size mismatch.
        Raises ProtocolError if the peer accepts it as the content.
        """
        finished: list[Message] = [Data(0)] if self.session.version == 0 else [Data(0), Valid()]
        with anyio.CancelScope(shield=True):
            await self.stream.send(*finished)
            match await self.stream.receive():
                case Failure() | FailurePlus() | Error():
                    return
                case other:
                    raise ProtocolError(f"it has more than the whole content, and says {describe(other)[:100]} to that")

    async def put_anew(self, file: AssociatedFile, key: Key) -> Message:
        """Offer the content again after the peer has discarded its partial upload. Raises ProtocolError."""
        answer = await self.ask(Put(file, key))
        if isinstance(answer, PutFrom) and answer.offset > 0:
            raise ProtocolError(f"it keeps {answer.offset} bytes of the content that it was to throw away")
        return answer

    async def ask_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        """Ask about each key, pipelining the questions."""
        answers: list[bool | Refused] = []
        waiting = 0
        for questions in _ahead(keys):
            self.settled = False
            await self.stream.send(*questions)
            # Read the answers to the previous batch while the peer works on this one.
            answers += [await self._presence() for _ in range(waiting)]
            waiting = len(questions)
        answers += [await self._presence() for _ in range(waiting)]
        self.settled = True
        return answers

    async def _presence(self) -> bool | Refused:
        try:
            return isinstance(self.answered(CheckPresent, await self.stream.receive()), Success)
        except Refused as refusal:
            return Refused(f"{self.session.name}: {refusal}")

    def stored(self, answer: Message, doubt: tuple[str, ...] = ()) -> Stored:
        """Convert a peer's answer to an upload; `doubt` is prepended to the reasons."""
        where = self.session.name
        match answer:
            case Success():
                return Stored(True, reasons=doubt)
            case SuccessPlus(uuids):
                return Stored(True, uuids, doubt)
            case FailurePlus(uuids):
                return Stored(False, uuids, (*doubt, f"{where} did not store it"))
            case _:
                return Stored(False, reasons=(*doubt, f"{where} did not store it"))

    async def unlock(self) -> None:
        with anyio.CancelScope(shield=True):
            await self.stream.send(UnlockContent())
        self.settled = True


class _Named:
    """Implement `_Exchange.named`. A class because it is entered several times per request, and this is faster."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SessionError):
            exchange = self._exchange
            words = "" if exchange.settled else await _stderr_tail(exchange.stream, error)
            raise type(error)(f"{exchange.session.name}: {exchange.doing}: {error}{words}") from None


def _ahead(keys: Sequence[Key]) -> Iterator[list[CheckPresent]]:
    """Yield questions in batches so small that two fit into any pipe, so writing never blocks on the reader."""
    portion: list[CheckPresent] = []
    size = 0
    for key in keys:
        if portion and size + len(key.text) > _AHEAD:
            yield portion
            portion, size = [], 0
        portion.append(CheckPresent(key))
        size += len(key.text) + _QUESTION
    if portion:
        yield portion


class _StreamUpload(Upload):
    def __init__(self, exchange: _Exchange, key: Key, file: AssociatedFile, offset: int) -> None:
        self.offset = offset
        self._exchange = exchange
        self._key = key
        self._file = file
        self._begun = False

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        if self._begun:
            raise RuntimeError("the content can be sent only once")
        self._begun = True
        async with self._exchange.named():
            try:
                return await self._send(source, progress)
            except BeyondTheEnd as error:
                if not source.repeatable:
                    raise Refused(str(error)) from None
            # The key has no size, so only reading the source shows that the peer has too much.
            await self._exchange.start_over(self._key)
            match await self._exchange.put_anew(self._file, self._key):
                case PutFrom(offset):
                    self.offset = offset
                    return await self._send(source, progress)
                case AlreadyHavePlus(uuids):
                    return Stored(True, uuids)
                case _:
                    return Stored(True)

    async def look(self) -> Stored:
        if self._begun:
            raise RuntimeError("the content has been sent")
        self._begun = True
        exchange = self._exchange
        async with exchange.named():
            version = exchange.session.version
            assert version is not None
            if version >= since(DataPresent):
                return exchange.stored(await exchange.ask(DataPresent(), extra_timeout_for(self._key.content_size)))
            # An older peer is still waiting for the content; it can only be asked on a new connection.
            exchange.stream = await exchange.session._reconnect()
            present = isinstance(await exchange.ask(CheckPresent(self._key)), Success)
            return Stored(present, reasons=() if present else (f"{exchange.session.name} does not have it",))

    async def _send(self, source: Source, progress: Progress | None) -> Stored:
        exchange = self._exchange
        with_validity = exchange.session.version != 0
        async with source.read(self.offset) as reading:
            size = self._key.content_size
            if size is not None and self.offset + reading.length != size:
                raise SourceError(f"the content has {self.offset + reading.length} bytes; its key says {size}")
            counted = reading if progress is None else _Counting(reading, self.offset, progress)

            def after(valid: bool) -> list[Message]:
                if with_validity and (valid or self._key.has_checksum):
                    return [Valid() if valid else Invalid()]
                if not valid:
                    # Version 0 has no INVALID, and git-annex stores content without a checksum regardless (observed
                    # with git-annex 10.20261026): only hanging up keeps the peer from storing it.
                    raise SourceError("the content changed while it was sent")
                return []

            valid = await exchange.stream.send_data(counted, after)
        answer = await exchange.stream.receive(
            "waiting to hear whether it was stored", extra_timeout_for(self.offset + reading.length)
        )
        exchange.answered(Valid if with_validity else Data, answer)
        return exchange.stored(answer, () if valid else ("the content changed while it was sent",))


class _Counting(SourceReading):
    """Report the progress of a reading: a chunk has been sent once the next one is requested."""

    def __init__(self, reading: SourceReading, offset: int, progress: Progress) -> None:
        self.length = reading.length
        self._reading = reading
        self._position = offset
        self._progress = progress

    def file(self) -> FilePart | None:
        return self._reading.file()

    def sent(self, count: int) -> None:
        self._reading.sent(count)
        self._position += count
        self._progress(self._position)

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._reading.chunks():
            yield chunk
            self._position += len(chunk)
            self._progress(self._position)

    async def valid(self) -> bool:
        return await self._reading.valid()


class _StreamDownload(Download):
    def __init__(self, exchange: _Exchange, key: Key, offset: int, length: int) -> None:
        self.length = length
        self.verdict: bool | None = None
        self._exchange = exchange
        self._expected = None if key.content_size is None else max(0, key.content_size - offset)
        self._left = length

    async def chunks(self) -> AsyncIterator[bytes]:
        async with self._exchange.named():
            async for chunk in self._exchange.stream.receive_data(self._left):
                self._left -= len(chunk)
                yield chunk

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        async with self._exchange.named():
            async for count in self._exchange.stream.receive_into(self._left, descriptor, position):
                self._left -= count
                position += count
                progress(position)

    async def valid(self) -> bool:
        if self._left:
            raise RuntimeError("the content has not been read to its end")
        if self.verdict is None:
            async with self._exchange.named():
                self.verdict = await self._vouched_for()
        return self.verdict

    async def _vouched_for(self) -> bool:
        complete = self._expected is None or self.length == self._expected
        if self._exchange.session.version == 0:
            return complete
        match await self._exchange.stream.receive("waiting to hear whether the content is valid"):
            case Valid():
                return complete
            case Invalid():
                return False
            case other:
                raise _unexpected(other, "VALID or INVALID")


async def _stderr_tail(stream: MessageStream, error: BaseException) -> str:
    """Return the peer's standard error, formatted to be appended to an error about a lost or silent connection."""
    words = await stream.connection.stderr_tail() if isinstance(error, ConnectionLost | TimedOut) else ""
    return f": {words}" if words else ""


def _unexpected(message: Message, wanted: str) -> ProtocolError:
    return ProtocolError(f"expected {wanted}, got {describe(message)[:200]!r}")
