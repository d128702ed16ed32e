"""The P2P protocol over HTTP, for any session: compatible with the clients of `git annex p2phttp`.

Paths, parameters, responses and status codes are those observed with git-annex 10.20261026, except for what
docs/differences.md lists. Unsupported versions and endpoints get 404, since that makes git-annex's client try an older
version.
"""

from __future__ import annotations

import base64
import json
import math
import re
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import unquote_to_bytes

import anyio
from anyio.abc import TaskGroup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from cluster_remote.gateway.errors import HttpFailure
from cluster_remote.gateway.httprequests import (
    DATA_LENGTH,
    NEEDS,
    SINCE,
    Asked,
    login_of,
    path_key,
    unbracketed,
)
from cluster_remote.gateway.places import DeadLocks
from cluster_remote.gateway.sessions import Lending
from cluster_remote.gateway.tokens import Token
from cluster_remote.gateway.webserver import WebConnection
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import Refused, SessionError, SourceError
from cluster_remote.p2p.key import UUID, Key, decode
from cluster_remote.p2p.messages import LockContent, Message
from cluster_remote.p2p.server import LOCK_RETENTION, Endpoint, Mode
from cluster_remote.p2p.session import Download, Present, Session, Source, SourceReading, Stored
from cluster_remote.p2p.text import printable

__all__ = ["Door", "P2pHttp", "Visitor", "challenge", "note", "visitor_of"]

_CHALLENGE = {"WWW-Authenticate": 'Basic realm="git-annex", charset="UTF-8"'}
_BINARY = "application/octet-stream"
# The largest content, in bytes, whose upload starts over after an interruption.
_NOT_RESUMED = 4 * 1024 * 1024
# How many bytes of a body to join before they are passed on, and for how many seconds at most.
_JOINED, _HELD = 1024 * 1024, 0.1
# Maximum bytes of a line in keeplocked's body.
_LONGEST_LINE = 1024
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})?|bytes=-([0-9]{1,19})")


@dataclass(frozen=True)
class Visitor:
    """Who makes a request: their permissions, and their name in the log. Anonymous visitors cannot lock."""

    mode: Mode
    name: str
    anonymous: bool = False
    token: Token | None = None

    def may(self, request: Message) -> bool:
        return self.mode.refusal(request) is None and not (self.anonymous and isinstance(request, LockContent))


class Door(Protocol):
    """Controls who has access, and to what."""

    @property
    def takes_logins(self) -> bool:
        """Whether any login could be accepted."""

    async def visitor(self, login: tuple[str, str] | None, connection: WebConnection) -> Visitor | None:
        """Authenticate a visitor by user and password, if given; return None to deny access.

        Raises HttpFailure if there is no room.
        """

    async def served(self, uuid: UUID, client: UUID | None, visitor: Visitor) -> Endpoint | None:
        """Return what is served under a UUID, as far as the visitor may use it; None if nothing is."""


class _Json(JSONResponse):
    """A JSON response with git-annex's content type."""

    media_type = "application/json;charset=utf-8"


@dataclass
class _Lock:
    """Content locked against removal, until it is released or the lock times out.

    `keepers` is the number of requests that keep it; without any, it counts as left behind by its `owner`.
    """

    owner: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    keepers: int = 0
    forget: Callable[[], None] = field(default=lambda: None)


class P2pHttp:
    """The endpoints below /git-annex/. Its locks are tasks of `tasks`; `timeout` is in seconds without progress."""

    def __init__(
        self,
        door: Door,
        tasks: TaskGroup,
        lending: Lending,
        dead_locks: DeadLocks,
        timeout: float,
        *,
        lock_retention: float = LOCK_RETENTION,
    ) -> None:
        self._door = door
        self._tasks = tasks
        self._lending = lending
        self._locks: dict[str, _Lock] = {}
        self._dead_locks = dead_locks
        self.timeout = timeout
        self._retention = lock_retention

    def routes(self) -> list[Route]:
        """The routes for Starlette."""
        return [
            Route("/git-annex/{rest:path}", self._answer, methods=["GET", "HEAD", "POST", "PUT", "DELETE"]),
        ]

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._routed(request)
        except SessionError as error:
            note(request, f"{request.method} {request.url.path}: {error}")
            return Response(printable(str(error), 2000), 500, media_type="text/plain")

    async def _routed(self, request: Request) -> Response:
        # Use the raw path: a key may contain an encoded slash.
        raw = request.scope.get("raw_path", b"").partition(b"?")[0]
        _, _, rest = raw.rpartition(b"/git-annex/") if raw.count(b"/git-annex/") == 1 else raw.partition(b"/git-annex/")
        words = rest.split(b"/")
        try:
            uuid = UUID.if_valid(decode(unbracketed(unquote_to_bytes(words[0]))))
        except ValueError:
            uuid = None
        reads = request.method in ("GET", "HEAD")
        if len(words) == 3 and words[1] == b"key" and reads:
            return await self._for_browsers(request, uuid, path_key(unquote_to_bytes(words[2])))
        if len(words) < 3 or not re.fullmatch(rb"v[0-9]{1,3}", words[1]) or int(words[1][1:]) > MAX_VERSION:
            raise HttpFailure(404)
        version, endpoint = int(words[1][1:]), decode(words[2])
        if endpoint not in NEEDS or version < SINCE.get(endpoint, 0):
            raise HttpFailure(404)
        in_path = endpoint == "key"
        if len(words) != (4 if in_path else 3) or reads != in_path or request.method not in ("GET", "HEAD", "POST"):
            raise HttpFailure(404)
        asked = Asked.read(request, endpoint, version, path_key(unquote_to_bytes(words[3])) if in_path else None)
        served = await self._admitted(request, uuid, endpoint, asked)
        match endpoint:
            case "key":
                return await self._get(request, served, asked)
            case "keeplocked":
                return await self._keep_locked(request, asked.lockid)
            case "lockcontent":
                return _Json(await self._lock(request, served, asked))
            case "put":
                return await self._put(request, served, asked, version)
        async with self._lending.lend(served, asked.bypass) as session:
            match endpoint:
                case "checkpresent":
                    return _Json({"present": await session.check_present(asked.key)})
                case "putoffset":
                    return _Json(await self._put_offset(served, session, asked, version))
                case "gettimestamp":
                    return _Json({"timestamp": await session.timestamp()})
            removal = await session.remove(asked.key, asked.before if endpoint == "remove-before" else None)
            note(request, *removal.reasons)
            return _Json(_with_uuids({"removed": removal.removed}, removal.uuids, version))

    async def _admitted(self, request: Request, uuid: UUID | None, endpoint: str, asked: Asked) -> Endpoint:
        """Check access to a request's endpoint. Raises HttpFailure: 404 takes precedence over 401, as in git-annex."""
        visitor = await visitor_of(request, self._door)
        needs = NEEDS[endpoint]
        known = visitor or Visitor(Mode.READ_ONLY, "nobody", anonymous=True)
        served = None if uuid is None else await self._door.served(uuid, asked.client, known)
        if served is None:
            raise HttpFailure(404)
        if visitor is None or not visitor.may(needs):
            if visitor is None or (visitor.anonymous and self._door.takes_logins):
                raise HttpFailure(401, headers=challenge())
            raise HttpFailure(403)
        return served

    # Content to the client

    async def _get(self, request: Request, served: Endpoint, asked: Asked) -> Response:
        async def respond(sender: _Sender) -> None:
            async with self._downloading(request, served, asked) as download:
                if download is None:
                    # As git-annex does; a 404 would make its client try older versions.
                    await sender.start(200, {DATA_LENGTH: "0"})
                    return
                await sender.start(200, {DATA_LENGTH: str(download.length)})
                if request.method != "HEAD":
                    async for part in _until_valid(download):
                        await sender.send(part)

        return _Streamed(respond, request)

    async def _for_browsers(self, request: Request, uuid: UUID | None, key: Key) -> Response:
        """Answer a plain GET: 404 for missing content, Range, and a reliable length."""
        served = await self._admitted(request, uuid, "key", Asked(key))
        etag = f'"{base64.urlsafe_b64encode(bytes(key)).decode()}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
        headers |= {"Content-Disposition": "attachment", "X-Content-Type-Options": "nosniff"}
        if etag in [word.strip() for word in request.headers.get("if-none-match", "").split(",")]:
            return Response(None, 304, headers)
        size = key.content_size
        first, last = 0, None if size is None else size - 1
        wanted = _RANGE.fullmatch(request.headers.get("range", ""))
        partial = wanted is not None and bool(size) and request.headers.get("if-range", etag) == etag
        if partial:
            assert wanted is not None
            assert size is not None
            if wanted[3] is not None:
                first = max(0, size - int(wanted[3]))
            else:
                first = int(wanted[1])
                last = min(size - 1, int(wanted[2])) if wanted[2] is not None else size - 1
            assert last is not None
            if first > last:
                return Response(None, 416, {**headers, "Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"

        async def respond(sender: _Sender) -> None:
            async with self._downloading(request, served, Asked(key, offset=first)) as download:
                if download is None:
                    await sender.start(404, {}, "text/plain")
                    await sender.send(b"this content is not here\n")
                    return
                length = download.length if last is None else last - first + 1
                await sender.start(206 if partial else 200, {**headers, "Content-Length": str(length)})
                if request.method != "HEAD":
                    async for part in _exactly(download, length):
                        await sender.send(part)

        return _Streamed(respond, request)

    @asynccontextmanager
    async def _downloading(self, request: Request, served: Endpoint, asked: Asked) -> AsyncIterator[Download | None]:
        """Open a download; yield None if the content is not there. Raises SessionError."""
        size = asked.key.content_size
        expected = None if size is None else max(0, size - asked.offset)
        async with self._lending.lend(served, asked.bypass) as session:
            # Empty content could mean that there is none, or no more of it.
            if not expected and not await session.check_present(asked.key):
                yield None
                return
            async with AsyncExitStack() as stack:
                try:
                    download = await stack.enter_async_context(session.download(asked.key, asked.file, asked.offset))
                except Refused as error:
                    note(request, str(error))
                    yield None
                    return
                yield download if download.length or not expected else None

    # Content from the client

    async def _put_offset(self, endpoint: Endpoint, session: Session, asked: Asked, version: int) -> dict[str, object]:
        """Return where the upload is to begin.

        A node that is asked then waits for the content, and only closing its connection ends that. Connecting again
        takes longer than uploading new small content from its beginning.
        """
        size = asked.key.content_size
        if size is not None and size <= _NOT_RESUMED and not await session.check_present(asked.key):
            return {"offset": 0}
        async with endpoint.upload(session, asked.key, asked.file) as offer:
            if isinstance(offer, Present):
                return _with_uuids({"alreadyhave": True}, offer.uuids, version)
            return {"offset": offer.offset}

    async def _put(self, request: Request, served: Endpoint, asked: Asked, version: int) -> Response:
        source = _BodySource(request, asked.offset, asked.length, self.timeout)
        outcome: Present | Stored = Stored(False)
        try:
            async with (
                self._lending.lend(served, asked.bypass) as session,
                served.upload(session, asked.key, asked.file) as offer,
            ):
                if isinstance(offer, Present):
                    outcome = offer
                else:
                    outcome = await (offer.look() if asked.is_present else offer.send(source))
        except SourceError as error:
            outcome = Stored(False, reasons=(str(error),))
        except ClientDisconnect:
            raise HttpFailure(400, "the client went away") from None
        match outcome:
            case Present(uuids):
                return _Json(_with_uuids({"stored": True}, uuids, version))
            case Stored(uuids=uuids, reasons=reasons):
                note(request, *reasons)
                return _Json(_with_uuids({"stored": outcome.by_it}, uuids if outcome.by_it else frozenset(), version))

    # Locks

    async def _lock(self, request: Request, served: Endpoint, asked: Asked) -> dict[str, object]:
        owner = _connection(request).token
        assert owner is not None, "nobody locks without a token"
        lock, name = _Lock(owner.id), secrets.token_hex(16)
        if (refusal := self._dead_locks.refusal(lock.owner)) is not None:
            note(request, refusal)
            return {"locked": False}
        answer: list[bool | SessionError] = []
        answered = anyio.Event()

        async def hold() -> None:
            with lock.scope:
                try:
                    async with self._lending.lend(served, asked.bypass) as session, session.lock(asked.key) as locked:
                        answer.append(locked)
                        if locked:
                            self._locks[name] = lock
                            self._left_behind(name)
                            answered.set()
                            await anyio.sleep_forever()
                except SessionError as error:
                    answer.append(error)
                finally:
                    self._locks.pop(name, None)
                    lock.forget()
                    answered.set()

        self._tasks.start_soon(hold)
        try:
            await answered.wait()
        except BaseException:
            lock.scope.cancel()
            raise
        match answer[0] if answer else False:
            case SessionError() as error:
                raise error
            case True:
                return {"locked": True, "lockid": name}
            case _:
                return {"locked": False}

    def _left_behind(self, name: str) -> None:
        """Hold a lock for as long as a client that went silent may rely on it."""
        lock = self._locks[name]
        lock.scope.deadline = anyio.current_time() + self._retention
        lock.forget = self._dead_locks.add(lock.owner, name, lock.scope.cancel)

    async def _keep_locked(self, request: Request, name: str) -> Response:
        """Hold a lock until the end of the body, where the client says whether to release it."""
        lock = self._locks.get(name)
        if lock is not None:
            lock.forget()
            lock.keepers += 1
            lock.scope.deadline = math.inf
            released = False
            try:
                released = await _says_unlock(request)
            except ClientDisconnect:
                # The client may rely on the lock.
                pass
            finally:
                lock.keepers -= 1
                if released:
                    lock.scope.cancel()
                elif not lock.keepers and name in self._locks:
                    self._left_behind(name)
        return _Json({"locked": False})


async def _says_unlock(request: Request) -> bool:
    """Read JSON objects, one per line, until one says to unlock. Return False if the body ends without that."""
    line = b""
    async for chunk in request.stream():
        line += chunk
        *lines, line = line.split(b"\n")
        if len(line) > _LONGEST_LINE:
            return False
        for complete in lines:
            try:
                said = json.loads(complete or b"{}")
            except (ValueError, RecursionError):
                return False
            if isinstance(said, dict) and said.get("unlock") is True:
                return True
    return False


class _Sender:
    """Sends one response in pieces."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def start(self, status: int, headers: dict[str, str], kind: str = _BINARY) -> None:
        self.started = True
        raw = [(name.lower().encode(), value.encode()) for name, value in {"Content-Type": kind, **headers}.items()]
        await self._send({"type": "http.response.start", "status": status, "headers": raw})

    async def send(self, body: bytes, more: bool = True) -> None:
        await self._send({"type": "http.response.body", "body": body, "more_body": more})


class _Streamed(Response):
    """A response generated while it is sent, in one task, since a session must be exited in the task that entered it.

    Ends if the client hangs up.
    """

    def __init__(self, respond: Callable[[_Sender], Awaitable[None]], request: Request) -> None:
        super().__init__()
        self._respond = respond
        self._request = request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sender = _Sender(send)
        async with anyio.create_task_group() as tasks:

            async def listen() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(listen)
            try:
                await self._respond(sender)
                await sender.send(b"", more=False)
            except SessionError as error:
                note(self._request, f"{scope['path']}: {error}")
                if not sender.started:
                    await sender.start(500, {}, "text/plain")
                    await sender.send(printable(str(error), 2000).encode(), more=False)
                # Otherwise the response stays unfinished, and the server cuts the connection.
            tasks.cancel_scope.cancel()


async def _until_valid(download: Download) -> AsyncIterator[bytes]:
    """Yield a download, without its last byte if it proves invalid: there is no other way to signal that."""
    last = b""
    async for chunk in download.chunks():
        if chunk:
            yield last + bytes(chunk[:-1])
            last = bytes(chunk[-1:])
    if await download.valid():
        yield last


async def _exactly(download: Download, length: int) -> AsyncIterator[bytes]:
    """Yield the announced number of bytes of a download. Raises SourceError if they are invalid."""
    left = length
    async for chunk in download.chunks():
        part = bytes(chunk[:left])
        left -= len(part)
        if not left:
            # A part cannot be verified; don't wait for the rest.
            if length == download.length and not await download.valid():
                raise SourceError("the content is not valid")
            yield part
            return
        yield part


class _BodySource(Source):
    """The body of a PUT, starting at the client's offset."""

    repeatable = False

    def __init__(self, request: Request, offset: int, length: int, timeout: float) -> None:
        self._request = request
        self._offset = offset
        self._length = length
        self._timeout = timeout

    @asynccontextmanager
    async def read(self, offset: int) -> AsyncIterator[SourceReading]:
        skipped = offset - self._offset
        if skipped < 0:
            raise SourceError(
                f"the client sends the content from byte {self._offset} on, but only {offset} bytes are here"
            )
        if skipped > self._length:
            raise SourceError(f"the content ends before byte {offset}")
        yield _BodyReading(self._request, skipped, self._length, self._timeout)


class _BodyReading(SourceReading):
    def __init__(self, request: Request, skipped: int, announced: int, timeout: float) -> None:
        self.length = announced - skipped
        self._request = request
        self._skip = skipped
        self._left = announced
        self._timeout = timeout

    async def chunks(self) -> AsyncIterator[bytes]:
        """Join the parts of the body: each one passed on takes about as long for each node, whatever its length."""
        held, held_until = bytearray(), 0.0
        async for part in self._parts():
            if not held:
                held_until = anyio.current_time() + _HELD
            held += part
            if len(held) >= _JOINED or anyio.current_time() >= held_until:
                yield bytes(held)
                held = bytearray()
        if held:
            yield bytes(held)
        if self._left:
            # This is also how a client signals that the content changed meanwhile.
            raise SourceError(f"the client stopped {self._left} bytes before the end")

    async def _parts(self) -> AsyncIterator[bytes]:
        parts = self._request.stream()
        while True:
            try:
                with anyio.fail_after(self._timeout):
                    chunk = await anext(parts)
            except StopAsyncIteration:
                return
            except TimeoutError:
                raise SourceError(f"the client sent nothing for {self._timeout:.3g} seconds") from None
            self._left -= len(chunk)
            if self._left < 0:
                raise SourceError("the client sent more than it announced")
            part = chunk[self._skip :]
            self._skip -= len(chunk) - len(part)
            if part:
                yield part

    async def valid(self) -> bool:
        return True


# Reading requests


def challenge() -> dict[str, str]:
    """Return the header that requests a login."""
    return dict(_CHALLENGE)


def _with_uuids(answer: dict[str, object], uuids: frozenset[UUID], version: int) -> dict[str, object]:
    return answer | ({"plusuuids": sorted(map(str, uuids))} if version >= 2 else {})


def _connection(request: Request) -> WebConnection:
    found: WebConnection = request.state.connection
    return found


def note(request: Request, *lines: str) -> None:
    """Write lines about a request to the log."""
    for line in lines:
        _connection(request).say(line)


async def visitor_of(request: Request, door: Door) -> Visitor | None:
    """Identify who makes a request; None if access is denied.

    Raises HttpFailure for a malformed login, or if there is no room.
    """
    return await door.visitor(login_of(request), _connection(request))
