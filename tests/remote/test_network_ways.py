"""The special remote over HTTP, TLS, a SOCKS proxy and a P2P network: everything that git-annex asks of it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import gateway_of
from tests.gateway.test_web import web_of
from tests.remote.testbed import Testbed, initremote
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.slow import only_in_all
from tests.support.sockets import free_port, serve_p2phttp

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


def _allow(environment: Environment) -> None:
    environment.run("git", "config", "--global", "annex.security.allowed-ip-addresses", "all")


@contextlib.contextmanager
def _native_http(cluster: Cluster) -> Iterator[tuple[str, dict[str, str]]]:
    with serve_p2phttp(cluster.gateway) as port:
        yield f"annex+http://localhost:{port}/git-annex/", {}


@contextlib.contextmanager
def _our_http(cluster: Cluster) -> Iterator[tuple[str, dict[str, str]]]:
    with web_of(cluster) as web:
        token = web.tokens[Mode.READ_WRITE]
        yield f"annex+http://127.0.0.1:{web.port}/data/git-annex/", {"CLUSTER_REMOTE_TOKEN": token}


@contextlib.contextmanager
def _by_socks(cluster: Cluster) -> Iterator[tuple[str, dict[str, str]]]:
    environment = cluster.gateway.environment
    port = free_port()
    proxy = environment.popen(sys.executable, "-c", _SOCKS, str(port))
    try:
        assert proxy.stdout is not None
        assert proxy.stdout.readline() == b"listening\n"
        environment.env["ALL_PROXY"] = f"socks5h://127.0.0.1:{port}"
        environment.env["NO_PROXY"] = ""
        with gateway_of(cluster) as gateway:
            yield gateway.tcp, {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
    finally:
        end_group(proxy.pid)
        proxy.communicate()


@contextlib.contextmanager
def _by_tls(cluster: Cluster) -> Iterator[tuple[str, dict[str, str]]]:
    environment = cluster.gateway.environment
    certificate, key = make_certificate(environment)
    environment.run("git", "config", "--global", "http.sslCAInfo", certificate)
    port = free_port()
    options = ("--listen", f"tls://127.0.0.1:{port}", "--certificate", str(certificate), "--key", str(key))
    with gateway_of(cluster, *options) as gateway:
        yield f"tls://localhost:{port}", {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}


@contextlib.contextmanager
def _by_network(cluster: Cluster) -> Iterator[tuple[str, dict[str, str]]]:
    with gateway_of(cluster) as gateway:
        program = cluster.gateway.environment.program("git-annex-p2p-tests", _PIPE.format(python=sys.executable))
        assert program.exists()
        yield f"p2p-annex::tests:{gateway.path}", {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}


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

WAYS: dict[str, Callable[[Cluster], contextlib.AbstractContextManager[tuple[str, dict[str, str]]]]] = {
    "git-annex-http": _native_http,
    "our-http": _our_http,
    "socks": _by_socks,
    "tls": _by_tls,
    "p2p-annex": _by_network,
}


@pytest.fixture(params=["our-http", *only_in_all(*(way for way in WAYS if way != "our-http"))])
def way(request: pytest.FixtureRequest, environment: Environment) -> Iterator[tuple[Testbed, dict[str, str]]]:
    cluster = make_cluster(environment, environment.directory)
    client = cluster.clone()
    _allow(environment)
    with WAYS[request.param](cluster) as (url, env):
        initremote(client, "mycl", f"url={url}", sameas=cluster.uuid, env=env)
        yield Testbed(cluster, client), env


@pytest.mark.slow
def test_files_are_stored_on_every_node_retrieved_and_dropped(way: tuple[Testbed, dict[str, str]]) -> None:
    testbed, _ = way
    content = os.urandom(300_000)
    key = testbed.client.add("photo.jpg", content)
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    assert testbed.cluster.holders(key) == [True] * 3
    assert testbed.present(key) == testbed.nodes
    testbed.client.annex("drop", "--quiet", "--force", "photo.jpg")
    testbed.client.leave_partial(key, content[:100_000])
    testbed.client.annex("get", "--quiet", "--from", "mycl", "photo.jpg")
    assert testbed.client.object_bytes(key) == content
    testbed.client.annex("fsck", "--quiet", "--from", "mycl", "photo.jpg")
    testbed.client.annex("drop", "--quiet", "--from", "mycl", "photo.jpg")
    assert testbed.cluster.holders(key) == [False] * 3
    assert not testbed.present(key)


@pytest.mark.slow
def test_many_files_at_once_with_jobs(way: tuple[Testbed, dict[str, str]]) -> None:
    testbed, _ = way
    keys = [testbed.client.add(f"f{number}", os.urandom(1000)) for number in range(8)]
    testbed.client.annex("copy", "--quiet", "-J4", "--to", "mycl", ".")
    assert all(testbed.cluster.holders(key) == [True] * 3 for key in keys)
    testbed.client.annex("drop", "--quiet", "--force", ".")
    testbed.client.annex("get", "--quiet", "-J4", "--from", "mycl", ".")
    assert all(testbed.client.has_object(key) for key in keys)


@pytest.mark.slow
def test_killed_transfers_resume_in_both_directions(way: tuple[Testbed, dict[str, str]]) -> None:
    testbed, _ = way
    content = os.urandom(80_000_000)
    key = testbed.client.add("film", content)

    def kill_when(part: Path, *command: str) -> bool:
        """Kill a transfer once some of it has come; whether it was in time."""
        transfer = testbed.environment.popen(
            *("git", "annex", *command), cwd=testbed.client.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        begun = wait_until(lambda: transfer.poll() is not None or _size(part) > 4_000_000, 60)
        end_group(transfer.pid)
        transfer.wait(20)
        return begun and 4_000_000 < _size(part) < len(content)

    part = testbed.cluster.nodes[0].path / ".git/annex/tmp" / key
    assert kill_when(part, "copy", "--to", "mycl", "film")
    assert testbed.cluster.holders(key) == [False] * 3
    testbed.client.annex("copy", "--quiet", "--to", "mycl", "film")
    assert testbed.cluster.holders(key) == [True] * 3
    assert all(node.object_bytes(key) == content for node in testbed.cluster.nodes)
    testbed.client.annex("drop", "--quiet", "--force", "film")
    assert kill_when(testbed.client.path / ".git/annex/tmp" / key, "get", "--from", "mycl", "film")
    testbed.client.annex("get", "--quiet", "--from", "mycl", "film")
    assert testbed.client.object_bytes(key) == content


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


@pytest.mark.slow
def test_git_annex_testremote_passes(way: tuple[Testbed, dict[str, str]]) -> None:
    testbed, _ = way
    done = testbed.client.annex("testremote", "--fast", "mycl", "--size=99", timeout=280, check=False)
    assert done.returncode == 0, done.stdout.decode()[-3000:]


def test_an_untrusted_certificate_is_refused_with_the_reason_until_trusted(cluster: Cluster) -> None:
    environment, client, port = cluster.gateway.environment, cluster.clone(), free_port()
    certificate, key = make_certificate(environment)
    options = ("--listen", f"tls://127.0.0.1:{port}", "--certificate", str(certificate), "--key", str(key))
    with gateway_of(cluster, *options) as gateway:
        token = {"CLUSTER_REMOTE_TOKEN": gateway.tokens[Mode.READ_WRITE]}
        url = f"url=tls://localhost:{port}"
        done = initremote(client, "mycl", url, sameas=cluster.uuid, check=False, env=token)
        assert done.returncode == 1
        assert b"its certificate is not trusted" in done.stdout + done.stderr
        assert b"http.sslCAInfo" in done.stdout + done.stderr
        # The gateway takes a new certificate without an end of its connections.
        certificate, _ = make_certificate(environment)
        gateway.process.send_signal(signal.SIGHUP)
        assert wait_until(lambda: "certificate reloaded" in gateway.log.read_text())
        environment.run("git", "config", "--global", "http.sslCAInfo", certificate)
        initremote(client, "mycl", url, sameas=cluster.uuid, env=token)


def test_a_login_is_taken_from_gits_credential_helpers(cluster: Cluster) -> None:
    environment, client = cluster.gateway.environment, cluster.clone()
    key = client.add("photo.jpg", b"photo")
    asked = environment.directory / "asked"
    environment.run(
        "git", "config", "--global", "credential.helper",
        f"!f() {{ echo $1 >>{asked}; cat >>{asked}; test $1 = get && echo username=ada && echo password=right; }}; f",
    )  # fmt: skip
    secrets = {"GIT_ANNEX_P2PHTTP_PASSWORD_ada": "right"}
    with serve_p2phttp(cluster.gateway, "--authenv-http", env=secrets) as port:
        url = f"annex+http://localhost:{port}/git-annex/"
        initremote(client, "mycl", f"url={url}", sameas=cluster.uuid)
        client.annex("copy", "--quiet", "--to", "mycl", "photo.jpg")
    assert cluster.holders(key) == [True] * 3
    said = asked.read_text()
    assert f"host=localhost:{port}" in said
    assert "protocol=annex+http" in said
    assert "path=git-annex" in said
    assert "store" in said, "the helper is told that the login was taken"


def test_a_server_restart_between_two_files_is_harmless(cluster: Cluster) -> None:
    client = cluster.clone()
    _allow(cluster.gateway.environment)
    for number in (1, 2):
        client.add(f"f{number}", os.urandom(1000))
    port = free_port()
    with _p2phttp_at(cluster.gateway, port):
        initremote(client, "mycl", f"url=annex+http://localhost:{port}/git-annex/", sameas=cluster.uuid)
        copy = client.environment.popen(
            "git", "annex", "copy", "--to", "mycl", "--batch", cwd=client.path, stdout=subprocess.PIPE
        )
        assert copy.stdin is not None
        assert copy.stdout is not None
        copy.stdin.write(b"f1\n")
        copy.stdin.flush()
        key, nodes = client.key("f1"), {node.uuid for node in cluster.nodes}
        # It is recorded when the server has answered.
        assert wait_until(lambda: nodes <= client.locations(key), 30)
    with _p2phttp_at(cluster.gateway, port):
        copy.stdin.write(b"f2\n")
        copy.stdin.close()
        copy.stdout.read()
        assert copy.wait(60) == 0
    copy.stdout.close()
    assert cluster.holders(client.key("f2")) == [True] * 3


@contextlib.contextmanager
def _p2phttp_at(repository: Repository, port: int) -> Iterator[None]:
    server = repository.environment.popen(
        "git-annex", "p2phttp", "-J4", "--bind=127.0.0.1", f"--port={port}", "--wideopen",
        cwd=repository.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        with socket.socket() as probe:
            assert wait_until(lambda: probe.connect_ex(("127.0.0.1", port)) in (0, 106), 20)
        yield
    finally:
        end_group(server.pid)
        server.wait(20)
