"""Connect through a proxy: SOCKS, such as that of Tor, or HTTP."""

from __future__ import annotations

from urllib.parse import urlsplit

from anyio.abc import ByteStream
from python_socks import ProxyError, ProxyTimeoutError
from python_socks.async_.anyio.v2 import Proxy

from cluster_remote.p2p.errors import Unreachable

__all__ = ["connect_through"]


async def connect_through(proxy: str, host: str, port: int) -> ByteStream:
    """Connect to a port of a host through a proxy, which resolves the name. Raises Unreachable."""
    # socks5h is curl's name for resolving at the proxy, which always happens here.
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
        raise Unreachable(f"cannot connect to {host}:{port} through the proxy {shown}: {error}") from None
    return stream.anyio_stream
