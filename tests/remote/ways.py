"""Every way over a network to one cluster, with a server that can be killed and started again at the same address."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.remote.testbed import Testbed, initremote
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster, make_cluster
from tests.support.sockets import accepts, accepts_tcp, free_port

__all__ = ["WAYS", "Way", "opened"]

WAYS = (
    "our-http",
    "our-https",
    "git-annex-http",
    "git-annex-https",
    "tls",
    "socks",
    "tor",
    "unix",
    "p2p-annex",
)
_SECONDS = 30.0
_SOCKS = """
import sys
import anyio
from tiny_proxy import Socks5ProxyHandler

async def main():
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=int(sys.argv[1]))
    print("listening", flush=True)
    await listener.serve(Socks5ProxyHandler().handle)

anyio.run(main)
"""
# What Tor is to its clients: a SOCKS proxy that knows the way to one onion service.
_ONION = f"{'a' * 56}.onion"
_TOR = f"""
import asyncio
import sys

async def pump(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()

async def serve(reader, writer):
    assert await reader.readexactly(3) == b"\\5\\1\\0"
    writer.write(b"\\5\\0")
    asked = await reader.readexactly({len(_ONION) + 7})
    assert asked == bytes([5, 1, 0, 3, {len(_ONION)}]) + b"{_ONION}" + bytes([0, 99])
    try:
        there = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
    except OSError:
        # As Tor says it if the service is away.
        writer.write(b"\\5\\4\\0\\1" + bytes(6))
        writer.close()
        return
    writer.write(b"\\5\\0\\0\\1" + bytes(6))
    await asyncio.gather(pump(reader, there[1]), pump(there[0], writer), return_exceptions=True)
    writer.close()
    there[1].close()

async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", int(sys.argv[1]))
    print("listening", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
# What a program of git-annex's generic P2P transport does: standard input and output lead to the peer.
_PIPE = """#!{python}
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])

def there():
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)

threading.Thread(target=there, daemon=True).start()
while data := peer.recv(65536):
    os.write(1, data)
"""


@dataclass
class Way:
    """A client whose remote `mycl` leads to a cluster by a server.

    Attributes:
        url: of the remote.
        command: the server, which listens at `at`: a port of 127.0.0.1, or a unix socket.
        env: what commands need to be given the url.
        forked: whether the server may share the memory of this process, which has imported it already.
    """

    cluster: Cluster
    url: str
    command: tuple[str, ...]
    at: int | Path
    env: Mapping[str, str]
    forked: bool = True
    server: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the server and wait until it listens."""
        with self.log.open("ab") as log:
            start = popen_forked if self.forked else Environment.popen
            self.server = start(
                self.cluster.gateway.environment,
                *self.command,
                cwd=self.cluster.gateway.path,
                stdin=subprocess.DEVNULL,
                stdout=log.fileno(),
                stderr=log.fileno(),
            )
        server = self.server
        assert wait_until(lambda: server.poll() is not None or self._listens(), _SECONDS), "it does not listen"
        assert server.poll() is None, self.log.read_text()

    def stop(self) -> None:
        """Tell the server to end, and wait until it has."""
        assert self.server is not None
        self.server.send_signal(signal.SIGTERM)
        self.server.wait(_SECONDS)
        self.kill()

    def kill(self) -> None:
        """Kill the server, if there is one."""
        if self.server is not None:
            end_group(self.server.pid)
            self.server.wait(_SECONDS)
            self.server = None

    @property
    def is_git_annex(self) -> bool:
        """Whether it is git-annex's own server."""
        return self.command[0] == "git-annex"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.cluster.gateway.environment.directory / "server.log"

    def _listens(self) -> bool:
        return accepts(self.at) if isinstance(self.at, Path) else accepts_tcp(self.at)


@contextlib.contextmanager
def opened(name: str, environment: Environment, *, forked: bool = True) -> Iterator[tuple[Way, Testbed]]:
    """A cluster with the server of a way, and a client of it; nothing is left at the end."""
    cluster = make_cluster(environment, environment.directory)
    client = cluster.clone()
    with contextlib.ExitStack() as stack:
        way = replace(_way(name, cluster, stack), forked=forked)
        stack.callback(way.kill)
        way.start()
        initremote(client, "mycl", f"url={way.url}", sameas=cluster.uuid, env=way.env)
        yield way, Testbed(cluster, client)


def _way(name: str, cluster: Cluster, stack: contextlib.ExitStack) -> Way:
    environment, port = cluster.gateway.environment, free_port()
    tls: tuple[str, ...] = ()
    if name in ("our-https", "git-annex-https", "tls"):
        certificate, key = map(str, make_certificate(environment))
        environment.run("git", "config", "--global", "http.sslCAInfo", certificate)
        tls = ("--certificate", certificate, "--key", key)
        if name == "git-annex-https":
            tls = ("--certfile", certificate, "--privatekeyfile", key)
    if name.startswith("git-annex-"):
        command = ("git-annex", "p2phttp", "-J4", "--bind=127.0.0.1", f"--port={port}", "--wideopen", *tls)
        return Way(cluster, f"annex+http{'s' if tls else ''}://localhost:{port}/git-annex/", command, port, {})
    path = environment.directory / "gw"
    if name == "socks":
        environment.env["ALL_PROXY"] = f"socks5h://127.0.0.1:{stack.enter_context(_proxy(environment, _SOCKS))}"
        environment.env["NO_PROXY"] = ""
    if name == "tor":
        proxy = stack.enter_context(_proxy(environment, _TOR, str(port)))
        environment.env["CLUSTER_REMOTE_TOR_PROXY"] = f"socks5h://127.0.0.1:{proxy}"
    if name == "p2p-annex":
        environment.program("git-annex-p2p-tests", _PIPE.format(python=sys.executable))
    places: dict[str, tuple[str, str, int | Path]] = {
        "our-http": (f"http://127.0.0.1:{port}/data", f"annex+http://127.0.0.1:{port}/data/git-annex/", port),
        "our-https": (f"https://127.0.0.1:{port}/", f"annex+https://localhost:{port}/git-annex/", port),
        "tls": (f"tls://127.0.0.1:{port}", f"tls://localhost:{port}", port),
        "socks": (f"tcp://127.0.0.1:{port}", f"tcp://127.0.0.1:{port}", port),
        "tor": (f"tcp://127.0.0.1:{port}", f"tor-annex::{_ONION}:99", port),
        "unix": (f"unix:{path}", f"unix:{path}", path),
        "p2p-annex": (f"unix:{path}", f"p2p-annex::tests:{path}", path),
    }
    listen, url, at = places[name]
    token = Tokens(cluster.gateway.path / ".git" / "cluster-remote" / "tokens").create(Mode.READ_WRITE)[1]
    command = ("cluster-remote", "serve", "--listen", listen, *tls)
    return Way(cluster, url, command, at, {"CLUSTER_REMOTE_TOKEN": token})


@contextlib.contextmanager
def _proxy(environment: Environment, program: str, *arguments: str) -> Iterator[int]:
    """Run a proxy; give its port."""
    port = free_port()
    proxy = environment.popen(sys.executable, "-c", program, str(port), *arguments)
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"listening\n"
        yield port
    finally:
        end_group(proxy.pid)
        proxy.communicate()
