"""The gateway over HTTP: the P2P protocol, the git repository, and a page for people, at one address.

`git clone https://host/data` gives the dataset, and git-annex finds the cluster from there. Requests are served by
Hypercorn, which lives in this program's event loop and takes sockets that are open already; Starlette routes them.
"""

from __future__ import annotations

import html
import re
import ssl
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
from hypercorn.asyncio import serve as serve_asgi
from hypercorn.config import Config
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Mount, Route

from cluster_remote.annex.errors import AnnexError
from cluster_remote.gateway.errors import NotAllowed, NotServed
from cluster_remote.gateway.githttp import GitHttp
from cluster_remote.gateway.p2phttp import P2pHttp, Visitor, challenge, visitor_of
from cluster_remote.gateway.places import Guesses
from cluster_remote.gateway.tokens import Tokens, read_claim
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.messages import Connect
from cluster_remote.p2p.server import Endpoint, Mode
from cluster_remote.p2p.text import printable
from cluster_remote.transport.tls import ServerCertificate

if TYPE_CHECKING:
    from cluster_remote.gateway.backend import Backend
    from cluster_remote.gateway.listeners import Listener

__all__ = ["TokenDoor", "Web"]

# Seconds in which the first wrong token of an address is answered; see Guesses.
_AFTER_WRONG_TOKEN = 1.0
# How many wrong tokens may be waiting for their answer.
_MOST_WRONG = 64


class TokenDoor:
    """Lets in who has a token, as the password of any user; with `public_read` anybody who only reads."""

    def __init__(self, behind: Backend, tokens: Tokens, *, public_read: bool = False) -> None:
        self._behind = behind
        self._tokens = tokens
        self._public_read = public_read
        self._guesses = Guesses(_AFTER_WRONG_TOKEN)
        self._slow = anyio.CapacityLimiter(_MOST_WRONG)

    @property
    def takes_logins(self) -> bool:
        return bool(self._tokens.all())

    async def visitor(self, user_and_password: tuple[str, str] | None, address: str) -> Visitor | None:
        nobody = Visitor(Mode.READ_ONLY, f"somebody at {address}", anonymous=True) if self._public_read else None
        if user_and_password is None:
            return nobody
        claim = read_claim(user_and_password[1])
        token = None if claim is None else self._tokens.check(claim.token)
        if token is None:
            async with self._slow:
                await anyio.sleep(self._guesses.wrong(address))
            return nobody
        return Visitor(token.mode, f"token {token.id} at {address}", token=token)

    async def served(self, uuid: UUID, client: UUID | None, visitor: Visitor) -> Endpoint | None:
        if visitor.token is not None and visitor.token.refusal(uuid, self._behind.own) is not None:
            return None
        try:
            return await self._behind.served(uuid, client, visitor.mode)
        except NotServed:
            return None


class Web:
    """One gateway over HTTP. `path` is what urls begin with (`/data`, or nothing); `log` takes a line at a time."""

    def __init__(
        self,
        behind: Backend,
        tokens: Tokens,
        log: Callable[[str], None],
        *,
        path: str = "",
        public_read: bool = False,
        certificate: ServerCertificate | None = None,
    ) -> None:
        self._behind = behind
        self._door = TokenDoor(behind, tokens, public_read=public_read)
        self._log = log
        self._path = path.rstrip("/")
        self._certificate = certificate

    async def run(self, listeners: Sequence[Listener], stopping: anyio.Event, grace: float) -> None:
        """Serve until `stopping` is set; then requests get `grace` seconds to finish. Closes the listeners."""
        config = self._config(listeners, grace)
        async with anyio.create_task_group() as locks:
            api = P2pHttp(self._door, locks, self._log)
            try:
                await serve_asgi(self._app(api), config, shutdown_trigger=stopping.wait)
            finally:
                with anyio.CancelScope(shield=True):
                    await api.aclose()
                locks.cancel_scope.cancel()

    def _config(self, listeners: Sequence[Listener], grace: float) -> Config:
        config = _Config(self._certificate)
        # Hypercorn takes the descriptors over, and closes them.
        config.bind = [f"fd://{listener.socket.detach()}" for listener in listeners]
        config.accesslog = None
        config.errorlog = None
        config.graceful_timeout = grace
        config.include_server_header = False
        config.h11_max_incomplete_size = 64 * 1024
        config.keep_alive_timeout = 90.0
        return config

    def _app(self, api: P2pHttp) -> Any:
        git = GitHttp(self._behind.repository, self._admit, self._behind.log.commit, self._git_annex_config, self._log)
        routes = [*api.routes(), *git.routes(), Route("/", self._page)]
        return Starlette(
            routes=[Mount(self._path, routes=routes)] if self._path else routes,
            exception_handlers={NotAllowed: _refused},
        )

    async def _admit(self, request: Request, wanted: Connect) -> str:
        """Let a request for git in; give the name of who makes it. Raises NotAllowed."""
        visitor = await visitor_of(request, self._door)
        if visitor is not None and visitor.token is not None and not visitor.token.git:
            raise NotAllowed("this token gives no access to the git repository", 403)
        if visitor is not None and visitor.may(wanted):
            return visitor.name
        if visitor is None or (visitor.anonymous and self._door.takes_logins):
            raise NotAllowed("this gateway wants a token, as the password of any user", 401, challenge())
        raise NotAllowed(visitor.mode.refusal(wanted) or "not allowed", 403)

    async def _git_annex_config(self, request: Request) -> str:
        """The `config` file that git-annex reads over HTTP: who this is, and where contents are."""
        return (
            f"[annex]\n\tuuid = {self._behind.own}\n\tversion = 10\n"
            f"\turl = annex+{_base(request)}{self._path}/git-annex/\n"
        )

    async def _page(self, request: Request) -> Response:
        """What a person sees with a browser."""
        await self._admit(request, Connect("git-upload-pack"))
        try:
            state = await self._state()
        except AnnexError as error:
            state = f"<p>{_shown(str(error))}</p>"
        url = f"{_base(request)}{self._path}"
        name = self._path.rpartition("/")[2] or "data"
        page = _PAGE.format(name=_shown(name), url=_shown(url or "/"), directory=_shown(name), state=state)
        return HTMLResponse(page, headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"})

    async def _state(self) -> str:
        rows = [
            f"<tr><td>{_shown(name)}</td><td>{_shown(str(uuid))}</td><td>{_shown(state)}</td></tr>"
            for name, uuid, state in await self._behind.nodes()
        ]
        return (
            f"<p>Cluster {_shown(str(self._behind.cluster))}</p>"
            "<table><thead><tr><th>node</th><th>UUID</th><th>state</th></tr></thead>"
            f"<tbody>{''.join(rows)}</tbody></table>"
        )


class _Config(Config):
    """Hypercorn's settings, with a certificate that can be read again while it serves."""

    def __init__(self, certificate: ServerCertificate | None) -> None:
        super().__init__()
        self._shown = certificate

    @property
    def ssl_enabled(self) -> bool:
        return self._shown is not None

    def create_ssl_context(self) -> ssl.SSLContext | None:
        if self._shown is None:
            return None
        self._shown.context.set_alpn_protocols(self.alpn_protocols)
        return self._shown.context


async def _refused(request: Request, refusal: Exception) -> Response:
    """The answer to any request, whatever it is for, that raises NotAllowed."""
    assert isinstance(refusal, NotAllowed)
    return Response(f"{refusal}\n", refusal.status, refusal.headers, "text/plain")


def _base(request: Request) -> str:
    """Scheme and host as the client used them; a reverse proxy says so in X-Forwarded-Proto. Raises NotAllowed."""
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    host = request.headers.get("host", "localhost")
    if scheme not in ("http", "https") or not re.fullmatch(r"[A-Za-z0-9.\-:\[\]_]{1,255}", host):
        raise NotAllowed("the Host and X-Forwarded-Proto headers do not make a url", 400)
    return f"{scheme}://{host}"


def _shown(text: str) -> str:
    return html.escape(printable(text, 500))


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{name}: a git-annex cluster</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 45rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
pre {{ background: #f3f3f3; padding: 0.8rem; overflow-x: auto }}
table {{ border-collapse: collapse; display: block; overflow-x: auto }}
td, th {{ border: 1px solid #ccc; padding: 0.3rem 0.6rem; text-align: left }}
</style>
</head>
<body>
<h1>{name}</h1>
<p>This is a dataset of <a href="https://git-annex.branchable.com/">git-annex</a>. Its files are in a cluster: several
repositories behind this one address.</p>
<h2>Get it</h2>
<pre>git clone {url} {directory}
cd {directory}
cluster-remote setup
git annex get .</pre>
<p>With git-annex alone, leave out <code>cluster-remote setup</code>.</p>
<h2>State</h2>
{state}
</body>
</html>
"""
