"""Connect to other machines: resolve names, use proxies, and enforce the allowed addresses.

`tcp://`, `tls://`, http and Tor all connect here, so that annex.security.allowed-ip-addresses, NO_PROXY and the
connection deadline mean the same for each of them.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from urllib.request import getproxies_environment, proxy_bypass

import anyio
from anyio.abc import ByteStream, SocketAttribute, SocketStream

from cluster_remote.p2p.errors import Unreachable
from cluster_remote.transport.trust import Refusal, connectable

__all__ = ["Network", "proxy_for"]

# Seconds to try one address of a host that has several.
_PER_ADDRESS = 5.0


def proxy_for(scheme: str, host: str, configured: str | None = None) -> str | None:
    """Return the url of the proxy for a host, chosen like curl and git do; None to connect directly.

    `scheme` is http, https, or anything else; `configured` is git's http.proxy, which overrides HTTPS_PROXY and
    HTTP_PROXY, which override ALL_PROXY. NO_PROXY lists hosts to reach directly, whatever the proxy.
    """
    if proxy_bypass(host):
        return None
    if configured is not None:
        return configured or None
    found = getproxies_environment()
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
            return await self._through_proxy(host, port, self.proxy)
        if self.allowed_ips is None:
            return await self._directly(host, port)
        return await self._to_allowed(host, port, self.allowed_ips)

    async def _directly(self, host: str, port: int) -> SocketStream:
        try:
            # anyio tries a host's addresses concurrently (happy eyeballs).
            return _kept_alive(await anyio.connect_tcp(host, port))
        except (socket.gaierror, UnicodeError) as error:
            raise _unresolved(host, error) from None
        except OSError as error:
            raise Unreachable(f"cannot connect to {host}:{port}: {_cause(error)}") from None

    async def _to_allowed(self, host: str, port: int, allowed_ips: str) -> SocketStream:
        try:
            candidates = await anyio.getaddrinfo(host, port)
        except (OSError, UnicodeError) as error:
            raise _unresolved(host, error) from None
        addresses = list(dict.fromkeys(str(candidate[4][0]) for candidate in candidates))
        permitted = [address for address in addresses if connectable(address, port, allowed_ips)]
        if not permitted:
            raise Refusal(
                f"{host} is {', '.join(addresses)}, not a public address, and the url came through the git-annex "
                f"branch: to allow it, run git config annex.security.allowed-ip-addresses {addresses[0]}"
            )
        reasons = []
        # Connect by address: the name may resolve differently next time.
        for address in permitted:
            try:
                with anyio.fail_after(None if address == permitted[-1] else _PER_ADDRESS):
                    return _kept_alive(await anyio.connect_tcp(address, port))
            except TimeoutError:
                reasons.append(f"{address}: no answer")
            except OSError as error:
                reasons.append(f"{address}: {_cause(error)}")
        raise Unreachable(f"cannot connect to {host}:{port}: {'; '.join(reasons)}")

    async def _through_proxy(self, host: str, port: int, proxy: str) -> ByteStream:
        if self.allowed_ips is not None and self.allowed_ips.split() != ["all"]:
            raise Refusal(
                f"{host} would be reached through a proxy, which may connect to any address, and the url came through "
                "the git-annex branch: to allow it, run git config annex.security.allowed-ip-addresses all"
            )
        # Imported only when needed: few users have a proxy.
        from cluster_remote.transport.proxy import connect_through

        return await connect_through(proxy, host, port)


def _kept_alive(stream: SocketStream) -> SocketStream:
    """Set the socket options for long-lived connections with small messages; anyio sets TCP_NODELAY."""
    stream.extra(SocketAttribute.raw_socket).setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    return stream


def _unresolved(host: str, error: Exception) -> Unreachable:
    return Unreachable(f"cannot find the host {host!r}: {getattr(error, 'strerror', None) or error}")


def _cause(error: BaseException) -> str:
    """Return the underlying system error; anyio makes it the cause, and groups the errors of several addresses."""
    several = getattr(error, "exceptions", ())
    if several:
        return "; ".join(dict.fromkeys(map(_cause, several)))
    if error.__cause__ is not None:
        return _cause(error.__cause__)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
