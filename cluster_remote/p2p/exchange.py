"""Send one request to a peer over a stream, and receive its answer; uploads and downloads over a stream."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import anyio

from cluster_remote.p2p.errors import (
    BeyondTheEnd,
    ConnectionLost,
    NoRoom,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import AssociatedFile, Key
from cluster_remote.p2p.messages import (
    ANSWERS,
    AlreadyHavePlus,
    CheckPresent,
    Data,
    DataPresent,
    Error,
    Failure,
    FailurePlus,
    Invalid,
    Message,
    Put,
    PutFrom,
    Remove,
    Success,
    SuccessPlus,
    UnlockContent,
    Valid,
    describe,
    expected_answers,
    since,
)
from cluster_remote.p2p.session import (
    Download,
    FilePart,
    Progress,
    Source,
    SourceReading,
    Stored,
    Upload,
)
from cluster_remote.p2p.stream import MessageStream
from cluster_remote.p2p.timeouts import extra_timeout_for

if TYPE_CHECKING:
    from cluster_remote.p2p.client import StreamSession

__all__ = ["Exchange", "StreamDownload", "StreamUpload", "stderr_suffix", "unexpected"]

# Seconds before each attempt to send a request on a connection that may have given way to other clients.
_PAUSES = (0.0, 0.05, 0.5, 1.0, 2.0)
# Maximum bytes of CHECKPRESENT requests in one batch, and the overhead of each request besides its key.
_BATCH_BYTES, _REQUEST_OVERHEAD = 8 * 1024, 16


class Exchange:
    """One request from start to end."""

    stream: MessageStream

    def __init__(self, session: StreamSession, doing: str) -> None:
        self.session = session
        self.doing = doing
        self.settled = True
        """Whether the peer is ready for the next request. If not, the connection must be closed rather than reused."""
        self.may_have_given_way = False
        """Whether a gateway may have ended the idle connection just as the request was sent. All requests may be sent
        again: the first one was not read, or it has the same result."""

    def error_context(self) -> _ErrorContext:
        """Add to session errors the session's name, the operation and the peer's standard error, if any."""
        return _ErrorContext(self)

    async def ask(self, request: Message, extra_timeout: float = 0) -> Message:
        """Send a request and return its answer. Raises Refused for ERROR, ProtocolError for an unexpected message."""
        self.settled = False
        return self.check_answer(type(request), await self._answer(request, extra_timeout))

    async def _answer(self, request: Message, extra_timeout: float) -> Message:
        """Return any answer; if the connection may have given way to others, send the request again on a new one."""
        pauses, self.may_have_given_way = _PAUSES if self.may_have_given_way else _PAUSES[:1], False
        lost: ConnectionLost | None = None
        for pause in pauses:
            try:
                if lost is not None:
                    await anyio.sleep(pause)
                    self.stream = await self.session.reconnect()
                await self.stream.send(request)
                answer = await self.stream.receive(extra_timeout=extra_timeout)
                self.session.has_answered = True
                return answer
            except Unreachable as error:
                if lost is None or not isinstance(error, NoRoom):
                    raise lost or error from None
            except ConnectionLost as error:
                lost = error
        assert lost is not None
        raise lost

    def check_answer(self, request: type[Message], answer: Message) -> Message:
        """Check an answer against `ANSWERS`, which also says whether it ends the request, and return it.

        Raises Refused for ERROR, which ends any request; ProtocolError for a message that does not answer this one.
        """
        if isinstance(answer, Error):
            self.settled = True
            raise Refused(self.session.redacted(answer.text))
        is_final = ANSWERS[request].get(type(answer))
        if is_final is None:
            raise unexpected(answer, expected_answers(request))
        self.settled = is_final
        return answer

    async def start_over(self, key: Key) -> None:
        """Make the peer discard a partial upload of encrypted content, which it has just offered to resume.

        Encrypting the same content again gives different bytes, so resuming would silently store content that cannot
        be decrypted. No message removes a partial upload: it has to be completed first. Raises Refused if that is not
        possible.
        """
        server = self.session.uuid
        if server is not None and server.is_cluster:
            # Its nodes may have partial uploads of different lengths; only the smallest is known here.
            raise Refused(
                "a node has a partial upload of this encrypted content, which cannot be "
                "resumed; in every node, remove the file .git/annex/tmp/KEY (git annex unused lists it, git annex "
                f"dropunused removes it), where KEY is {key}"
            )
        nothing_more = self._empty_data()
        with anyio.CancelScope(shield=True):
            # Send REMOVE in the same write, so that the peer has it before it can treat the content as complete.
            await self.stream.send(*nothing_more, Remove(key))
            self.check_answer(type(nothing_more[-1]), await self.stream.receive())
            if isinstance(self.check_answer(Remove, await self.stream.receive()), Failure | FailurePlus):
                raise Refused(
                    f"it has a useless partial upload of the encrypted {key}, which can be neither resumed nor "
                    "removed; remove it with git annex drop --from"
                )

    async def discard_overlong(self) -> None:
        """Make the peer discard a partial upload that is longer than the content.

        Sending no more bytes, as git-annex does, ends that upload: the peer finds a size mismatch. Raises ProtocolError
        if the peer accepts it as the content.
        """
        with anyio.CancelScope(shield=True):
            await self.stream.send(*self._empty_data())
            match await self.stream.receive():
                case Failure() | FailurePlus() | Error():
                    return
                case other:
                    raise ProtocolError(f"it accepted more bytes than the content has: {describe(other)[:100]}")

    def _empty_data(self) -> list[Message]:
        return [Data(0)] if self.session.version == 0 else [Data(0), Valid()]

    async def put_again(self, file: AssociatedFile, key: Key) -> Message:
        """Offer the content again after the peer has discarded its partial upload. Raises ProtocolError."""
        answer = await self.ask(Put(file, key))
        if isinstance(answer, PutFrom) and answer.offset > 0:
            raise ProtocolError(
                f"it still has {answer.offset} bytes of the partial upload, which it should have discarded"
            )
        return answer

    async def ask_all(self, keys: Sequence[Key]) -> list[bool | Refused]:
        """Check each key, pipelining the requests."""
        answers: list[bool | Refused] = []
        waiting = 0
        for batch in _batches(keys):
            self.settled = False
            await self.stream.send(*batch)
            # Read the answers to the previous batch while the peer works on this one.
            answers += [await self._presence() for _ in range(waiting)]
            waiting = len(batch)
        answers += [await self._presence() for _ in range(waiting)]
        self.settled = True
        return answers

    async def _presence(self) -> bool | Refused:
        try:
            return isinstance(self.check_answer(CheckPresent, await self.stream.receive()), Success)
        except Refused as refusal:
            return Refused(f"{self.session.name}: {refusal}")

    def outcome(self, answer: Message, doubt: tuple[str, ...] = ()) -> Stored:
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


class _ErrorContext:
    """Implement `Exchange.error_context`. A class, because that is faster and each request enters it several times."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def __aenter__(self) -> None:
        return

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if isinstance(error, SessionError):
            exchange = self._exchange
            tail = "" if exchange.settled else await stderr_suffix(exchange.stream, error)
            raise type(error)(f"{exchange.session.name}: {exchange.doing}: {error}{tail}") from None


def _batches(keys: Sequence[Key]) -> Iterator[list[CheckPresent]]:
    """Yield requests in batches so small that two fit into any pipe, so writing never blocks on the reader."""
    batch: list[CheckPresent] = []
    size = 0
    for key in keys:
        if batch and size + len(key.text) > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
        batch.append(CheckPresent(key))
        size += len(key.text) + _REQUEST_OVERHEAD
    if batch:
        yield batch


class StreamUpload(Upload):
    def __init__(self, exchange: Exchange, key: Key, file: AssociatedFile, offset: int) -> None:
        self.offset = offset
        self._exchange = exchange
        self._key = key
        self._file = file
        self._begun = False

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        if self._begun:
            raise RuntimeError("the content can be sent only once")
        self._begun = True
        async with self._exchange.error_context():
            try:
                return await self._send(source, progress)
            except BeyondTheEnd as error:
                if not source.repeatable:
                    raise Refused(str(error)) from None
            # The key has no size, so only reading the source shows that the peer has too many bytes.
            await self._exchange.start_over(self._key)
            match await self._exchange.put_again(self._file, self._key):
                case PutFrom(offset):
                    self.offset = offset
                    return await self._send(source, progress)
                case AlreadyHavePlus(uuids):
                    return Stored(True, uuids)
                case _:
                    return Stored(True)

    async def check_arrived(self) -> Stored:
        if self._begun:
            raise RuntimeError("the content has been sent")
        self._begun = True
        exchange = self._exchange
        async with exchange.error_context():
            version = exchange.session.version
            assert version is not None
            if version >= since(DataPresent):
                return exchange.outcome(await exchange.ask(DataPresent(), extra_timeout_for(self._key.content_size)))
            # An older peer is still waiting for the content, so asking it takes a new connection.
            exchange.stream = await exchange.session.reconnect()
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
        exchange.check_answer(Valid if with_validity else Data, answer)
        return exchange.outcome(answer, () if valid else ("the content changed while it was sent",))


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


class StreamDownload(Download):
    def __init__(self, exchange: Exchange, key: Key, offset: int, length: int) -> None:
        self.length = length
        self.verdict: bool | None = None
        self._exchange = exchange
        self._expected = None if key.content_size is None else max(0, key.content_size - offset)
        self._left = length

    async def chunks(self) -> AsyncIterator[bytes]:
        async with self._exchange.error_context():
            async for chunk in self._exchange.stream.receive_data(self._left):
                self._left -= len(chunk)
                yield chunk

    async def save(self, descriptor: int, position: int, progress: Progress) -> None:
        async with self._exchange.error_context():
            async for count in self._exchange.stream.receive_into(self._left, descriptor, position):
                self._left -= count
                position += count
                progress(position)

    async def valid(self) -> bool:
        if self._left:
            raise RuntimeError("the content has not been read to its end")
        if self.verdict is None:
            async with self._exchange.error_context():
                self.verdict = await self._receive_verdict()
        return self.verdict

    async def _receive_verdict(self) -> bool:
        complete = self._expected is None or self.length == self._expected
        if self._exchange.session.version == 0:
            return complete
        match await self._exchange.stream.receive("waiting to hear whether the content is valid"):
            case Valid():
                return complete
            case Invalid():
                return False
            case other:
                raise unexpected(other, "VALID or INVALID")


async def stderr_suffix(stream: MessageStream, error: BaseException) -> str:
    """Return the peer's standard error, formatted to be appended to an error about a lost or silent connection."""
    tail = await stream.connection.stderr_tail() if isinstance(error, ConnectionLost | TimedOut) else ""
    return f": {tail}" if tail else ""


def unexpected(message: Message, wanted: str) -> ProtocolError:
    return ProtocolError(f"expected {wanted}, got {describe(message)[:200]!r}")
