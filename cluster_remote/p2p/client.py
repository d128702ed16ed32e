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

__all__ = ["DEFAULT_TIMEOUT", "StreamSession", "Transport", "patience_for", "reading_time"]

DEFAULT_TIMEOUT = 60.0
# A peer that has all the content may still have to hash it, or to carry it on to a bucket at the speed of a
# home line, before it can answer; meanwhile no byte moves. It is granted a second for each of these bytes.
_BYTES_PER_SECOND_OF_PATIENCE = 1024 * 1024
# What a slow disk reads; a server may hash what it has of a content before it says from where to go on.
_BYTES_READ_PER_SECOND = 32 * 1024 * 1024
# Seconds that a child process or a socket gets to end by itself: after a good conversation, and after a bad one.
_GRACE, _SHORT_GRACE = 5.0, 0.5
# Bytes of questions that are sent before the answers to the last ones are read, and of what each has besides its key.
_AHEAD, _QUESTION = 8 * 1024, 16
# Characters of a peer's own words that are worth repeating.
_LONGEST_WORDS = 500


def patience_for(size: int | None) -> float:
    """Seconds on top of the timeout that a peer may take to deal with a content of `size` bytes as a whole, where it
    may have to bring it somewhere else or fetch it from there, such as a bucket."""
    return (size or 0) / _BYTES_PER_SECOND_OF_PATIENCE


def reading_time(size: int | None) -> float:
    """Seconds on top of the timeout that a peer may take to read a content of `size` bytes from its disk."""
    return (size or 0) / _BYTES_READ_PER_SECOND


class Transport(ABC):
    """The way to one peer."""

    name: str
    """For people: the address, without any secret."""
    token: str | None = None
    """What to authenticate with; None where the way there has authenticated the client already (a process, ssh)."""

    @abstractmethod
    async def connect(self) -> Connection:
        """A new connection. Raises Unreachable. The caller sets the deadline."""

    def turn(self) -> AbstractAsyncContextManager[None]:
        """Wait until one may connect, and keep others waiting until the peer has greeted. Has no deadline."""
        return nullcontext()

    def again_in(self, attempts: int, complaint: str) -> float | None:
        """Say in how many seconds to try again, after so many attempts were refused; None: not at all."""
        return None


class StreamSession(Session):
    """See Session. The connection is made at the first request, and again when it turns out to have died idle.

    A connection that dies inside a request fails that request only.
    """

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
        """`client` is the UUID of the repository that asks; `expected` that of the peer, where it is known."""
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
                words = await _last_words(stream, error)
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
        match await stream.receive("waiting to be let in"):
            case AuthSuccess(uuid):
                pass
            case AuthFailure():
                raise AuthenticationFailed("the server did not accept the token")
            case Error(text):
                raise AuthenticationFailed(f"the server would not let us in: {self._said(text)}")
            case other:
                raise _unexpected(other, "AUTH-SUCCESS")
        if self.expected is not None and uuid != self.expected:
            raise WrongRepository(f"the server is repository {uuid}, not {self.expected} as it should be")
        await stream.send(Version(MAX_VERSION))
        match await stream.receive("agreeing on the protocol's version"):
            case Version(number) if number <= MAX_VERSION:
                self._version = number
            case Error():
                # A server from before there were versions.
                self._version = 0
            case other:
                raise _unexpected(other, f"VERSION {MAX_VERSION} or lower")
        self._uuid = uuid
        if self.bypass and self._version >= since(Bypass):
            await stream.send(Bypass(self.bypass))

    def _said(self, text: str) -> str:
        """A peer's own words, fit to be shown; should it repeat the token, without that."""
        if self.transport.token:
            text = text.replace(self.transport.token, "[token]")
        return printable(text[:_LONGEST_WORDS])

    @asynccontextmanager
    async def _request(self, doing: str) -> AsyncIterator[_Exchange]:
        """One request, on a connection that is good as far as can be seen; closed unless the request came to its end.

        What the caller of a lock, an upload or a download does in its context may fail for reasons that have nothing
        to do with this peer: such errors pass through as they are.
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
            answer = await exchange.ask(request, patience=reading_time(key.size))
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
                # What went wrong meanwhile is the news, not that the peer has gone away too.
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
                answer = await exchange.ask(Put(file, key), patience=reading_time(key.size))
                if isinstance(answer, PutFrom) and answer.offset > 0 and key.is_encrypted:
                    await exchange.start_over(key)
                    answer = await exchange.put_anew(file, key)
                size = key.content_size
                if isinstance(answer, PutFrom) and size is not None and answer.offset > size:
                    await exchange.end_overlong()
                    answer = await exchange.put_anew(file, key)
                match answer:
                    case PutFrom(offset):
                        # Until the content has been sent the peer waits for DATA, and can only be told by hanging up
                        # that none will come.
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
                # Version 0 answers DATA 0 both where nothing is left to send and where the content is not there.
                unclear = self._version == 0 and (size is None or offset >= size)
                if unclear and isinstance(await exchange.ask(CheckPresent(key)), Failure):
                    raise Refused("the server does not have the content")
                answer = await exchange.ask(Get(offset, file, key), patience=patience_for(size))
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
    """One request from its start to its end."""

    stream: MessageStream

    def __init__(self, session: StreamSession, doing: str) -> None:
        self.session = session
        self.doing = doing
        self.settled = True
        """Whether the peer waits for the next request: the connection can serve one then, and else must be closed."""

    def named(self) -> _Named:
        """Where the peer is spoken with: errors come to say which session it was, what it was doing and, where the
        peer's program said why it ended, that."""
        return _Named(self)

    async def ask(self, request: Message, patience: float = 0) -> Message:
        """Send a request and return its answer. Raises Refused if that is ERROR, ProtocolError if it is no answer."""
        self.settled = False
        await self.stream.send(request)
        return self.answered(type(request), await self.stream.receive(patience=patience))

    def answered(self, request: type[Message], answer: Message) -> Message:
        """Return the answer to a request, by the table of answers, which also says whether the request is over.

        Raises Refused if it is ERROR, which ends any request; ProtocolError if it is no answer to this one.
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
        """Makes the peer, which has just offered to go on with an earlier upload of an encrypted content, forget that.

        The same content is encrypted differently every time: what the peer has and the rest of what there is now
        would make a content that nobody can decrypt, and nobody would notice. No message removes an unfinished
        upload; it has to be finished first. Raises Refused where that is not possible.
        """
        server = self.session._uuid
        if server is not None and server.is_cluster:
            # Its nodes may have different parts, of which only the smallest is known here.
            raise Refused(
                "a node has kept the beginning of an earlier upload of this encrypted content, with which this one "
                "cannot go on; in every node, remove the file .git/annex/tmp/KEY (git annex unused lists it, git annex "
                f"dropunused removes it), where KEY is {key}"
            )
        finished: list[Message] = [Data(0)] if self.session.version == 0 else [Data(0), Valid()]
        with anyio.CancelScope(shield=True):
            # In one go, so that the peer has been told to remove it before it can have taken it for complete.
            await self.stream.send(*finished, Remove(key))
            self.answered(type(finished[-1]), await self.stream.receive())
            if isinstance(self.answered(Remove, await self.stream.receive()), Failure | FailurePlus):
                raise Refused(
                    "the beginning of an earlier upload of this encrypted content is there and cannot be removed; "
                    f"what there is of {key} now is of no use, remove it with git annex drop --from"
                )

    async def end_overlong(self) -> None:
        """Make the peer throw away a part of the content that is longer than the whole.

        Sending nothing more, as git-annex does, ends that upload: the peer finds that the content has the wrong size.
        Raises ProtocolError where it takes that for the content.
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
        """Offer the content once more, when the peer has been made to forget what it had. Raises ProtocolError."""
        answer = await self.ask(Put(file, key))
        if isinstance(answer, PutFrom) and answer.offset > 0:
            raise ProtocolError(f"it keeps {answer.offset} bytes of the content that it was to throw away")
        return answer

    async def ask_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        """Asks about one key after the other, ahead of the answers."""
        answers: list[bool | Refused] = []
        waiting = 0
        for questions in _ahead(keys):
            self.settled = False
            await self.stream.send(*questions)
            # What was sent before is answered first, while the peer has these to go on with.
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
        """Return what a peer says of an upload; `doubt` is what is to be said besides."""
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
    """See `_Exchange.named`. A class, for it is entered several times a request, and this is quicker."""

    def __init__(self, exchange: _Exchange) -> None:
        self._exchange = exchange

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SessionError):
            exchange = self._exchange
            words = "" if exchange.settled else await _last_words(exchange.stream, error)
            raise type(error)(f"{exchange.session.name}: {exchange.doing}: {error}{words}") from None


def _ahead(keys: Sequence[Key]) -> Iterator[list[CheckPresent]]:
    """Questions in portions, of which two fit into any pipe: whoever writes them never has to wait for a reader."""
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
            # The key does not say its size, so only now does it show that the peer has too much.
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
                return exchange.stored(await exchange.ask(DataPresent(), patience_for(self._key.content_size)))
            # An older peer waits for the content; it can only be asked on a new connection.
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
                    # Version 0 has no word for it, and without a checksum git-annex keeps it whatever is said (observed
                    # with git-annex 10.20261026): hanging up is the only way to keep the peer from storing it.
                    raise SourceError("the content changed while it was sent")
                return []

            valid = await exchange.stream.send_data(counted, after)
        answer = await exchange.stream.receive(
            "waiting to hear whether it was stored", patience_for(self.offset + reading.length)
        )
        exchange.answered(Valid if with_validity else Data, answer)
        return exchange.stored(answer, () if valid else ("the content changed while it was sent",))


class _Counting(SourceReading):
    """Tells how far a reading has come: what was asked for next, has gone out."""

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


async def _last_words(stream: MessageStream, error: BaseException) -> str:
    """What the peer's program said before it went away or fell silent, to be appended to the error."""
    words = await stream.connection.last_words() if isinstance(error, ConnectionLost | TimedOut) else ""
    return f": {words}" if words else ""


def _unexpected(message: Message, wanted: str) -> ProtocolError:
    return ProtocolError(f"expected {wanted}, got {describe(message)[:200]!r}")
