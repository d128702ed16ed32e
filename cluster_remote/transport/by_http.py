"""Open sessions over HTTP, with httpcore connecting through our own Network."""

from __future__ import annotations

import ssl
from collections.abc import Iterable
from functools import partial
from typing import Any

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSStream

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.logins import GitCredentials
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.descriptor import is_readable
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Http
from cluster_remote.transport.http import HttpSession
from cluster_remote.transport.httpclient import HttpClient
from cluster_remote.transport.network import Network, proxy_for
from cluster_remote.transport.opening import Caller
from cluster_remote.transport.tls import TlsSettings, http_setting, origin_of, tls_reason
from cluster_remote.transport.tracing import recorded

__all__ = ["http_session"]


def http_session(
    address: Http, caller: Caller, server: UUID | None, token: str | None, bypass: frozenset[UUID]
) -> HttpSession:
    scheme = "https" if address.tls else "http"
    url = f"{scheme}://{address.authority}{address.prefix}"
    proxy = proxy_for(scheme, address.host, http_setting(caller.config, "proxy", url))
    network = Network(caller.allowed_ips, proxy)
    context = TlsSettings.of(caller.config, url).context() if address.tls else None
    pool = httpcore.AsyncConnectionPool(context, network_backend=Backend(network), max_keepalive_connections=2)
    http = HttpClient(
        url,
        server,
        name=str(address),
        client=caller.uuid,
        pool=pool,
        authentication=GitCredentials(caller.repository, _login_wanted(address, caller.config), token),
        timeout=caller.timeout,
        bypass=bypass,
        candidates=partial(_candidates, caller.repository),
    )
    return HttpSession(http, recorded(caller.trace, str(address), server, token))


def _login_wanted(address: Http, config: GitConfig) -> str:
    """Return which login git is asked for: that of a remote on the same server, or else one for git-annex.

    These are the ones that git-annex asks for (observed with git-annex 10.20261026).
    """
    wanted = ("https" if address.tls else "http", address.host.lower(), address.port)
    for name in config.remotes():
        url = config.rewritten(config.remote(name, "url") or "")
        try:
            same = origin_of(url) == wanted
        except ValueError:
            continue
        if same and url.isprintable():
            return f"url={url}\n"
    return f"protocol={address.scheme}\nhost={address.authority}\npath=git-annex\n"


async def _candidates(repository: Repository | None) -> list[UUID]:
    """Return the repositories that a url may refer to: clusters known here, then gateways, then all others."""
    if repository is None:
        return []
    try:
        logs = await BranchLogs.read(repository, ["uuid.log", "cluster.log", "proxy.log"])
    except AnnexError as error:
        raise Unreachable(str(error)) from None
    proxied = {uuid for names in logs.proxied.values() for uuid in names.values() if uuid.is_cluster}
    clusters = sorted(logs.clusters.clusters() | proxied)
    return list(dict.fromkeys([*clusters, *sorted(logs.proxied), *sorted(logs.descriptions)]))


class Backend(httpcore.AsyncNetworkBackend):
    """A network backend for httpcore that connects through a Network."""

    def __init__(self, network: Network) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                return _Stream(await self._network.connect(host, port))
        except TimeoutError:
            raise httpcore.ConnectTimeout from None

    async def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.AsyncNetworkStream:
        raise httpcore.UnsupportedProtocol("HTTP over unix sockets is not supported")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    """Sends the head of a request with the first part of its body, which may be empty: one write is cheaper."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._head = b""
        self._has_begun = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        self._has_begun = False
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError:
            raise httpcore.ReadTimeout from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpcore.ReadError(_said(error)) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not self._has_begun:
            self._head, self._has_begun = buffer, True
            return
        data, self._head = self._head + buffer, b""
        if not data:
            return
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(data)
        except TimeoutError:
            raise httpcore.WriteTimeout from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError, ssl.SSLError) as error:
            raise httpcore.WriteError(_said(error)) from None

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with anyio.fail_after(timeout):
                return _Stream(
                    await TLSStream.wrap(
                        self._stream, ssl_context=ssl_context, hostname=server_hostname, standard_compatible=False
                    )
                )
        except TimeoutError:
            raise httpcore.ConnectTimeout from None
        except (anyio.BrokenResourceError, anyio.EndOfStream, ssl.SSLError) as error:
            await anyio.aclose_forcefully(self._stream)
            raise httpcore.ConnectError(_said(error)) from None

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            return is_readable(self._stream.extra(SocketAttribute.raw_socket).fileno())
        return None


def _said(error: Exception) -> str:
    """Return what the system or TLS says, as far as known."""
    return tls_reason(error) or str(error.__cause__ or error)
