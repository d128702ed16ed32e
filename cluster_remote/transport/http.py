"""Talk to a repository behind `git annex p2phttp`, or behind our own gateway over HTTP.

Each request of the P2P protocol is one HTTP request. An upload is aborted by ending its body early, and the server then
answers that nothing was stored: hanging up would break the requests of other clients (see httpclient.py).
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any
from urllib.parse import quote

import anyio
import httpcore

from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, Refused, SessionError, SourceError
from cluster_remote.p2p.key import UUID, AssociatedFile, Key, encode
from cluster_remote.p2p.messages import (
    AlreadyHavePlus,
    CheckPresent,
    Data,
    DataPresent,
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
    since,
)
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Removal,
    Session,
    Source,
    SourceReading,
    Stored,
    Upload,
)
from cluster_remote.p2p.stream import Trace
from cluster_remote.p2p.timeouts import extra_timeout_for, reading_time
from cluster_remote.transport.httpclient import DATA_LENGTH, PAUSE, HttpClient, ServerFailed, TooOld, body_of, coded

__all__ = ["HttpSession"]

# Seconds for the server to confirm an unlock; by then it has happened.
_UNLOCKING = 10.0
_JSON = "application/json"
# The largest content, in bytes, that is read before its request is sent, in one write.
_SMALL = 64 * 1024


class HttpSession(Session):
    """Implement Session over HTTP."""

    def __init__(self, http: HttpClient, trace: Trace | None = None) -> None:
        """Create a session. Closing it closes `http`."""
        self.http = http
        self._trace = trace

    @property
    def name(self) -> str:
        return self.http.name

    @property
    def version(self) -> int | None:
        return self.http.version if self.http.has_answered else None

    async def open(self) -> UUID:
        return await self.http.open()

    async def aclose(self) -> None:
        await self.http.aclose()

    # Requests

    async def check_present(self, key: Key) -> bool:
        self._log_sent(CheckPresent(key))
        present = await self.http.check_present(key, f"checking {key}")
        self._log_received(Success() if present else Failure())
        return present

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        doing = f"removing {key}"
        parameters = {"key": coded(bytes(key))}
        extra_timeout = reading_time(key.size)
        if before is None:
            self._log_sent(Remove(key))
            answer = await self.http.ask("remove", parameters, doing, extra_timeout=extra_timeout)
        else:
            self._log_sent(RemoveBefore(before, key))
            parameters["timestamp"] = str(before)
            answer = await self.http.ask(
                "remove-before", parameters, doing, extra_timeout=extra_timeout, lowest=since(RemoveBefore)
            )
        removed, uuids = self.http.field(answer, "removed", bool, doing), self.http.uuids(answer, doing)
        self._log_received(SuccessPlus(uuids) if removed else FailurePlus(uuids))
        return Removal(removed, uuids, () if removed else (f"{self.name} did not remove it everywhere",))

    async def timestamp(self) -> int:
        self._log_sent(GetTimestamp())
        doing = "asking for the time"
        answer = await self.http.ask("gettimestamp", {}, doing, again=True, lowest=since(GetTimestamp))
        seconds = self.http.field(answer, "timestamp", int, doing)
        self._log_received(Timestamp(seconds))
        return seconds

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        self._log_sent(Put(file, key))
        doing = f"uploading {key}"
        try:
            answer = await self.http.ask(
                "putoffset",
                {"key": coded(bytes(key))},
                doing,
                extra_timeout=reading_time(key.size),
                again=True,
                lowest=1,
            )
        except TooOld:
            # Version 0 restarts every upload, and does not say whether the content is already present.
            answer = {"offset": 0}
        if answer.get("alreadyhave") is True:
            uuids = self.http.uuids(answer, doing)
            self._log_received(AlreadyHavePlus(uuids))
            yield Present(uuids)
            return
        offset = self.http.field(answer, "offset", int, doing)
        if offset < 0 or (key.content_size is not None and offset > key.content_size):
            raise ProtocolError(f"{self.name}: {doing}: impossible offset {offset}")
        if key.is_encrypted:
            # Encrypting the same content again gives different bytes, so a partial upload cannot be resumed.
            offset = 0
        self._log_received(PutFrom(offset))
        yield _HttpUpload(self, key, file, offset, doing)

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        """See Session. If the server fails during the upload, the content is offered once more, and resumed.

        If it then has the content, which it did not have before, this upload stored it.
        """
        async with self.upload(key, file) as offer:
            if isinstance(offer, Present):
                return offer
            try:
                return await offer.send(source, progress)
            except (ServerFailed, ConnectionLost):
                if not source.repeatable:
                    raise
        await anyio.sleep(PAUSE)
        outcome = await super().store(key, file, source, progress)
        return Stored(True, outcome.uuids) if isinstance(outcome, Present) else outcome

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        self._log_sent(Get(offset, file, key))
        doing = f"downloading {key}"
        size = key.content_size
        parameters = _with_file({"offset": str(offset)} if offset else {}, file)
        endpoint = f"key/{quote(coded(bytes(key)), safe='')}"
        async with self.http.send(
            "GET", endpoint, parameters, doing, extra_timeout=extra_timeout_for(size), again=True
        ) as response:
            length = self.http.data_length(response, doing)
            expected = None if size is None else max(0, size - offset)
            if expected is not None and length > expected:
                raise ProtocolError(
                    f"{self.name}: {doing}: the server announces {length} bytes, but only {expected} are left"
                )
            # The server answers the same if the content is missing; only a query distinguishes that from content that
            # is empty, or already complete here.
            missing = not length and (expected not in (0, None) or not await self.http.check_present(key, doing))
            self._log_received(Data(length))
            yield _HttpDownload(self, response, length, missing, expected, doing)

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        self._log_sent(LockContent(key))
        doing = f"locking {key}"
        answer = await self.http.ask("lockcontent", {"key": coded(bytes(key))}, doing)
        if not self.http.field(answer, "locked", bool, doing):
            self._log_received(Failure())
            yield False
            return
        lock = self.http.field(answer, "lockid", str, doing)
        released = anyio.Event()

        async def until_released() -> AsyncIterator[bytes]:
            yield b'{"unlock":false}\n'
            await released.wait()
            yield b'{"unlock":true}\n'

        failures: list[SessionError] = []

        async def keep() -> None:
            try:
                async with self.http.send(
                    "POST",
                    "keeplocked",
                    {"lockid": lock},
                    doing,
                    body=until_released(),
                    type=_JSON,
                    extra_timeout=math.inf,
                ) as response:
                    await self.http.translate_errors(body_of(response), doing)
            except SessionError as error:
                failures.append(error)

        failed: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            try:
                self._log_received(Success())
                yield True
            except Exception as error:  # noqa: BLE001 -- raised again below
                # Raised later, so that it is not wrapped in an exception group.
                failed = error
            finally:
                self._log_sent(UnlockContent())
                released.set()
                tasks.cancel_scope.deadline = anyio.current_time() + _UNLOCKING
        if failed is not None:
            raise failed
        if failures:
            raise failures[0]

    def _log_sent(self, message: Message) -> None:
        if self._trace is not None:
            self._trace(True, message)

    def _log_received(self, message: Message) -> None:
        if self._trace is not None:
            self._trace(False, message)


class _HttpUpload(Upload):
    def __init__(self, session: HttpSession, key: Key, file: AssociatedFile, offset: int, doing: str) -> None:
        self.offset = offset
        self._session = session
        self._key = key
        self._file = file
        self._doing = doing

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        session, doing = self._session, self._doing
        async with source.read(self.offset) as reading:
            size = self._key.content_size
            if size is not None and self.offset + reading.length != size:
                raise SourceError(f"the content has {self.offset + reading.length} bytes; its key says {size}")
            body = _Body(reading, self.offset, progress)
            small = b"".join([part async for part in body.chunks()]) if reading.length <= _SMALL else None
            if body.error is not None:
                raise body.error
            parameters = {"key": coded(bytes(self._key))}
            if self.offset:
                parameters["offset"] = str(self.offset)
            session._log_sent(Data(reading.length))
            async with session.http.send(
                "POST",
                "put",
                _with_file(parameters, self._file),
                doing,
                body=body.chunks() if small is None else small,
                headers={DATA_LENGTH: str(reading.length)},
                extra_timeout=extra_timeout_for(self.offset + reading.length),
            ) as response:
                answer = await session.http.read_json(response, doing)
        if body.error is not None:
            raise body.error
        session._log_sent(Valid() if body.valid else Invalid())
        outcome = self._outcome(answer, (f"{session.name} did not store it",))
        return (
            outcome
            if body.valid
            else replace(outcome, reasons=("the content changed while it was sent", *outcome.reasons))
        )

    async def check_arrived(self) -> Stored:
        session, doing = self._session, self._doing
        absent = (f"{session.name} does not have it",)
        if session.http.version < since(DataPresent):
            present = await session.check_present(self._key)
            return Stored(present, reasons=() if present else absent)
        session._log_sent(DataPresent())
        async with session.http.send(
            "POST",
            "put",
            _with_file({"key": coded(bytes(self._key)), "data-present": "true"}, self._file),
            doing,
            headers={DATA_LENGTH: "0"},
            extra_timeout=extra_timeout_for(self._key.content_size),
        ) as response:
            answer = await session.http.read_json(response, doing)
        return self._outcome(answer, absent)

    def _outcome(self, answer: dict[str, Any], reasons: tuple[str, ...]) -> Stored:
        """Parse an answer to `put`; `reasons` apply if nothing was stored."""
        session = self._session
        stored, uuids = session.http.field(answer, "stored", bool, self._doing), session.http.uuids(answer, self._doing)
        session._log_received(SuccessPlus(uuids) if stored else FailurePlus(uuids))
        return Stored(True, uuids) if stored else Stored(False, uuids, reasons)


class _Body:
    """The body of an upload. It ends one byte short if the content proves invalid, and early if the source fails."""

    def __init__(self, reading: SourceReading, offset: int, progress: Progress | None) -> None:
        self._reading = reading
        self._position = offset
        self._progress = progress
        self.error: SourceError | None = None
        self.valid = True

    async def chunks(self) -> AsyncIterator[bytes]:
        left = self._reading.length
        try:
            async for chunk in self._reading.chunks():
                left -= len(chunk)
                if left < 0:
                    raise SourceError("the content is longer than announced")
                # The server considers the content complete as soon as it has the last byte.
                self.valid = bool(left) or await self._reading.valid()
                part = chunk if self.valid else chunk[:-1]
                if part:
                    yield bytes(part)
                self._position += len(chunk)
                if self._progress is not None:
                    self._progress(self._position)
            if left:
                raise SourceError(f"the content ended {left} bytes early")
        except SourceError as error:
            self.error = error


class _HttpDownload(Download):
    def __init__(
        self,
        session: HttpSession,
        response: httpcore.Response,
        length: int,
        missing: bool,
        expected: int | None,
        doing: str,
    ) -> None:
        self.length = length
        self._missing = missing
        self._expected = expected
        self._session = session
        self._response = response
        self._doing = doing
        self._left = length
        # A response can only be read once, so all iterations share this.
        self._stream = response.aiter_stream().__aiter__()

    async def chunks(self) -> AsyncIterator[bytes]:
        where = f"{self._session.name}: {self._doing}"
        while True:
            try:
                chunk: bytes = await self._session.http.translate_errors(self._stream.__anext__(), self._doing)
            except StopAsyncIteration:
                break
            self._left -= len(chunk)
            if self._left < 0:
                raise ProtocolError(f"{where}: the server sent more bytes than it announced")
            if chunk:
                yield chunk
        if self._left:
            # A server that finds the content invalid while sending it ends one byte short.
            raise Refused(f"{where}: the server stopped {self._left} bytes before the end")

    async def valid(self) -> bool:
        return not self._missing and not self._left and self._expected in (None, self.length)


def _with_file(parameters: Mapping[str, str], file: AssociatedFile) -> dict[str, str]:
    return {**parameters, "associatedfile": coded(encode(file.text))} if file.text else dict(parameters)
