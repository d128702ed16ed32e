"""The same requests to `git annex p2phttp` and to ours, where docs/differences.md says that the answers differ."""

from __future__ import annotations

import base64
import functools
import http.client
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import CLIENT, START_SECONDS, Answer, web_of
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, make_cluster
from tests.support.sockets import serve_p2phttp


@dataclass(frozen=True)
class Server:
    """One of the two, where anybody may read; `path` is where git-annex's urls begin."""

    cluster: Cluster
    port: int
    path: str

    def ask(self, method: str, rest: str, uuid: str | None = None, **headers: str) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=START_SECONDS)
        try:
            url = f"{self.path}/git-annex/{uuid or self.cluster.uuid}/{rest}"
            connection.request(method, url, None, {name.replace("_", "-"): value for name, value in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def post(self, endpoint: str, uuid: str | None = None, **headers: str) -> Answer:
        return self.ask("POST", f"v4/{endpoint}&{CLIENT}", uuid, **headers)


@dataclass(frozen=True)
class Both:
    cluster: Cluster
    native: Server
    ours: Server
    token: str


@pytest.fixture(scope="module")
def both(make_environment: Callable[[], Environment]) -> Iterator[Both]:
    environment = make_environment()
    cluster = make_cluster(environment, environment.directory)
    with serve_p2phttp(cluster.gateway, "--unauth-readonly") as port, web_of(cluster, "--public-read") as web:
        yield Both(cluster, Server(cluster, port, ""), Server(cluster, web.port, "/data"), web.tokens[Mode.READ_WRITE])


def stored(both: Both, name: str, content: bytes) -> str:
    """The key of a content on the first node, which the gateway knows to be there."""
    node = both.cluster.nodes[0]
    key = node.add(name, content)
    both.cluster.gateway.annex("setpresentkey", key, node.uuid, "1")
    return key


def test_an_unknown_protocol_version_in_a_url(both: Both) -> None:
    path = f"v9/checkpresent?key=WORM-s1--x&{CLIENT}"
    theirs = both.native.ask("POST", path)
    assert (theirs.status, theirs.body) == (400, b"bad version")
    assert both.ours.ask("POST", path).status == 404


def test_a_plain_get_of_missing_content(both: Both) -> None:
    path = "key/SHA256-s3--00"
    theirs = both.native.ask("GET", path)
    assert (theirs.status, theirs.body) == (200, b"")
    assert both.ours.ask("GET", path).status == 404


def test_ranges_and_conditions_of_a_plain_get(both: Both) -> None:
    content = bytes(range(100))
    path = f"key/{stored(both, 'parts', content)}"
    for server, status, body in ((both.native, 200, content), (both.ours, 206, content[10:20])):
        answer = server.ask("GET", path, Range="bytes=10-19")
        assert (answer.status, answer.body) == (status, body)
    assert "content-length" not in both.native.ask("GET", path).headers
    whole = both.ours.ask("GET", path)
    assert whole.headers["content-length"] == "100"
    for server, status in ((both.native, 200), (both.ours, 304)):
        assert server.ask("GET", path, If_None_Match=whole.headers["etag"]).status == status


def test_a_keeplocked_without_a_lock(both: Both) -> None:
    key, node = stored(both, "locked", b"locked"), both.cluster.nodes[0].uuid
    theirs = both.native.post(f"lockcontent?key={key}", node)
    assert theirs.json["locked"] is True
    assert both.ours.post(f"lockcontent?key={key}", node).status == 401


def test_a_connection_lost_while_keeping_a_lock(both: Both) -> None:
    node = both.cluster.nodes[0]
    login = "Basic " + base64.b64encode(f"any:{both.token}".encode()).decode()

    def is_removed(server: Server, key: str) -> bool:
        return server.post(f"remove?key={key}", node.uuid, Authorization=login).json["removed"] is True

    with serve_p2phttp(both.cluster.gateway) as port:
        for server in (Server(both.cluster, port, ""), both.ours):
            key = stored(both, f"kept by {server.port}", b"%d" % server.port)
            lock = server.post(f"lockcontent?key={key}", node.uuid, Authorization=login).json["lockid"]
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(
                    f"POST {server.path}/git-annex/{node.uuid}/v4/keeplocked?lockid={lock}&{CLIENT} HTTP/1.1\r\n"
                    f"Host: localhost\r\nAuthorization: {login}\r\nTransfer-Encoding: chunked\r\n\r\n"
                    '11\r\n{"unlock": false}\n\r\n'.encode()
                )
                time.sleep(1)
                assert not is_removed(server, key)
            if server is both.ours:
                time.sleep(2)
                assert not is_removed(server, key)
            else:
                assert wait_until(functools.partial(is_removed, server, key), 20)


def test_git_at_the_same_address(both: Both) -> None:
    for server, status in ((both.native, 404), (both.ours, 200)):
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=START_SECONDS)
        connection.request("GET", f"{server.path}/info/refs?service=git-upload-pack")
        assert connection.getresponse().status == status
        connection.close()
