"""Talk to a repository behind `git annex p2phttp`, or behind our own gateway over HTTP.

Each request of the P2P protocol is one HTTP request. Their formats and the server's faults were observed with git-annex
10.20261026: an answer of 500, or none, is often caused by another client's broken connection, so queries are retried.
Hanging up during an upload would cause that very fault, so an upload is aborted by ending its body early; the server
then answers that nothing was stored.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar
from urllib.parse import quote, urlencode, urlsplit

import anyio
import httpcore

from cluster_remote.annex.logins import Login
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.client import DEFAULT_TIMEOUT, extra_timeout_for, reading_time
from cluster_remote.p2p.errors import (
    AuthenticationFailed,
    ConnectionLost,
    NotServed,
    ProtocolError,
    Refused,
    SessionError,
    SourceError,
    TimedOut,
    Unreachable,
)
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
from cluster_remote.p2p.text import printable

__all__ = ["DATA_LENGTH", "Authentication", "HttpSession"]

T = TypeVar("T")

# The header with the length of the content in bytes.
DATA_LENGTH = "X-git-annex-data-length"
# Maximum bytes of an answer without content; the longest lists the UUIDs of the nodes.
_LONGEST_ANSWER = 1024 * 1024
# Maximum characters of a server's text to quote.
_LONGEST_WORDS = 300
# How many known repositories to ask a server for that does not say who it is.
_MOST_CANDIDATES = 30
# Seconds to wait before retrying a query.
_PAUSE = 0.5
# Seconds for the server to confirm an unlock; by then it has happened.
_UNLOCKING = 10.0
_JSON = "application/json"


class Authentication(Protocol):
    """Where logins come from: the remote's own token, git's credential helpers."""

    async def login(self, refused: Sequence[Login]) -> Login | None:
        """Return the next login to try; None if there are no more. `refused` are those that the server rejected."""

    async def accepted(self, login: Login) -> None:
        """Note that the server accepted a login. Never raises."""

    async def rejected(self, login: Login) -> None:
        """Note that the server rejected a login. Never raises."""


@dataclass(frozen=True)
class _Answer:
    """An answer that has been read completely."""

    status: int
    body: bytes

    def words(self) -> str:
        return printable(self.body[:_LONGEST_WORDS].decode("utf-8", "replace").strip())


class _TooOld(Refused):
    """The server's protocol version is too old for the request."""


class HttpSession(Session):
    """Implement Session over HTTP. The pool keeps connections open between requests.

    No request tells who answers. Without a `server` the first request asks for each of the `candidates`, and the one
    cluster that is served there is meant, or else the first repository.
    """

    def __init__(
        self,
        base: str,
        server: UUID | None,
        *,
        name: str,
        client: UUID,
        pool: httpcore.AsyncConnectionPool,
        authentication: Authentication | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        bypass: frozenset[UUID] = frozenset(),
        trace: Trace | None = None,
        candidates: Callable[[], Awaitable[Sequence[UUID]]] | None = None,
    ) -> None:
        """Create a session; `base` is the url without the final /git-annex/. Closing the session closes `pool`."""
        self._base = f"{base.rstrip('/')}/git-annex/"
        self._candidates = candidates
        self._host = urlsplit(base).netloc.encode()
        self._server = server
        self._name = name
        self._client = client
        self._pool = pool
        self._authentication = authentication
        self._login: Login | None = None
        self._accepted = False
        self._timeout = timeout
        self._bypass = bypass
        self._trace = trace
        self._version = MAX_VERSION
        self._known = False
        """Whether the server has answered in this version."""

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int | None:
        return self._version if self._known else None

    async def open(self) -> UUID:
        if self._server is None:
            await self._find()
        elif not self._known:
            await self._knock()
        assert self._server is not None
        return self._server

    async def _knock(self) -> None:
        # Any query will do; the smallest one is about a key that nobody has.
        await self._present(Key("WORM-s0--"), "connecting")

    async def _find(self) -> None:
        """Find out which of the candidates is served. Raises SessionError."""
        candidates = [] if self._candidates is None else list(await self._candidates())[:_MOST_CANDIDATES]
        found: list[UUID] = []
        for uuid in candidates:
            if found and not uuid.is_cluster:
                break
            self._server, self._version = uuid, MAX_VERSION if not self._known else self._version
            try:
                await self._knock()
            except NotServed:
                continue
            except BaseException:
                self._server = None
                raise
            found.append(uuid)
        self._server = found[0] if len(found) == 1 else None
        if not found:
            if not candidates:
                raise NotServed(
                    f"{self.name}: a server over HTTP does not say who it is, and no cluster is known here: fetch the "
                    "git-annex branch of its repository (git fetch --all; git annex merge)"
                )
            raise NotServed(
                f"{self.name}: none of the {len(candidates)} repositories that are known here is served there: check "
                "the url, which ends in /git-annex/, or fetch the git-annex branch of its repository (git fetch --all; "
                "git annex merge)"
            )
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise Refused(f"{self.name}: the server has several clusters: {names}; choose one of them")

    async def aclose(self) -> None:
        with anyio.move_on_after(self._timeout, shield=True):
            await self._pool.aclose()

    # Requests

    async def check_present(self, key: Key) -> bool:
        self._log(CheckPresent(key))
        present = await self._present(key, f"checking {key}")
        self._heard(Success() if present else Failure())
        return present

    async def _present(self, key: Key, doing: str) -> bool:
        answer = await self._ask("checkpresent", {"key": _coded(bytes(key))}, doing, again=True)
        return self._field(answer, "present", bool, doing)

    async def remove(self, key: Key, before: int | None = None) -> Removal:
        doing = f"removing {key}"
        parameters = {"key": _coded(bytes(key))}
        extra_timeout = reading_time(key.size)
        if before is None:
            self._log(Remove(key))
            answer = await self._ask("remove", parameters, doing, extra_timeout=extra_timeout)
        else:
            self._log(RemoveBefore(before, key))
            parameters["timestamp"] = str(before)
            answer = await self._ask(
                "remove-before", parameters, doing, extra_timeout=extra_timeout, lowest=since(RemoveBefore)
            )
        removed, uuids = self._field(answer, "removed", bool, doing), self._uuids(answer, doing)
        self._heard(SuccessPlus(uuids) if removed else FailurePlus(uuids))
        return Removal(removed, uuids, () if removed else (f"{self.name} did not remove it everywhere",))

    async def timestamp(self) -> int:
        self._log(GetTimestamp())
        doing = "asking for the time"
        answer = await self._ask("gettimestamp", {}, doing, again=True, lowest=since(GetTimestamp))
        seconds = self._field(answer, "timestamp", int, doing)
        self._heard(Timestamp(seconds))
        return seconds

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        self._log(Put(file, key))
        doing = f"uploading {key}"
        try:
            answer = await self._ask(
                "putoffset",
                {"key": _coded(bytes(key))},
                doing,
                extra_timeout=reading_time(key.size),
                again=True,
                lowest=1,
            )
        except _TooOld:
            # Version 0 restarts every upload, and does not say whether the content is already present.
            answer = {"offset": 0}
        if answer.get("alreadyhave") is True:
            uuids = self._uuids(answer, doing)
            self._heard(AlreadyHavePlus(uuids))
            yield Present(uuids)
            return
        offset = self._field(answer, "offset", int, doing)
        if offset < 0 or (key.content_size is not None and offset > key.content_size):
            raise ProtocolError(f"{self.name}: {doing}: impossible offset {offset}")
        if key.is_encrypted:
            # Encrypting the same content again gives different bytes, so a partial upload cannot be resumed.
            offset = 0
        self._heard(PutFrom(offset))
        yield _HttpUpload(self, key, file, offset, doing)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        self._log(Get(offset, file, key))
        doing = f"downloading {key}"
        size = key.content_size
        parameters = self._with_file({"offset": str(offset)} if offset else {}, file)
        endpoint = f"key/{quote(_coded(bytes(key)), safe='')}"
        async with self._send(
            "GET", endpoint, parameters, doing, extra_timeout=extra_timeout_for(size), again=True
        ) as response:
            length = self._data_length(response, doing)
            expected = None if size is None else max(0, size - offset)
            if expected is not None and length > expected:
                raise ProtocolError(f"{self.name}: {doing}: it announces {length} bytes; {expected} are left to come")
            # The server also answers like this if the content is missing; only a query can tell that from an empty
            # content, or from one that is already complete here.
            missing = not length and (expected not in (0, None) or not await self._present(key, doing))
            self._heard(Data(length))
            yield _HttpDownload(self, response, length, missing, expected, doing)

    @asynccontextmanager
    async def lock(self, key: Key) -> AsyncIterator[bool]:
        self._log(LockContent(key))
        doing = f"locking {key}"
        answer = await self._ask("lockcontent", {"key": _coded(bytes(key))}, doing)
        if not self._field(answer, "locked", bool, doing):
            self._heard(Failure())
            yield False
            return
        lock = self._field(answer, "lockid", str, doing)
        released = anyio.Event()

        async def held() -> AsyncIterator[bytes]:
            yield b'{"unlock":false}\n'
            await released.wait()
            yield b'{"unlock":true}\n'

        failures: list[SessionError] = []

        async def keep() -> None:
            try:
                async with self._send(
                    "POST", "keeplocked", {"lockid": lock}, doing, body=held(), type=_JSON, extra_timeout=math.inf
                ) as response:
                    await self._in_words(_read(response), doing)
            except SessionError as error:
                failures.append(error)

        failed: BaseException | None = None
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(keep)
            try:
                self._heard(Success())
                yield True
            except Exception as error:  # noqa: BLE001 -- raised again below
                # Raised later, so that it is not wrapped in an exception group.
                failed = error
            finally:
                self._log(UnlockContent())
                released.set()
                tasks.cancel_scope.deadline = anyio.current_time() + _UNLOCKING
        if failed is not None:
            raise failed
        if failures:
            raise failures[0]

    # One HTTP request

    async def _ask(
        self,
        endpoint: str,
        parameters: Mapping[str, str],
        doing: str,
        *,
        extra_timeout: float = 0,
        again: bool = False,
        lowest: int = 0,
    ) -> dict[str, Any]:
        """Send a request that is answered with JSON. `lowest` is the first version that has it."""
        async with self._send(
            "POST", endpoint, parameters, doing, extra_timeout=extra_timeout, again=again, lowest=lowest
        ) as response:
            return await self._json(response, doing, extra_timeout)

    async def _json(self, response: httpcore.Response, doing: str, extra_timeout: float = 0) -> dict[str, Any]:
        try:
            answer = json.loads(await self._whole(response, doing, extra_timeout))
        except (ValueError, RecursionError):
            raise ProtocolError(f"{self.name}: {doing}: the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self.name}: {doing}: the answer is not a JSON object")
        return answer

    @asynccontextmanager
    async def _send(
        self,
        method: str,
        endpoint: str,
        parameters: Mapping[str, str],
        doing: str,
        *,
        body: AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        type: str = "application/octet-stream",
        extra_timeout: float = 0,
        again: bool = False,
        lowest: int = 0,
    ) -> AsyncIterator[httpcore.Response]:
        """Send a request in the highest version that the server supports, with a login if required.

        Returns a successful response (200) whose body is still unread. `again` retries a request that changes nothing
        once after an answer of 500, or none.
        """
        refused: list[Login] = []
        retried = False
        if self._server is None:
            await self._find()
        while True:
            if self._version < lowest:
                raise _TooOld(f"{self.name}: {doing}: the server speaks version {self._version}; this needs {lowest}")
            query = [("clientuuid", str(self._client)), *parameters.items()]
            query += [("bypass", str(uuid)) for uuid in sorted(self._bypass)]
            # The answer must begin in time, whatever comes before it; an upload counts from its last part.
            patience = self._timeout + extra_timeout
            waiting = anyio.CancelScope(deadline=anyio.current_time() + patience)
            request = httpcore.Request(
                method,
                f"{self._base}{self._server}/v{self._version}/{endpoint}?{urlencode(query)}".encode(),
                headers=self._headers(body is not None, type, headers or {}),
                content=_extending(waiting, patience, body) if body is not None else b"",
                extensions={"timeout": self._deadlines(extra_timeout)},
            )
            try:
                response = await self._within(waiting, self._pool.handle_async_request(request), doing)
            except (ConnectionLost, TimedOut):
                if not again or retried:
                    raise
                retried = True
                await anyio.sleep(_PAUSE)
                continue
            try:
                if response.status == 200:
                    self._known = True
                    if self._login is not None and self._authentication is not None and not self._accepted:
                        self._accepted = True
                        await self._authentication.accepted(self._login)
                    yield response
                    return
                answer = _Answer(response.status, await self._whole(response, doing, extra_timeout))
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_UNLOCKING):
                    await response.aclose()
            if answer.status in (404, 400) and self._older(answer):
                if body is not None:
                    raise ProtocolError(f"{self.name}: {doing}: the server changed its mind about its version")
                continue
            if answer.status == 401 and body is None:
                self._login = await self._next_login(refused, doing)
                continue
            if answer.status >= 500 and again and not retried:
                retried = True
                await anyio.sleep(_PAUSE)
                continue
            raise self._failure(answer, doing)

    def _older(self, answer: _Answer) -> bool:
        """Fall back to an older version if the server lacks this one; False if it has it, or none is left."""
        if self._known or self._version == 0:
            return False
        if answer.status == 400 and answer.body.strip() != b"bad version":
            return False
        self._version -= 1
        return True

    async def _next_login(self, refused: list[Login], doing: str) -> Login:
        self._accepted = False
        if self._login is not None:
            refused.append(self._login)
            if self._authentication is not None:
                await self._authentication.rejected(self._login)
        login = None if self._authentication is None else await self._authentication.login(refused)
        if login is None:
            what = "does not accept the login" if refused else "wants a login, and there is none"
            raise AuthenticationFailed(f"{self.name}: {doing}: the server {what}")
        return login

    def _failure(self, answer: _Answer, doing: str) -> SessionError:
        words = answer.words()
        said = f": {words}" if words else ""
        match answer.status:
            case 401:
                return AuthenticationFailed(f"{self.name}: {doing}: the server wants another login")
            case 403:
                return Refused(f"{self.name}: {doing}: the server does not allow it")
            case 404:
                return NotServed(f"{self.name}: {doing}: the server does not serve repository {self._server} there")
            case status if 300 <= status < 400:
                # Never send a login to the target of a redirect.
                return Unreachable(f"{self.name}: {doing}: the server redirects; use the url it redirects to")
            case status:
                return Refused(f"{self.name}: {doing}: the server answered {status}{said}")

    def _headers(self, with_body: bool, type: str, more: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
        headers = [(b"Host", self._host), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]
        if with_body:
            headers += [(b"Transfer-Encoding", b"chunked"), (b"Content-Type", type.encode())]
        else:
            headers.append((b"Content-Length", b"0"))
        if self._login is not None:
            headers.append((b"Authorization", self._login.header))
        return headers + [(name.encode(), value.encode()) for name, value in more.items()]

    def _deadlines(self, extra_timeout: float) -> dict[str, float | None]:
        reading = self._timeout + extra_timeout
        return {
            "connect": self._timeout,
            "pool": self._timeout,
            "write": self._timeout,
            "read": None if math.isinf(reading) else reading,
        }

    def _with_file(self, parameters: Mapping[str, str], file: AssociatedFile) -> dict[str, str]:
        return {**parameters, "associatedfile": _coded(encode(file.text))} if file.text else dict(parameters)

    async def _whole(self, response: httpcore.Response, doing: str, extra_timeout: float) -> bytes:
        """Read an answer without content, which must arrive as a whole in time."""
        waiting = anyio.CancelScope(deadline=anyio.current_time() + self._timeout + extra_timeout)
        body: bytes = await self._within(waiting, _read(response), doing)
        return body

    async def _within(self, scope: anyio.CancelScope, waiting: Awaitable[Any], doing: str) -> Any:
        """Wait until a deadline. Raises SessionError."""
        with scope:
            return await self._in_words(waiting, doing)
        raise TimedOut(f"{self.name}: {doing}: the answer did not arrive in time")

    async def _in_words(self, waiting: Awaitable[Any], doing: str) -> Any:
        """Turn network errors into SessionErrors."""
        try:
            return await waiting
        except (httpcore.ConnectError, httpcore.ProxyError, httpcore.UnsupportedProtocol) as error:
            raise Unreachable(f"{self.name}: {doing}: cannot connect: {_said(error)}") from None
        except httpcore.ConnectTimeout:
            raise Unreachable(f"{self.name}: {doing}: no connection within {self._timeout:.3g} seconds") from None
        except httpcore.TimeoutException:
            raise TimedOut(f"{self.name}: {doing}: no progress for {self._timeout:.3g} seconds") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ConnectionLost(f"{self.name}: {doing}: the connection broke: {_said(error)}") from None
        except _TooLong as error:
            raise ProtocolError(f"{self.name}: {doing}: {error}") from None

    def _field(self, answer: Mapping[str, Any], name: str, kind: type[T], doing: str) -> T:
        value = answer.get(name)
        # A boolean is a number in Python, but not in JSON.
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise ProtocolError(f"{self.name}: {doing}: the answer has no proper {name!r}")
        return value

    def _uuids(self, answer: Mapping[str, Any], doing: str) -> frozenset[UUID]:
        try:
            return frozenset(UUID(uuid) for uuid in answer.get("plusuuids", []))
        except (TypeError, ValueError):
            raise ProtocolError(f"{self.name}: {doing}: the answer has no proper 'plusuuids'") from None

    def _data_length(self, response: httpcore.Response, doing: str) -> int:
        wanted = DATA_LENGTH.lower().encode()
        values = [value for header, value in response.headers if header.lower() == wanted]
        if len(values) != 1 or not values[0].isdigit() or len(values[0]) > 19:
            raise ProtocolError(f"{self.name}: {doing}: the answer has no proper {DATA_LENGTH}")
        return int(values[0])

    def _log(self, message: Message) -> None:
        if self._trace is not None:
            self._trace(True, message)

    def _heard(self, message: Message) -> None:
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
            parameters = {"key": _coded(bytes(self._key))}
            if self.offset:
                parameters["offset"] = str(self.offset)
            session._log(Data(reading.length))
            async with session._send(
                "POST",
                "put",
                session._with_file(parameters, self._file),
                doing,
                body=body.chunks(),
                headers={DATA_LENGTH: str(reading.length)},
                extra_timeout=extra_timeout_for(self.offset + reading.length),
            ) as response:
                answer = await session._json(response, doing)
        if body.error is not None:
            raise body.error
        session._log(Valid() if body.valid else Invalid())
        outcome = self._outcome(answer, (f"{session.name} did not store it",))
        return (
            outcome
            if body.valid
            else replace(outcome, reasons=("the content changed while it was sent", *outcome.reasons))
        )

    async def look(self) -> Stored:
        session, doing = self._session, self._doing
        absent = (f"{session.name} does not have it",)
        if session._version < since(DataPresent):
            present = await session.check_present(self._key)
            return Stored(present, reasons=() if present else absent)
        session._log(DataPresent())
        async with session._send(
            "POST",
            "put",
            session._with_file({"key": _coded(bytes(self._key)), "data-present": "true"}, self._file),
            doing,
            headers={DATA_LENGTH: "0"},
            extra_timeout=extra_timeout_for(self._key.content_size),
        ) as response:
            answer = await session._json(response, doing)
        return self._outcome(answer, absent)

    def _outcome(self, answer: dict[str, Any], reasons: tuple[str, ...]) -> Stored:
        """Read an answer to `put`; `reasons` are for one that says no."""
        session = self._session
        stored, uuids = session._field(answer, "stored", bool, self._doing), session._uuids(answer, self._doing)
        session._heard(SuccessPlus(uuids) if stored else FailurePlus(uuids))
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
                    raise SourceError("there is more content than announced")
                if left:
                    yield bytes(chunk)
                else:
                    # The server considers the content complete as soon as it has the last byte.
                    if len(chunk) > 1:
                        yield bytes(chunk[:-1])
                    self.valid = await self._reading.valid()
                    if self.valid:
                        yield bytes(chunk[-1:])
                self._position += len(chunk)
                if self._progress is not None:
                    self._progress(self._position)
            if left:
                raise SourceError(f"the content ended {left} bytes too early")
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
        # A response can be read only once, by however many iterations.
        self._stream = response.aiter_stream().__aiter__()

    async def chunks(self) -> AsyncIterator[bytes]:
        where = f"{self._session.name}: {self._doing}"
        while True:
            try:
                chunk: bytes = await self._session._in_words(self._stream.__anext__(), self._doing)
            except StopAsyncIteration:
                break
            self._left -= len(chunk)
            if self._left < 0:
                raise ProtocolError(f"{where}: more bytes came than were announced")
            if chunk:
                yield chunk
        if self._left:
            # A server that finds the content invalid while sending it ends one byte short.
            raise Refused(f"{where}: the server stopped {self._left} bytes before the end")

    async def valid(self) -> bool:
        return not self._missing and not self._left and self._expected in (None, self.length)


async def _extending(scope: anyio.CancelScope, patience: float, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a body, and move the deadline of what waits for its answer to `patience` seconds after its last part."""
    async for part in body:
        scope.deadline = anyio.current_time() + patience
        yield part
    scope.deadline = anyio.current_time() + patience


class _TooLong(Exception):
    pass


async def _read(response: httpcore.Response) -> bytes:
    """Read the whole body of an answer without content."""
    body = b""
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > _LONGEST_ANSWER:
            raise _TooLong(f"an answer of more than {_LONGEST_ANSWER} bytes")
    return body


def _coded(raw: bytes) -> str:
    """Encode a key or a file name for a url, before percent-encoding: as base64 in brackets unless it is UTF-8."""
    try:
        text = raw.decode("utf-8")
        plain = not (text.startswith("[") and text.endswith("]"))
    except UnicodeDecodeError:
        plain = False
    return text if plain else f"[{base64.urlsafe_b64encode(raw).decode()}]"


def _said(error: Exception) -> str:
    return printable(str(error)[:_LONGEST_WORDS]) or type(error).__name__
