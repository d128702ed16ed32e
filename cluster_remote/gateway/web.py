"""The gateway over HTTP: the P2P protocol, the git repository and a web page, at one address.

`git clone https://host/data` clones the dataset, and git-annex finds the cluster from there. Starlette routes the
requests.
"""

from __future__ import annotations

import html
import re
from typing import TYPE_CHECKING, Any

import anyio
from anyio.abc import TaskGroup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Mount, Route, Router

from cluster_remote.annex.errors import AnnexError
from cluster_remote.gateway.browsers import guarded
from cluster_remote.gateway.errors import HttpFailure, NotServed
from cluster_remote.gateway.githttp import GitHttp
from cluster_remote.gateway.httpaccess import Principal, challenge, login_could_help, note, principal_of
from cluster_remote.gateway.p2phttp import P2pHttp
from cluster_remote.gateway.sessions import SessionPool
from cluster_remote.gateway.slots import FailedLogins, OrphanedLocks, Slots
from cluster_remote.gateway.tokens import Token, Tokens, read_claim
from cluster_remote.gateway.webserver import WebConnection, WebServer
from cluster_remote.p2p.errors import TRY_LATER
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.messages import Connect
from cluster_remote.p2p.server import LOCK_RETENTION, Endpoint, Mode
from cluster_remote.p2p.text import printable
from cluster_remote.transport.tls import ServerCertificate

if TYPE_CHECKING:
    from cluster_remote.gateway.backend import Backend
    from cluster_remote.gateway.listeners import Accepted

__all__ = ["TokenAccess", "Web"]


class TokenAccess:
    """Requires a token, as the password of any user; with `public_read`, not for reading.

    `public_own` includes the contents in the gateway's own repository.
    A request waits at most `slot_wait` seconds for a slot.
    """

    def __init__(
        self,
        backend: Backend,
        tokens: Tokens,
        slots: Slots,
        failed_logins: FailedLogins,
        *,
        slot_wait: float,
        public_read: bool = False,
        public_own: bool = False,
    ) -> None:
        self._public_own = public_own
        self._slot_wait = slot_wait
        self._backend = backend
        self._tokens = tokens
        self._slots = slots
        self._failed_logins = failed_logins
        self._public_read = public_read

    @property
    def takes_logins(self) -> bool:
        return bool(self._tokens.all())

    async def authenticate(self, login: tuple[str, str] | None, connection: WebConnection) -> Principal | None:
        claim = None if login is None else read_claim(login[1])
        token = None if claim is None else self._tokens.check(claim.token)
        if login is not None and token is None:
            await anyio.sleep(self._failed_logins.add(connection.address))
        if token is None and not self._public_read:
            return None
        await self._take_slot(connection, token)
        if token is None:
            return Principal(Mode.READ_ONLY, f"anonymous at {connection.address}", anonymous=True)
        return Principal(token.mode, f"token {token.id} at {connection.address}", token=token)

    async def _take_slot(self, connection: WebConnection, token: Token | None) -> None:
        """Wait for a slot. Raises HttpFailure if none becomes free in time."""
        full = await self._slots.wait(connection, token, self._slot_wait)
        if full is not None:
            raise HttpFailure(503, full + TRY_LATER, {"Retry-After": "10"})

    async def served(self, uuid: UUID, client: UUID | None, principal: Principal) -> Endpoint | None:
        if principal.token is not None and principal.token.refusal(uuid, self._backend.own) is not None:
            return None
        if principal.token is None and uuid == self._backend.own and not self._public_own:
            return None
        try:
            return await self._backend.endpoint(uuid, client, principal.mode)
        except NotServed:
            return None


class Web:
    """A gateway over HTTP; its locks are tasks of `tasks`.

    `path` is the prefix of urls (`/data`, or nothing). Times are in seconds: `timeout` is without progress, `to_begin`
    is the deadline for the head of a client's first request.
    """

    def __init__(
        self,
        backend: Backend,
        access: TokenAccess,
        tasks: TaskGroup,
        sessions: SessionPool,
        orphaned_locks: OrphanedLocks,
        *,
        path: str = "",
        timeout: float,
        to_begin: float,
        lock_retention: float = LOCK_RETENTION,
    ) -> None:
        self._backend = backend
        self._access = access
        self._path = path
        api = P2pHttp(access, tasks, sessions, orphaned_locks, timeout, lock_retention=lock_retention)
        self._server = WebServer(self._app(api), to_begin, timeout)

    async def serve(self, accepted: Accepted, connection: WebConnection, certificate: ServerCertificate | None) -> str:
        """Serve a client until it hangs up; return a summary for the log."""
        try:
            await self._server.serve(accepted, connection, None if certificate is None else certificate.context)
        except OSError as error:
            return f"rejected: {error}"
        who = "without a token" if connection.token is None else f"token {connection.token.id}"
        return f"{who}: {connection.requests} request{'' if connection.requests == 1 else 's'}"

    async def stop(self) -> None:
        """End the idle connections, and the others after their request."""
        await self._server.stop()

    def _app(self, api: P2pHttp) -> Any:
        git = GitHttp(
            self._backend.repository, self._admit, self._backend.log.commit, self._git_annex_config, api.timeout
        )
        # Never redirect to the url with a slash: behind a reverse proxy, that would lead from https to http.
        routes: list[BaseRoute] = [*api.routes(), *git.routes(), Route("/", self._page)]
        if self._path:
            routes = [Route(self._path, self._page), Mount(self._path, Router(routes, redirect_slashes=False))]
        app = Starlette(
            routes=routes, exception_handlers={HttpFailure: _refused, AnnexError: _failed, Exception: _failed}
        )
        app.router.redirect_slashes = False
        return guarded(app)

    async def _admit(self, request: Request, wanted: Connect) -> str:
        """Check access to git; return the user's name. Raises HttpFailure."""
        principal = await principal_of(request, self._access)
        if principal is not None and principal.token is not None and not principal.token.git:
            raise HttpFailure(403, "this token gives no access to the git repository")
        if principal is not None and principal.may(wanted):
            return principal.name
        if login_could_help(principal, self._access):
            raise HttpFailure(401, "this gateway requires a token, as the password of any user", challenge())
        assert principal is not None
        raise HttpFailure(403, principal.mode.refusal(wanted) or "not allowed")

    async def _git_annex_config(self, request: Request) -> str:
        """Serve the `config` file that git-annex reads over HTTP: the UUID, and where content is."""
        base = _base(request)
        if not re.search(r":[0-9]+$", base):
            # Without a port, git-annex would connect to that of p2phttp.
            base += ":443" if base.startswith("https:") else ":80"
        return f"[annex]\n\tuuid = {self._backend.own}\n\tversion = 10\n\turl = annex+{base}{self._path}/git-annex/\n"

    async def _page(self, request: Request) -> Response:
        """Serve the page for people with a browser."""
        await self._admit(request, Connect("git-upload-pack"))
        try:
            state = await self._state()
        except AnnexError as error:
            state = f"<p>{_shown(str(error))}</p>"
        url = f"{_base(request)}{self._path}"
        name = self._path.rpartition("/")[2] or "data"
        page = _PAGE.format(name=_shown(name), url=_shown(url), cluster=_shown(str(self._backend.cluster)), state=state)
        return HTMLResponse(page, headers=_PAGE_HEADERS)

    async def _state(self) -> str:
        rows = [
            f"<tr><td>{_shown(name)}</td><td>{_shown(state)}</td><td><code>{_shown(str(uuid))}</code></td></tr>"
            for name, uuid, state in await self._backend.nodes()
        ]
        return (
            "<table><thead><tr><th>Node</th><th>State</th><th>UUID</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


async def _refused(request: Request, refusal: Exception) -> Response:
    """Answer any request that raises HttpFailure; without a line break, as git-annex does."""
    assert isinstance(refusal, HttpFailure)
    return Response(str(refusal), refusal.status, refusal.headers, "text/plain")


async def _failed(request: Request, error: Exception) -> Response:
    """Answer a request that fails inside the gateway, without giving the client details."""
    note(request, f"{request.method} {request.url.path}: {type(error).__name__}: {error}")
    return Response("this gateway cannot answer; see its log\n", 500, None, "text/plain")


def _base(request: Request) -> str:
    """Return scheme and host as the client used them; a reverse proxy sends X-Forwarded-Proto. Raises HttpFailure."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    host = request.headers.get("host", "localhost")
    if scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.\-:\[\]_]{1,255}", host):
        raise HttpFailure(400, "the Host and X-Forwarded-Proto headers do not form a url")
    return f"{scheme}://{host}"


def _shown(text: str) -> str:
    return html.escape(printable(text, 500))


_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    # The page shows the host that this client requested, and the current state.
    "Cache-Control": "no-store",
}
_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<link rel="icon" href="data:,">
<title>{name}: a git-annex dataset</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 45rem; margin: 2rem auto; padding: 0 1rem }}
pre, code {{ font: 0.9em/1.5 ui-monospace, monospace; overflow-wrap: anywhere }}
pre {{ background: #8882; padding: 0.8rem 1rem; border-radius: 0.4rem; white-space: pre-wrap }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border-bottom: 1px solid #8886; padding: 0.3rem 1rem 0.3rem 0; text-align: left; white-space: nowrap }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>This is a <a href="https://git-annex.branchable.com/">git-annex</a> dataset. Its files are stored in a cluster:
several repositories behind this one address.</p>
<h2>Get all of it</h2>
<pre>git clone {url} {name}
cd {name}
cluster-remote setup
git annex get .</pre>
<p>With git-annex alone, leave out <code>cluster-remote setup</code>.</p>
<h2>Get a single file</h2>
<p><code>{url}/git-annex/{cluster}/key/KEY</code></p>
<p>In a clone, <code>git annex lookupkey FILE</code> prints the KEY of a file.</p>
<h2>State of the cluster</h2>
{state}
</body>
</html>
"""
