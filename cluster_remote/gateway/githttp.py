"""The gateway's own git repository over smart HTTP, using `git http-backend`: clone, fetch and push.

Also serves `config`, which git-annex reads from every repository that git reaches over HTTP (observed with git-annex
10.20261026): it tells a clone the repository's UUID and where its content is served.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import anyio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from cluster_remote.annex import child
from cluster_remote.annex.errors import AnnexError, CommandFailed
from cluster_remote.annex.repository import foreign_environment
from cluster_remote.gateway.httpaccess import note
from cluster_remote.gateway.httpbodies import Sender, StreamedResponse
from cluster_remote.p2p.errors import TimedOut
from cluster_remote.p2p.messages import Connect

if TYPE_CHECKING:
    from anyio.abc import Process

    from cluster_remote.annex.repository import Repository

__all__ = ["GitHttp"]

# Seconds of silence from both git and its client before both are stopped. A hook may take its time.
_SILENCE = 3600.0
_CHUNK = 64 * 1024
# Maximum bytes of the header lines that git http-backend prints.
_LONGEST_HEADER = 64 * 1024


class GitHttp:
    """`admit` checks access to a service (git-upload-pack, git-receive-pack) and raises HttpFailure, which the
    application handles; `before_fetch` updates the repository's branches; `config` is what is served under that name;
    `timeout` is in seconds without progress.
    """

    def __init__(
        self,
        repository: Repository,
        admit: Callable[[Request, Connect], Awaitable[str]],
        before_fetch: Callable[[], Awaitable[None]],
        config: Callable[[Request], Awaitable[str]],
        timeout: float,
    ) -> None:
        self._timeout = timeout
        self._repository = repository
        self._admit = admit
        self._before_fetch = before_fetch
        self._config = config

    def routes(self) -> list[Route]:
        """Return the routes for Starlette."""
        return [
            Route("/config", self._answer_config),
            Route("/info/refs", self._answer_refs),
            Route("/git-upload-pack", self._answer_service, methods=["POST"]),
            Route("/git-receive-pack", self._answer_service, methods=["POST"]),
        ]

    async def _answer_config(self, request: Request) -> Response:
        await self._admit(request, Connect("git-upload-pack"))
        # It contains the host that this client requested.
        return Response(await self._config(request), 200, {"Cache-Control": "no-store"}, "text/plain")

    async def _answer_refs(self, request: Request) -> Response:
        service = request.query_params.get("service", "")
        if service not in ("git-upload-pack", "git-receive-pack"):
            # Only a git that does not speak smart HTTP requests anything else.
            return Response("this repository is only available over git's smart HTTP\n", 403, media_type="text/plain")
        return await self._serve(request, service, "/info/refs", f"service={service}")

    async def _answer_service(self, request: Request) -> Response:
        service = request.url.path.rpartition("/")[2]
        return await self._serve(request, service, f"/{service}", "")

    async def _serve(self, request: Request, service: str, path: str, query: str) -> Response:
        user = await self._admit(request, Connect(service))
        if service == "git-upload-pack":
            try:
                await self._before_fetch()
            except AnnexError as error:
                # The fetch then gets old records, but no wrong ones.
                note(request, str(error))
        environment = foreign_environment() | {
            "GIT_PROJECT_ROOT": str(self._repository.git_dir),
            "GIT_HTTP_EXPORT_ALL": "1",
            "PATH_INFO": path,
            "REQUEST_METHOD": request.method,
            # The service that access was checked for; git might pick another one from a query with several.
            "QUERY_STRING": query,
            "CONTENT_TYPE": request.headers.get("content-type", ""),
            "REMOTE_USER": user,
            "REMOTE_ADDR": request.client.host if request.client is not None else "",
            "GIT_PROTOCOL": request.headers.get("git-protocol", ""),
            # Access has been checked already; otherwise git requires its own setting in the repository.
            "GIT_CONFIG_COUNT": "1",
            "GIT_CONFIG_KEY_0": "http.receivepack",
            "GIT_CONFIG_VALUE_0": "true",
        }
        if "content-encoding" in request.headers:
            environment["HTTP_CONTENT_ENCODING"] = request.headers["content-encoding"]
        if "content-length" in request.headers:
            environment["CONTENT_LENGTH"] = request.headers["content-length"]
        try:
            process = await child.start(("git", "http-backend"), cwd=None, env=environment)
        except CommandFailed as error:
            note(request, str(error))
            return Response("the gateway cannot start git\n", 500, media_type="text/plain")
        # A push may take long to compress, and only token holders push; the other requests are small.
        timeout = _SILENCE if service == "git-receive-pack" else self._timeout
        return await _HttpBackend(process, request, timeout).response()


class _HttpBackend:
    """One run of git http-backend: the request's body goes in, headers and body of the response come out.

    The client must not send nothing for longer than `timeout` seconds.
    """

    def __init__(self, process: Process, request: Request, timeout: float) -> None:
        self._timeout = timeout
        self._process = process
        self._request = request
        self._tail = child.Tail()

    async def response(self) -> Response:
        begun = False
        try:
            # Read the body first: a response that begins before the end of the request confuses proxies. git's requests
            # are small, except for a push, which git http-backend reads to the end before it responds.
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                answer = await self._begun()
                tasks.cancel_scope.cancel()
            begun = isinstance(answer, StreamedResponse)
            return answer
        finally:
            if not begun:
                await child.kill(self._process)

    async def _begun(self) -> Response:
        try:
            with anyio.fail_after(_SILENCE):
                await self._feed()
                headers, rest = await self._headers()
            status = int(headers.pop("Status", "200").split(" ")[0])
            return StreamedResponse(partial(self._respond, status, headers, rest), self._request)
        except (TimeoutError, ValueError) as error:
            note(self._request, f"git http-backend: {error or 'no answer'}: {self._tail.text()}")
            return Response("git gave no answer on the gateway\n", 500, media_type="text/plain")
        except ClientDisconnect:
            return Response(None, 400)

    async def _listen(self) -> None:
        """Read git's standard error, so that git does not block on it."""
        assert self._process.stderr is not None
        await child.drain(self._process.stderr, self._tail)

    async def _respond(self, status: int, headers: dict[str, str], rest: bytes, sender: Sender) -> None:
        """Send git's answer, and end git. Raises TimedOut."""
        silent = False
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._listen)
                try:
                    await sender.start(status, headers)
                    async for chunk in self._answer(rest):
                        await sender.send(chunk)
                except TimeoutError:
                    silent = True
                tasks.cancel_scope.cancel()
        finally:
            await child.kill(self._process)
        if silent:
            # Not inside the group, which would wrap it.
            raise TimedOut("git http-backend sent nothing for too long")

    async def _feed(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        parts = self._request.stream()
        while True:
            with anyio.fail_after(self._timeout):
                chunk = await anext(parts, None)
            if chunk is None:
                break
            if chunk:
                try:
                    await stdin.send(chunk)
                except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                    # git has stopped reading; its answer says why.
                    break
        await stdin.aclose()

    async def _headers(self) -> tuple[dict[str, str], bytes]:
        assert self._process.stdout is not None
        data = b""
        while b"\r\n\r\n" not in data:
            if len(data) > _LONGEST_HEADER:
                raise ValueError("its headers are too long")
            try:
                data += await self._process.stdout.receive(_CHUNK)
            except anyio.EndOfStream:
                raise ValueError("it ended without an answer") from None
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = (line.decode("latin-1").partition(": ") for line in head.split(b"\r\n"))
        return {name: value for name, _, value in lines}, rest

    async def _answer(self, rest: bytes) -> AsyncIterator[bytes]:
        stdout = self._process.stdout
        assert stdout is not None
        if rest:
            yield rest
        while True:
            try:
                with anyio.fail_after(_SILENCE):
                    chunk = await stdout.receive(_CHUNK)
            except anyio.EndOfStream:
                break
            yield chunk
