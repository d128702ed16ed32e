"""Connect to other machines: resolve names, use proxies, and enforce the allowed addresses.

`tcp://`, `tls://`, http and Tor all connect here, so that annex.security.allowed-ip-addresses, NO_PROXY and the
connection deadline mean the same for each of them.
"""

from __future__ import annotations

import os
import select
import socket
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import anyio
import httpcore
from anyio.abc import ByteStream, SocketAttribute, SocketStream
from anyio.streams.tls import TLSStream

from cluster_remote.p2p.errors import Unreachable

__all__ = ["Network", "proxy_for"]

# Seconds to try one address of a host that has several.
_SHARE = 5.0


def proxy_for(scheme: str, host: str, configured: str | None = None) -> str | None:
    """Return the url of the proxy for a host, chosen like curl and git do; None to connect directly.

    `scheme` is http, https, or anything else; `configured` is git's http.proxy, which overrides HTTPS_PROXY and
    HTTP_PROXY, which override ALL_PROXY. NO_PROXY lists hosts to reach directly.
    """
    if configured is not None:
        return configured or None
    found = getproxies_environment()
    if proxy_bypass(host):
        return None
    return found.get(scheme) or found.get("all") or None


@dataclass(frozen=True)
class Network:
    """How to connect to other machines.

    `allowed_ips` is annex.security.allowed-ip-addresses if the address may be a stranger's, None if the user gave it;
    `proxy` is a url (socks5h://, socks5://, http://), None for none.
    """

    allowed_ips: str | None = None
    proxy: str | None = None

    async def connect(self, host: str, port: int) -> ByteStream:
        """Connect to a port of a host. Raises Unreachable. The caller sets the deadline."""
        if self.proxy is not None:
            return await self._by_proxy(host, port, self.proxy)
        if self.allowed_ips is None:
            return await self._directly(host, port)
        return await self._where_allowed(host, port, self.allowed_ips)

    async def _directly(self, host: str, port: int) -> SocketStream:
        try:
            # anyio tries a host's addresses concurrently (happy eyeballs).
            return _prepared(await anyio.connect_tcp(host, port))
        except (socket.gaierror, UnicodeError) as error:
            raise _unknown(host, error) from None
        except OSError as error:
            raise Unreachable(f"cannot connect to {host}:{port}: {_cause(error)}") from None

    async def _where_allowed(self, host: str, port: int, allowed_ips: str) -> SocketStream:
        from cluster_remote.transport.trust import Refusal, connectable

        try:
            candidates = await anyio.getaddrinfo(host, port)
        except (OSError, UnicodeError) as error:
            raise _unknown(host, error) from None
        addresses = list(dict.fromkeys(str(candidate[4][0]) for candidate in candidates))
        permitted = [address for address in addresses if connectable(address, port, allowed_ips)]
        if not permitted:
            raise Refusal(
                f"{host} is {', '.join(addresses)}, not a public address, and the url came by the git-annex branch: if "
                f"it should be used, git config annex.security.allowed-ip-addresses {addresses[0]}"
            )
        reasons = []
        # Connect by address: the name may resolve differently next time.
        for address in permitted:
            try:
                with anyio.fail_after(None if address == permitted[-1] else _SHARE):
                    return _prepared(await anyio.connect_tcp(address, port))
            except TimeoutError:
                reasons.append(f"{address}: no answer")
            except OSError as error:
                reasons.append(f"{address}: {_cause(error)}")
        raise Unreachable(f"cannot connect to {host}:{port}: {'; '.join(reasons)}")

    async def _by_proxy(self, host: str, port: int, proxy: str) -> ByteStream:
        from python_socks import ProxyError, ProxyTimeoutError
        from python_socks.async_.anyio.v2 import Proxy

        from cluster_remote.transport.trust import Refusal

        if self.allowed_ips is not None and self.allowed_ips.split() != ["all"]:
            raise Refusal(
                f"{host} would be reached by a proxy, which may connect it to any address, and the url came by the "
                "git-annex branch: if it should be used, git config annex.security.allowed-ip-addresses all"
            )
        # socks5h is curl's name for resolving at the proxy, which is what always happens here.
        parts = urlsplit(proxy)
        scheme = {"socks5h": "socks5", "socks": "socks5", "socks4a": "socks4"}.get(parts.scheme, parts.scheme)
        shown = f"{parts.scheme}://{parts.hostname}:{parts.port}"
        try:
            connector = Proxy.from_url(parts._replace(scheme=scheme).geturl(), rdns=True)
        except ValueError as error:
            raise Unreachable(f"the proxy {shown} cannot be used: {error}") from None
        try:
            stream = await connector.connect(host, port)
        except (ProxyError, ProxyTimeoutError, OSError) as error:
            raise Unreachable(f"cannot connect to {host}:{port} by the proxy {shown}: {error}") from None
        return stream.anyio_stream


def _prepared(stream: SocketStream) -> SocketStream:
    """Set the socket options for long-lived connections with small messages; anyio sets TCP_NODELAY."""
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return stream


def _unknown(host: str, error: Exception) -> Unreachable:
    return Unreachable(f"cannot find the host {host!r}: {getattr(error, 'strerror', None) or error}")


def _cause(error: BaseException) -> str:
    """Return the underlying system error; anyio makes it the cause, and groups the errors of several addresses."""
    several = getattr(error, "exceptions", ())
    if several:
        return "; ".join(dict.fromkeys(map(_cause, several)))
    if error.__cause__ is not None:
        return _cause(error.__cause__)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)


# For httpcore


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
        raise httpcore.UnsupportedProtocol("unix sockets are not spoken with over HTTP")

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class _Stream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        try:
            with anyio.fail_after(timeout):
                return await self._stream.receive(max_bytes)
        except anyio.EndOfStream:
            return b""
        except TimeoutError:
            raise httpcore.ReadTimeout from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.ReadError(str(error.__cause__ or "")) from None

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        try:
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)
        except TimeoutError:
            raise httpcore.WriteTimeout from None
        except (anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
            raise httpcore.WriteError(str(error.__cause__ or "")) from None

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
            raise httpcore.ConnectError(str(error.__cause__ or error)) from None

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":
            readable = select.poll()
            readable.register(self._stream.extra(SocketAttribute.raw_socket).fileno(), select.POLLIN)
            return bool(readable.poll(0))
        return None
