"""Open streams that are sockets: on this machine, on others, behind TLS, through Tor."""

from __future__ import annotations

import os
from dataclasses import replace

from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import Tcp, Tls, Tor, Unix
from cluster_remote.transport.network import Network, proxy_for
from cluster_remote.transport.opening import Caller, token_for
from cluster_remote.transport.sockets import TcpTransport, TlsTransport, UnixTransport
from cluster_remote.transport.tls import TlsSettings

__all__ = ["onion_service", "tcp_socket", "tls_socket", "unix_socket"]

# Tor's default SOCKS port, which git-annex uses too.
_TOR_PROXY = "socks5h://127.0.0.1:9050"
_TOR_PROXY_VARIABLE = "CLUSTER_REMOTE_TOR_PROXY"


def unix_socket(address: Unix, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    return UnixTransport(os.fsencode(address.path), token=token_for(address, token, address.node), name=str(address))


def tcp_socket(address: Tcp, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    network = Network(caller.allowed_ips, proxy_for("tcp", address.host))
    return TcpTransport(
        network, address.host, address.port, token=token_for(address, token, address.node), name=str(address)
    )


def tls_socket(address: Tls, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    network = Network(caller.allowed_ips, proxy_for("tls", address.host))
    token = token_for(address, token, address.node)
    url = str(replace(address, node=None)).replace("tls://", "https://")
    tls = TlsSettings.of(caller.config, url)
    return TlsTransport(network, address.host, address.port, tls, token=token, name=str(address))


def onion_service(address: Tor, caller: Caller, server: UUID | None, token: str | None) -> Transport:
    # Onion names never leave Tor, so there is no IP address to check.
    network = Network(None, os.environ.get(_TOR_PROXY_VARIABLE) or _TOR_PROXY)
    return TcpTransport(
        network, address.host, address.port, token=token_for(address, token, address.node), name=str(address)
    )
