"""Send single HTTP requests to a server of git-annex's P2P protocol.

Negotiates the protocol version and the login, retries queries, applies deadlines, checks answers, and turns network
errors into SessionErrors. Formats and the server's faults were observed with git-annex 10.20261026: an answer of 500,
or none, is often caused by another client's broken connection, so queries are retried.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode, urlsplit

import anyio
import httpcore

from cluster_remote.annex.logins import Login
from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.errors import (
    AuthenticationFailed,
    ConnectionLost,
    NotServed,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.messages import MAX_DATA_LENGTH
from cluster_remote.p2p.text import printable
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT

__all__ = [
    "DATA_LENGTH",
    "PAUSE",
    "Answer",
    "Authentication",
    "HttpClient",
    "ServerFailed",
    "TooOld",
    "body_of",
    "coded",
]

T = TypeVar("T")

# The header with the length of the content in bytes.
DATA_LENGTH = "X-git-annex-data-length"
# Maximum bytes of an answer without content; the longest lists the UUIDs of the nodes.
_MAX_ANSWER = 1024 * 1024
# Maximum characters of a server's text to quote.
_MAX_QUOTED = 300
# How many known repositories to try if the server is unknown.
_MAX_CANDIDATES = 30
# How many logins to try for one request: a credential helper may invent a new one each time.
_MAX_LOGINS = 4
# Seconds to wait before retrying a request.
PAUSE = 0.5
# Answers of a server, or of a proxy in front of it, that failed to handle a request.
_FAILED = frozenset({500, 502, 503, 504})
# Seconds to close a response.
_CLOSING = 10.0


class Authentication(Protocol):
    """A source of logins: the remote's own token, git's credential helpers."""

    async def login(self, refused: Sequence[Login]) -> Login | None:
        """Return the next login to try; None if there are no more. `refused` are those that the server rejected."""

    async def accepted(self, login: Login) -> None:
        """Note that the server accepted a login. Never raises."""

    async def rejected(self, login: Login) -> None:
        """Note that the server rejected a login. Never raises."""


@dataclass(frozen=True)
class Answer:
    """An answer that has been read completely."""

    status: int
    body: bytes

    def text(self) -> str:
        return printable(self.body[:_MAX_QUOTED].decode("utf-8", "replace").strip())


class TooOld(Refused):
    """The server's protocol version is too old for the request."""


class ServerFailed(Refused):
    """The server failed to handle the request, which may have been the fault of another client."""


class HttpClient:
    """Requests to one server. Closing it closes `pool`, which keeps connections open between requests.

    The server never identifies itself. Without `server`, the first request tries each of the `candidates`, and chooses
    the only cluster served there, or else the first repository.

    Attributes:
        server: the repository to request; None until it is found.
        version: the protocol version in use.
        has_answered: whether the server has answered in this version.
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
        candidates: Callable[[], Awaitable[Sequence[UUID]]] | None = None,
    ) -> None:
        """Create a client; `base` is the url without the final /git-annex/."""
        self.name = name
        self.server = server
        self.version = MAX_VERSION
        self.has_answered = False
        self._base = f"{base.rstrip('/')}/git-annex/"
        self._host = urlsplit(base).netloc.encode()
        self._client = client
        self._pool = pool
        self._authentication = authentication
        self._login: Login | None = None
        self._accepted = False
        self._timeout = timeout
        self._bypass = bypass
        self._candidates = candidates

    async def open(self) -> UUID:
        """Connect if necessary, and return the UUID of the server. Raises SessionError."""
        if self.server is None:
            await self._find_server()
        elif not self.has_answered:
            await self._probe()
        assert self.server is not None
        return self.server

    async def _probe(self) -> None:
        # Any query will do; this is the smallest, about a key that no repository has.
        await self.check_present(Key("WORM-s0--"), "connecting")

    async def _find_server(self) -> None:
        """Find out which of the candidates is served. Raises SessionError."""
        candidates = [] if self._candidates is None else list(await self._candidates())[:_MAX_CANDIDATES]
        found: list[UUID] = []
        for uuid in candidates:
            if found and not uuid.is_cluster:
                break
            self.server, self.version = uuid, MAX_VERSION if not self.has_answered else self.version
            try:
                await self._probe()
            except NotServed:
                continue
            except BaseException:
                self.server = None
                raise
            found.append(uuid)
        self.server = found[0] if len(found) == 1 else None
        if not found:
            if not candidates:
                raise NotServed(
                    f"{self.name}: a server over HTTP does not identify itself, and no cluster is known here: fetch "
                    "the git-annex branch of its repository (git fetch --all; git annex merge)"
                )
            raise NotServed(
                f"{self.name}: the server serves none of the {len(candidates)} repositories known here: check "
                "the url, which ends in /git-annex/, or fetch the git-annex branch of its repository (git fetch --all; "
                "git annex merge)"
            )
        if len(found) > 1:
            names = ", ".join(map(str, found))
            raise Refused(f"{self.name}: the server has several clusters: {names}; choose one of them")

    async def aclose(self) -> None:
        """Close all connections. Bounded in time."""
        with anyio.move_on_after(self._timeout, shield=True):
            await self._pool.aclose()

    async def check_present(self, key: Key, doing: str) -> bool:
        """Return whether the server has the content of a key. Raises SessionError."""
        answer = await self.ask("checkpresent", {"key": coded(bytes(key))}, doing, again=True)
        return self.field(answer, "present", bool, doing)

    async def ask(
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
        async with self.send(
            "POST", endpoint, parameters, doing, extra_timeout=extra_timeout, again=again, lowest=lowest
        ) as response:
            return await self.read_json(response, doing, extra_timeout)

    async def read_json(self, response: httpcore.Response, doing: str, extra_timeout: float = 0) -> dict[str, Any]:
        """Read an answer that is a JSON object. Raises ProtocolError if it is not."""
        try:
            answer = json.loads(await self._whole(response, doing, extra_timeout))
        except (ValueError, RecursionError):
            raise ProtocolError(f"{self.name}: {doing}: the answer is not JSON") from None
        if not isinstance(answer, dict):
            raise ProtocolError(f"{self.name}: {doing}: the answer is not a JSON object")
        return answer

    @asynccontextmanager
    async def send(
        self,
        method: str,
        endpoint: str,
        parameters: Mapping[str, str],
        doing: str,
        *,
        body: AsyncIterator[bytes] | bytes | None = None,
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
        if self.server is None:
            await self._find_server()
        while True:
            if self.version < lowest:
                raise TooOld(f"{self.name}: {doing}: the server speaks version {self.version}; this needs {lowest}")
            # The answer must begin within this time; for an upload, counted from the last part of the body.
            seconds = self._timeout + extra_timeout
            waiting = anyio.CancelScope(deadline=anyio.current_time() + seconds)
            request = httpcore.Request(
                method,
                self._url(endpoint, parameters),
                headers=self._headers(body, type, headers or {}),
                content=_extending(waiting, seconds, body) if isinstance(body, AsyncIterator) else body or b"",
                extensions={"timeout": self._deadlines(extra_timeout)},
            )
            try:
                response = await self._within(waiting, self._pool.handle_async_request(request), doing)
            except (ConnectionLost, TimedOut):
                if not again or retried:
                    raise
                retried = True
                await anyio.sleep(PAUSE)
                continue
            try:
                if response.status == 200:
                    self.has_answered = True
                    if self._login is not None and self._authentication is not None and not self._accepted:
                        self._accepted = True
                        await self._authentication.accepted(self._login)
                    yield response
                    return
                answer = Answer(response.status, await self._whole(response, doing, extra_timeout))
            finally:
                with anyio.CancelScope(shield=True), anyio.move_on_after(_CLOSING):
                    await response.aclose()
            if answer.status in (404, 400) and self._fall_back(answer):
                if body is not None:
                    raise ProtocolError(f"{self.name}: {doing}: the server no longer accepts its own protocol version")
                continue
            if answer.status == 401 and body is None:
                self._login = await self._next_login(refused, doing)
                continue
            if answer.status >= 500 and again and not retried:
                retried = True
                await anyio.sleep(PAUSE)
                continue
            raise self.failure(answer, doing)

    def _url(self, endpoint: str, parameters: Mapping[str, str]) -> bytes:
        query = [("clientuuid", str(self._client)), *parameters.items()]
        query += [("bypass", str(uuid)) for uuid in sorted(self._bypass)]
        return f"{self._base}{self.server}/v{self.version}/{endpoint}?{urlencode(query)}".encode()

    def _fall_back(self, answer: Answer) -> bool:
        """Fall back to an older version if the server lacks this one; False if it has it, or none is left."""
        if self.has_answered or self.version == 0:
            return False
        if answer.status == 400 and answer.body.strip() != b"bad version":
            return False
        self.version -= 1
        return True

    async def _next_login(self, refused: list[Login], doing: str) -> Login:
        self._accepted = False
        if self._login is not None:
            refused.append(self._login)
            if self._authentication is not None:
                await self._authentication.rejected(self._login)
        login = None
        if self._authentication is not None and len(refused) < _MAX_LOGINS:
            login = await self._authentication.login(refused)
        if login is None:
            what = "rejected the login" if refused else "wants a login, and there is none"
            raise AuthenticationFailed(f"{self.name}: {doing}: the server {what}")
        return login

    def failure(self, answer: Answer, doing: str) -> SessionError:
        """Return the error for an answer that is not a success."""
        text = answer.text()
        suffix = f": {text}" if text else ""
        match answer.status:
            case 401:
                return AuthenticationFailed(f"{self.name}: {doing}: the server wants a different login")
            case 403:
                return Refused(f"{self.name}: {doing}: the server does not allow it")
            case 404:
                return NotServed(f"{self.name}: {doing}: the server does not serve repository {self.server} there")
            case status if 300 <= status < 400:
                # Never send a login to the target of a redirect.
                return Unreachable(f"{self.name}: {doing}: the server redirects; use the url it redirects to")
            case status:
                kind = ServerFailed if status in _FAILED else Refused
                return kind(f"{self.name}: {doing}: the server answered {status}{suffix}")

    def _headers(
        self, body: AsyncIterator[bytes] | bytes | None, type: str, more: Mapping[str, str]
    ) -> list[tuple[bytes, bytes]]:
        headers = [(b"Host", self._host), (b"Accept", b"*/*"), (b"Accept-Encoding", b"identity")]
        if isinstance(body, AsyncIterator):
            headers.append((b"Transfer-Encoding", b"chunked"))
        else:
            headers.append((b"Content-Length", str(len(body or b"")).encode()))
        if body is not None:
            headers.append((b"Content-Type", type.encode()))
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

    async def _whole(self, response: httpcore.Response, doing: str, extra_timeout: float) -> bytes:
        """Read an answer without content, which must arrive as a whole in time."""
        waiting = anyio.CancelScope(deadline=anyio.current_time() + self._timeout + extra_timeout)
        body: bytes = await self._within(waiting, body_of(response), doing)
        return body

    async def _within(self, scope: anyio.CancelScope, waiting: Awaitable[Any], doing: str) -> Any:
        """Wait until a deadline. Raises SessionError."""
        with scope:
            return await self.translate_errors(waiting, doing)
        raise TimedOut(f"{self.name}: {doing}: the answer did not arrive in time")

    async def translate_errors(self, waiting: Awaitable[Any], doing: str) -> Any:
        """Turn network errors into SessionErrors."""
        try:
            return await waiting
        except Unreachable as error:
            # From our own Network.
            raise type(error)(f"{self.name}: {doing}: {error}") from None
        except (httpcore.ConnectError, httpcore.ProxyError, httpcore.UnsupportedProtocol) as error:
            raise Unreachable(f"{self.name}: {doing}: cannot connect: {_reason(error)}") from None
        except httpcore.ConnectTimeout:
            raise Unreachable(f"{self.name}: {doing}: no connection within {self._timeout:.3g} seconds") from None
        except httpcore.TimeoutException:
            raise TimedOut(f"{self.name}: {doing}: no progress for {self._timeout:.3g} seconds") from None
        except (httpcore.NetworkError, httpcore.ProtocolError) as error:
            raise ConnectionLost(f"{self.name}: {doing}: the connection broke: {_reason(error)}") from None
        except _TooLong as error:
            raise ProtocolError(f"{self.name}: {doing}: {error}") from None

    def field(self, answer: Mapping[str, Any], name: str, kind: type[T], doing: str) -> T:
        """Return a field of an answer. Raises ProtocolError unless it is a `kind`."""
        value = answer.get(name)
        # A boolean is a number in Python, but not in JSON; and no length or time has more than 64 bits.
        if not isinstance(value, kind) or (kind is int and not _is_number(value)):
            raise ProtocolError(f"{self.name}: {doing}: the answer has no valid {name!r}")
        return value

    def uuids(self, answer: Mapping[str, Any], doing: str) -> frozenset[UUID]:
        """Return the repositories that an answer names. Raises ProtocolError."""
        try:
            return frozenset(UUID(uuid) for uuid in answer.get("plusuuids", []))
        except (TypeError, ValueError):
            raise ProtocolError(f"{self.name}: {doing}: the answer has no valid 'plusuuids'") from None

    def data_length(self, response: httpcore.Response, doing: str) -> int:
        """Return the announced bytes of content. Raises ProtocolError."""
        wanted = DATA_LENGTH.lower().encode()
        values = [value for header, value in response.headers if header.lower() == wanted]
        if len(values) != 1 or not values[0].isdigit() or len(values[0]) > 19:
            raise ProtocolError(f"{self.name}: {doing}: the answer has no valid {DATA_LENGTH}")
        return int(values[0])


def _is_number(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MAX_DATA_LENGTH


async def _extending(scope: anyio.CancelScope, seconds: float, body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Yield a body, and after each part move the deadline of its answer to `seconds` from then.

    An empty part comes first, with which the head of the request is sent: the body may keep the server waiting.
    """
    yield b""
    async for part in body:
        scope.deadline = anyio.current_time() + seconds
        yield part
    scope.deadline = anyio.current_time() + seconds


class _TooLong(Exception):
    pass


async def body_of(response: httpcore.Response) -> bytes:
    """Read the whole body of an answer without content."""
    body = bytearray()
    async for chunk in response.aiter_stream():
        body += chunk
        if len(body) > _MAX_ANSWER:
            raise _TooLong(f"an answer of more than {_MAX_ANSWER} bytes")
    return bytes(body)


def coded(raw: bytes) -> str:
    """Encode a key or a file name for a url, before percent-encoding: as base64 in brackets unless it is UTF-8."""
    try:
        text = raw.decode("utf-8")
        plain = not (text.startswith("[") and text.endswith("]"))
    except UnicodeDecodeError:
        plain = False
    return text if plain else f"[{base64.urlsafe_b64encode(raw).decode()}]"


def _reason(error: Exception) -> str:
    return printable(str(error)[:_MAX_QUOTED]) or type(error).__name__
