"""The P2P protocol over HTTP, for any session: compatible with the clients of `git annex p2phttp`.

Paths, parameters, responses and status codes are those observed with git-annex 10.20261026, except for what
docs/differences.md lists. Unsupported versions and endpoints get 404, since that makes git-annex's client try an older
version.
"""

from __future__ import annotations

import base64
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import unquote_to_bytes

from anyio.abc import TaskGroup
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster_remote.gateway.errors import HttpFailure
from cluster_remote.gateway.httpaccess import (
    Access,
    Principal,
    challenge,
    login_could_help,
    note,
    owner_of,
    principal_of,
)
from cluster_remote.gateway.httpbodies import BodySource, Sender, StreamedResponse, exactly, until_valid
from cluster_remote.gateway.httplocks import HttpLocks
from cluster_remote.gateway.httprequests import DATA_LENGTH, REQUEST_OF, SINCE, Parameters, path_key, unbracketed
from cluster_remote.gateway.sessions import VERSION_AGE, SessionPool
from cluster_remote.gateway.slots import OrphanedLocks
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import Refused, SessionError, SourceError
from cluster_remote.p2p.key import UUID, Key, decode
from cluster_remote.p2p.server import LOCK_RETENTION, Endpoint, Mode
from cluster_remote.p2p.session import Download, Present, Session, Stored
from cluster_remote.p2p.text import printable

__all__ = ["P2pHttp"]

# The largest content, in bytes, whose upload starts over after an interruption.
_NOT_RESUMED = 4 * 1024 * 1024
_RANGE = re.compile(r"bytes=([0-9]{1,19})-([0-9]{1,19})?|bytes=-([0-9]{1,19})")


class _Json(JSONResponse):
    """A JSON response with git-annex's content type."""

    media_type = "application/json;charset=utf-8"


class P2pHttp:
    """The endpoints below /git-annex/. Its locks are tasks of `tasks`; `timeout` is in seconds without progress."""

    def __init__(
        self,
        access: Access,
        tasks: TaskGroup,
        sessions: SessionPool,
        orphaned_locks: OrphanedLocks,
        timeout: float,
        *,
        lock_retention: float = LOCK_RETENTION,
    ) -> None:
        self._access = access
        self._sessions = sessions
        self._locks = HttpLocks(tasks, sessions, orphaned_locks, lock_retention)
        self.timeout = timeout

    def routes(self) -> list[Route]:
        """Return the routes for Starlette."""
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
        if endpoint not in REQUEST_OF or version < SINCE.get(endpoint, 0):
            raise HttpFailure(404)
        in_path = endpoint == "key"
        if len(words) != (4 if in_path else 3) or reads != in_path or request.method not in ("GET", "HEAD", "POST"):
            raise HttpFailure(404)
        params = Parameters.read(request, endpoint, version, path_key(unquote_to_bytes(words[3])) if in_path else None)
        served = await self._admitted(request, uuid, endpoint, params)
        match endpoint:
            case "key":
                return await self._get(request, served, params)
            case "keeplocked":
                await self._locks.keep(request, params.lockid)
                return _Json({"locked": False})
            case "lockcontent":
                lockid = await self._locks.lock(request, served, params.key, params.bypass)
                return _Json({"locked": False} if lockid is None else {"locked": True, "lockid": lockid})
            case "put":
                return await self._put(request, served, params, version)
        session = await self._session(request, served, params)
        match endpoint:
            case "checkpresent":
                return _Json({"present": await session.check_present(params.key)})
            case "putoffset":
                return _Json(await self._put_offset(served, session, params, version))
            case "gettimestamp":
                return _Json({"timestamp": await session.timestamp()})
        removal = await session.remove(params.key, params.before if endpoint == "remove-before" else None)
        note(request, *removal.reasons)
        return _Json(_with_uuids({"removed": removal.removed}, removal.uuids, version))

    async def _session(self, request: Request, served: Endpoint, params: Parameters) -> Session:
        return await self._sessions.session(served, owner_of(request), params.bypass, VERSION_AGE)

    async def _admitted(self, request: Request, uuid: UUID | None, endpoint: str, params: Parameters) -> Endpoint:
        """Check access to a request's endpoint. Raises HttpFailure: 404 takes precedence over 401, as in git-annex."""
        principal = await principal_of(request, self._access)
        known = principal or Principal(Mode.READ_ONLY, "nobody", anonymous=True)
        served = None if uuid is None else await self._access.served(uuid, params.client, known)
        if served is None:
            raise HttpFailure(404)
        if principal is not None and principal.may(REQUEST_OF[endpoint]):
            return served
        if login_could_help(principal, self._access):
            raise HttpFailure(401, headers=challenge())
        raise HttpFailure(403)

    # Content to the client

    async def _get(self, request: Request, served: Endpoint, params: Parameters) -> Response:
        async def respond(sender: Sender) -> None:
            async with self._downloading(request, served, params) as download:
                if download is None:
                    # As git-annex does; a 404 would make its client try older versions.
                    await sender.start(200, {DATA_LENGTH: "0"})
                    return
                await sender.start(200, {DATA_LENGTH: str(download.length)})
                if request.method != "HEAD":
                    async for part in until_valid(download):
                        await sender.send(part)

        return StreamedResponse(respond, request)

    async def _for_browsers(self, request: Request, uuid: UUID | None, key: Key) -> Response:
        """Answer a plain GET: 404 for missing content, Range, and a reliable length."""
        served = await self._admitted(request, uuid, "key", Parameters(key))
        etag = f'"{base64.urlsafe_b64encode(bytes(key)).decode()}"'
        headers = {"ETag": etag, "Accept-Ranges": "bytes", "Cache-Control": "private, immutable, max-age=31536000"}
        headers["Content-Disposition"] = "attachment"
        # A proxy may have turned it into a weak one.
        if etag in [word.strip().removeprefix("W/") for word in request.headers.get("if-none-match", "").split(",")]:
            return Response(None, 304, headers)
        size = key.content_size
        first, last = 0, None if size is None else size - 1
        # Only GET has ranges (RFC 9110, 14.2).
        wanted = _RANGE.fullmatch(request.headers.get("range", "")) if request.method == "GET" else None
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
                return Response(None, 416, {"Content-Range": f"bytes */{size}"})
            headers["Content-Range"] = f"bytes {first}-{last}/{size}"

        async def respond(sender: Sender) -> None:
            async with self._downloading(request, served, Parameters(key, offset=first)) as download:
                if download is None:
                    await sender.start(404, {}, "text/plain")
                    await sender.send(b"this content is not here\n")
                    return
                length = download.length if last is None else last - first + 1
                await sender.start(206 if partial else 200, {**headers, "Content-Length": str(length)})
                if request.method != "HEAD":
                    async for part in exactly(download, length):
                        await sender.send(part)

        return StreamedResponse(respond, request)

    @asynccontextmanager
    async def _downloading(
        self, request: Request, served: Endpoint, params: Parameters
    ) -> AsyncIterator[Download | None]:
        """Open a download; yield None if the content is not there. Raises SessionError."""
        size = params.key.content_size
        expected = None if size is None else max(0, size - params.offset)
        session = await self._session(request, served, params)
        # Empty content could mean that there is none, or no more of it.
        if not expected and not await session.check_present(params.key):
            yield None
            return
        async with AsyncExitStack() as stack:
            try:
                download = await stack.enter_async_context(session.download(params.key, params.file, params.offset))
            except Refused as error:
                note(request, str(error))
                yield None
                return
            yield download if download.length or not expected else None

    # Content from the client

    async def _put_offset(
        self, endpoint: Endpoint, session: Session, params: Parameters, version: int
    ) -> dict[str, object]:
        """Return the offset at which the upload should begin.

        A node that is asked for it then waits for the content, and only closing its connection ends that. Connecting
        again takes longer than uploading new small content from its beginning.
        """
        size = params.key.content_size
        if size is not None and size <= _NOT_RESUMED and await _is_absent(session, params.key):
            return {"offset": 0}
        async with endpoint.upload(session, params.key, params.file) as offer:
            if isinstance(offer, Present):
                return _with_uuids({"alreadyhave": True}, offer.uuids, version)
            return {"offset": offer.offset}

    async def _put(self, request: Request, served: Endpoint, params: Parameters, version: int) -> Response:
        source = BodySource(request, params.offset, params.length, self.timeout)
        outcome: Present | Stored = Stored(False)
        try:
            session = await self._session(request, served, params)
            async with served.upload(session, params.key, params.file) as offer:
                if isinstance(offer, Present):
                    outcome = offer
                else:
                    outcome = await (offer.check_arrived() if params.is_present else offer.send(source))
        except SourceError as error:
            outcome = Stored(False, reasons=(str(error),))
        except ClientDisconnect:
            raise HttpFailure(400, "the client went away") from None
        match outcome:
            case Present(uuids):
                return _Json(_with_uuids({"stored": True}, uuids, version))
            case Stored(uuids=uuids, reasons=reasons, newly_stored=stored):
                note(request, *reasons)
                return _Json(_with_uuids({"stored": stored}, uuids if stored else frozenset(), version))


async def _is_absent(session: Session, key: Key) -> bool:
    """Return whether no node has the content; False if that is unknown: an upload only asks those that lack it."""
    try:
        return not await session.check_present(key)
    except SessionError:
        return False


def _with_uuids(answer: dict[str, object], uuids: frozenset[UUID], version: int) -> dict[str, object]:
    return answer | ({"plusuuids": sorted(map(str, uuids))} if version >= 2 else {})
