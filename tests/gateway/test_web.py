"""`cluster-remote serve --listen http://…`: git-annex's own client, git, curl and a browser's requests."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.cli.command import cluster_remote
from tests.gateway.gateways import serve
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.processes import descendants, end_group, wait_until
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.sockets import free_port

START_SECONDS = 30.0
CLIENT = "clientuuid=c11e0000-0000-4000-8000-000000000002"


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.body)
        return found


@dataclass
class Web:
    """A gateway over HTTP, at /data."""

    cluster: Cluster
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    tokens: dict[Mode, str]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/data"

    def ask(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        token: str | None = None,
        headers: dict[str, str] | None = None,
        source: str = "127.0.0.1",
    ) -> Answer:
        """Send one request over a connection of its own, from an address of loopback; `path` is below /data."""
        headers = dict(headers or {})
        if token is not None:
            headers["Authorization"] = "Basic " + base64.b64encode(f"any:{token}".encode()).decode()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, START_SECONDS, (source, 0))
        try:
            connection.request(method, f"/data{path}", body, headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def api(self, endpoint: str, *, uuid: str | None = None, version: int = 4, **options: object) -> Answer:
        """A request of the P2P protocol; `endpoint` with its parameters but the client's UUID."""
        joined = "&" if "?" in endpoint else "?"
        path = f"/git-annex/{uuid or self.cluster.uuid}/v{version}/{endpoint}{joined}{CLIENT}"
        return self.ask("GET" if endpoint.startswith("key/") else "POST", path, **options)  # type: ignore[arg-type]


@contextlib.contextmanager
def web_of(cluster: Cluster, *options: str, forked: bool = True) -> Iterator[Web]:
    """Run `cluster-remote serve` with these options besides; at the end it is killed if it has not ended yet."""
    environment = cluster.gateway.environment
    log, port = environment.directory / "web.log", free_port()
    tokens = Tokens(cluster.gateway.path / ".git" / "cluster-remote" / "tokens")
    made = {mode: tokens.create(mode, f"test {mode.value}")[1] for mode in Mode}
    with log.open("wb") as err:
        listen = ("--listen", f"http://127.0.0.1:{port}/data")
        process = serve(cluster.gateway, *listen, *options, stderr=err.fileno(), forked=forked)
    try:
        web = Web(cluster, port, log, process, made)

        def answers() -> bool:
            with contextlib.suppress(OSError):
                return web.ask("GET", "/config").status in (200, 401)
            return False

        wait_until(lambda: process.poll() is not None or answers(), START_SECONDS)
        assert process.poll() is None, log.read_text()
        yield web
        assert "Traceback" not in log.read_text()
    finally:
        end_group(process.pid)
        process.wait(START_SECONDS)


@pytest.fixture(scope="module")
def web(shared: Cluster) -> Iterator[Web]:
    """A gateway for all tests of the module, each of which uses contents and clones of its own."""
    with web_of(shared) as made:
        yield made


@pytest.fixture(scope="module")
def public(make_environment: Callable[[], Environment]) -> Iterator[Web]:
    """The same for a gateway where anybody may read."""
    environment = make_environment()
    with web_of(make_cluster(environment, environment.directory), "--public-read") as made:
        yield made


def cloned(web: Web, mode: Mode | None = Mode.READ_WRITE, name: str = "alice") -> Repository:
    """A clone over HTTP, whose git has the token of that mode."""
    environment = web.cluster.gateway.environment
    environment.run("git", "config", "--global", "annex.security.allowed-ip-addresses", "all")
    if mode is not None:
        helper = f"!f() {{ test $1 = get && echo username=x && echo password={web.tokens[mode]}; }}; f"
        environment.run("git", "config", "--global", "credential.helper", helper)
    path = environment.directory / name
    environment.run("git", "clone", "--quiet", web.url, path)
    repository = Repository(path, environment)
    repository.annex("init", "--quiet", name)
    return repository


@pytest.mark.slow
def test_plain_git_annex_finds_and_uses_the_cluster_in_a_clone(web: Web) -> None:
    alice = cloned(web)
    content = os.urandom(300_000)
    key = alice.add("photo.jpg", content)
    alice.git("commit", "--quiet", "--message", "photo")
    alice.annex("copy", "--quiet", "--to", "origin-mycluster", "photo.jpg")
    assert web.cluster.holders(key) == [True] * 3
    assert {node.uuid for node in web.cluster.nodes} <= alice.locations(key)
    # Relies on the lock of a node.
    alice.annex("drop", "--quiet", "photo.jpg")
    assert not alice.has_object(key)
    alice.annex("get", "--quiet", "--from", "origin-mycluster", "photo.jpg")
    assert alice.object_bytes(key) == content
    alice.annex("fsck", "--quiet", "--from", "origin-mycluster", "photo.jpg")
    alice.annex("drop", "--quiet", "--from", "origin-mycluster", "photo.jpg")
    assert web.cluster.holders(key) == [False] * 3
    alice.annex("move", "--quiet", "--to", "origin-mycluster", "photo.jpg")
    assert web.cluster.holders(key) == [True] * 3
    assert not alice.has_object(key)
    alice.annex("sync", "--no-content")
    assert b"photo" in web.cluster.gateway.git("log", "--all", "--format=%s").stdout


def test_an_interrupted_download_resumes(web: Web) -> None:
    alice = cloned(web, name="resuming")
    content = os.urandom(200_000)
    key = alice.add("photo.jpg", content)
    alice.annex("copy", "--quiet", "--to", "origin-mycluster", "photo.jpg")
    alice.annex("drop", "--quiet", "photo.jpg")
    alice.leave_partial(key, content[:150_000])
    alice.annex("get", "--quiet", "photo.jpg")
    assert alice.object_bytes(key) == content


def test_small_uploads_one_after_the_other_use_the_same_processes_at_the_nodes(web: Web) -> None:
    token, used = web.tokens[Mode.READ_WRITE], []
    for content in (b"one", b"two"):
        key = f"SHA256-s3--{hashlib.sha256(content).hexdigest()}"
        assert web.api(f"putoffset?key={key}", token=token).json == {"offset": 0}
        put = web.api(f"put?key={key}", body=content, headers={"X-git-annex-data-length": "3"}, token=token)
        assert put.json["stored"] is True
        assert web.cluster.holders(key) == [True] * 3
        used.append({each.pid for each in descendants(web.process.pid) if "p2pstdio" in each.command})
    assert len(used[0]) >= 3
    assert used[0] == used[1]


def test_an_upload_with_a_node_unavailable_is_stored_on_the_others(web: Web) -> None:
    alice = cloned(web, name="without one node")
    uuids = [node.uuid for node in web.cluster.nodes]
    with web.cluster.nodes[1].unplugged():
        key = alice.add("photo.jpg", b"photo")
        alice.annex("copy", "--quiet", "--to", "origin-mycluster", "photo.jpg")
    assert [uuid in alice.locations(key) for uuid in uuids] == [True, False, True]


def test_an_upload_starts_even_if_the_only_known_holder_is_away(web: Web) -> None:
    token, (first, *_) = web.tokens[Mode.READ_WRITE], web.cluster.nodes
    key = f"SHA256-s4--{hashlib.sha256(b'four').hexdigest()}"
    web.cluster.gateway.annex("setpresentkey", key, first.uuid, "1")
    with first.unplugged():
        assert web.api(f"checkpresent?key={key}", token=token).status == 500
        assert web.api(f"putoffset?key={key}", token=token).json == {"offset": 0}
        put = web.api(f"put?key={key}", body=b"four", headers={"X-git-annex-data-length": "4"}, token=token)
        assert put.json["stored"] is True
    # The second node may still count as unavailable from the test before.
    assert web.cluster.holders(key)[::2] == [False, True]


def test_without_a_token_there_is_no_access(web: Web) -> None:
    key = web.cluster.nodes[0].add("x", b"x")
    for path in ("/", "/config", "/info/refs?service=git-upload-pack"):
        answer = web.ask("GET", path)
        assert answer.status == 401
        assert answer.headers["www-authenticate"].startswith("Basic ")
    endpoints = (f"checkpresent?key={key}", f"key/{key}", f"putoffset?key={key}", f"remove?key={key}")
    for endpoint in endpoints:
        assert web.api(endpoint).status == 401

    def guess(number: int) -> int:
        return web.api(endpoints[number], token="wrong", source=f"127.0.0.{2 + number}").status

    # Each guess delays the answer to the next one from its address.
    with ThreadPoolExecutor() as pool:
        assert set(pool.map(guess, range(len(endpoints)))) == {401}
    assert web.ask("GET", f"/git-annex/{web.cluster.uuid}/key/{key}").status == 401


def test_a_repository_that_is_not_served_is_not_found(web: Web) -> None:
    stranger = "11111111-1111-4111-8111-111111111111"
    assert web.api("checkpresent?key=WORM-s1--x", uuid=stranger).status == 404
    assert web.api("checkpresent?key=WORM-s1--x", uuid=stranger, token=web.tokens[Mode.READ_WRITE]).status == 404


@pytest.mark.parametrize(
    ("mode", "putoffset", "remove", "push"),
    [(Mode.READ_ONLY, 403, 403, 403), (Mode.APPEND_ONLY, 200, 403, 403), (Mode.READ_WRITE, 200, 200, 200)],
)
def test_a_token_allows_only_what_its_mode_says(web: Web, mode: Mode, putoffset: int, remove: int, push: int) -> None:
    token = web.tokens[mode]
    key = "SHA256-s3--" + "0" * 64
    assert web.api(f"checkpresent?key={key}", token=token).json == {"present": False}
    assert web.api(f"putoffset?key={key}", token=token).status == putoffset
    assert web.api(f"remove?key={key}", token=token).status == remove
    assert web.ask("GET", "/info/refs?service=git-upload-pack", token=token).status == 200
    assert web.ask("GET", "/info/refs?service=git-receive-pack", token=token).status == push


def test_with_public_read_anybody_reads_and_nobody_writes_or_locks(public: Web) -> None:
    key = public.cluster.nodes[0].add("x", b"x")
    public.cluster.gateway.annex("setpresentkey", key, public.cluster.nodes[0].uuid, "1")
    public.cluster.gateway.annex("merge", "--quiet")
    assert public.api(f"checkpresent?key={key}").json == {"present": True}
    assert public.api(f"key/{key}").body == b"x"
    assert public.ask("GET", "/").status == 200
    assert public.ask("GET", "/info/refs?service=git-upload-pack").status == 200
    for endpoint in (f"putoffset?key={key}", f"put?key={key}", f"remove?key={key}", f"lockcontent?key={key}"):
        assert public.api(endpoint, headers={"X-git-annex-data-length": "1"}).status == 401
    assert public.ask("GET", "/info/refs?service=git-receive-pack").status == 401
    bob = cloned(public, None, "bob")
    bob.annex("get", "--quiet", "--from", "origin-mycluster", "--key", key)
    assert bob.object_bytes(key) == b"x"


@pytest.mark.parametrize(
    "path", ["v5/checkpresent?key=WORM-s1--x", "v4/nosuch", "v2/gettimestamp", "v0/putoffset?key=WORM-s1--x"]
)
def test_unknown_versions_and_endpoints_are_not_found(public: Web, path: str) -> None:
    assert public.ask("POST", f"/git-annex/{public.cluster.uuid}/{path}").status == 404


@pytest.mark.parametrize(
    "endpoint",
    ["checkpresent", "checkpresent?key=nokey", "key/nokey", "key/WORM-s1--x?offset=-1", "key/WORM-s1--x?offset=x"],
)
def test_a_malformed_request_is_a_bad_request(public: Web, endpoint: str) -> None:
    assert public.api(endpoint).status == 400


@pytest.mark.parametrize(
    "path", ["/config", "/", "/info/refs?service=git-upload-pack", "/git-annex/{uuid}/key/WORM-s1--x"]
)
def test_a_non_basic_login_is_a_bad_request_for_any_url(public: Web, path: str) -> None:
    answer = public.ask("GET", path.format(uuid=public.cluster.uuid), headers={"Authorization": "Bearer x"})
    assert (answer.status, b"only Basic" in answer.body) == (400, True)


@pytest.mark.parametrize(
    ("host", "proto", "url"),
    [
        ("data.example", "http", "annex+http://data.example:80/data/git-annex/"),
        ("data.example", "https", "annex+https://data.example:443/data/git-annex/"),
        ("data.example:8443", "https", "annex+https://data.example:8443/data/git-annex/"),
        ("[::1]", "https", "annex+https://[::1]:443/data/git-annex/"),
    ],
)
def test_git_annex_is_told_the_port_which_is_another_one_without(public: Web, host: str, proto: str, url: str) -> None:
    config = public.ask("GET", "/config", headers={"Host": host, "X-Forwarded-Proto": proto}).body.decode()
    assert f"\turl = {url}\n" in config


def test_small_answers_are_sent_as_a_whole_over_one_connection(public: Web) -> None:
    key = public.cluster.nodes[0].add("whole", b"content")
    public.cluster.gateway.annex("setpresentkey", key, public.cluster.nodes[0].uuid, "1")
    start = f"/data/git-annex/{public.cluster.uuid}/v4"
    with socket.create_connection(("127.0.0.1", public.port), START_SECONDS) as client:
        for request, end in (
            (f"POST {start}/checkpresent?key={key}&{CLIENT}", b'{"present":true}'),
            (f"POST {start}/checkpresent?key=WORM-s1--no&{CLIENT}", b'{"present":false}'),
            (f"GET {start}/nosuch", b"\r\n\r\n"),
        ):
            client.sendall(f"{request} HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n".encode())
            answer = client.recv(65536)
            assert (answer[:9], answer[-len(end) :]) == (b"HTTP/1.1 ", end)


@pytest.mark.parametrize("broken", [False, True], ids=["whole", "malformed"])
def test_a_body_in_many_parts_is_stored_unless_one_is_malformed(web: Web, broken: bool) -> None:
    content = bytes(range(256)) * 40
    key = f"WORM-s{len(content)}--parts{broken}"
    parts = [b"%x\r\n%s\r\n" % (20, content[at : at + 20]) for at in range(0, len(content), 20)]
    if broken:
        parts[300] = b"zz\r\n" + parts[300]
    login = base64.b64encode(f"x:{web.tokens[Mode.READ_WRITE]}".encode()).decode()
    head = (
        f"POST /data/git-annex/{web.cluster.uuid}/v4/put?key={key}&{CLIENT} HTTP/1.1\r\nHost: x\r\n"
        f"Authorization: Basic {login}\r\nX-git-annex-data-length: {len(content)}\r\n"
        "Transfer-Encoding: chunked\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", web.port), START_SECONDS) as client:
        client.sendall(head.encode() + b"".join(parts) + b"0\r\n\r\n")
        assert (b'"stored":true' in client.recv(65536)) == (not broken)
    assert [node.has_object(key) for node in web.cluster.nodes] == [not broken] * len(web.cluster.nodes)


@pytest.mark.parametrize("path", ["/config", "/"])
@pytest.mark.parametrize("headers", [{"Host": "a b"}, {"X-Forwarded-Proto": "javascript"}], ids=["host", "scheme"])
def test_an_unprintable_url_is_a_bad_request(public: Web, path: str, headers: dict[str, str]) -> None:
    answer = public.ask("GET", path, headers=headers)
    assert (answer.status, b"X-Forwarded-Proto headers" in answer.body) == (400, True)


@pytest.mark.parametrize("path", ["/config", "/"])
def test_the_host_that_one_client_asks_for_is_shown_to_no_other(public: Web, path: str) -> None:
    answer = public.ask("GET", path, headers={"Host": "other.example", "X-Forwarded-Host": "evil.example"})
    assert b"http://other.example" in answer.body
    assert b"evil" not in answer.body
    assert answer.headers["cache-control"] == "no-store"


def test_missing_content_is_an_empty_answer_for_git_annex_and_not_found_for_browsers(public: Web) -> None:
    answer = public.api("key/SHA256-s3--00")
    assert (answer.status, answer.headers["x-git-annex-data-length"], answer.body) == (200, "0", b"")
    assert public.ask("GET", f"/git-annex/{public.cluster.uuid}/key/SHA256-s3--00").status == 404


def test_a_put_is_stored_only_at_its_announced_length(web: Web) -> None:
    token, length = web.tokens[Mode.READ_WRITE], "X-git-annex-data-length"
    content = b"0123456789"
    key = web.cluster.gateway.add("digits", content)
    assert web.api(f"put?key={key}", body=content, token=token).status == 400
    for wrong in (content[:-1], content + b"x"):
        answer = web.api(f"put?key={key}", body=wrong, token=token, headers={length: "10"})
        assert answer.json == {"stored": False, "plusuuids": []}
    assert web.cluster.holders(key) == [False] * 3
    answer = web.api(f"put?key={key}", body=content, token=token, headers={length: "10"})
    assert answer.json == {"stored": True, "plusuuids": sorted(node.uuid for node in web.cluster.nodes)}
    assert web.cluster.holders(key) == [True] * 3
    assert web.api(f"putoffset?key={key}", token=token).json["alreadyhave"] is True


def test_a_browser_gets_ranges_and_not_modified_answers(public: Web) -> None:
    content = bytes(range(100))
    node = public.cluster.nodes[0]
    key = node.add("x", content)
    public.cluster.gateway.annex("setpresentkey", key, node.uuid, "1")
    path = f"/git-annex/{public.cluster.uuid}/key/{quote(key, safe='')}"
    whole = public.ask("GET", path)
    assert (whole.status, whole.body, whole.headers["content-length"]) == (200, content, "100")
    head = public.ask("HEAD", path)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", "100")
    for wanted, first, end in (
        ("10-19", 10, 20),
        ("90-", 90, 100),
        ("-5", 95, 100),
        ("95-500", 95, 100),
        ("-999", 0, 100),
    ):
        answer = public.ask("GET", path, headers={"Range": f"bytes={wanted}"})
        assert (answer.status, answer.body) == (206, content[first:end])
    for beyond in ("100-", "-0", "5-2", f"{'9' * 19}-"):
        assert public.ask("GET", path, headers={"Range": f"bytes={beyond}"}).status == 416
    # Several parts at once are not worth the trouble; a part of what the client has another version of is no use.
    for headers in (
        {"Range": "bytes=0-1,5-6"},
        {"Range": "bytes=10-19", "If-Range": '"other"'},
        {"Range": "x=1-2"},
        {"Range": "bytes=-"},
        {"Range": f"bytes={'9' * 5000}-"},
    ):
        answer = public.ask("GET", path, headers=headers)
        assert (answer.status, answer.body) == (200, content)
    answer = public.ask("GET", path, headers={"Range": "bytes=10-19", "If-Range": whole.headers["etag"]})
    assert (answer.status, answer.headers["content-range"]) == (206, "bytes 10-19/100")
    head = public.ask("HEAD", path, headers={"Range": "bytes=10-19"})
    assert (head.status, head.headers["content-length"]) == (200, "100")
    for etag in (whole.headers["etag"], f"W/{whole.headers['etag']}", f'"other", {whole.headers["etag"]}'):
        assert public.ask("GET", path, headers={"If-None-Match": etag}).status == 304


def test_a_lock_holds_until_the_client_releases_it(web: Web) -> None:
    token = web.tokens[Mode.READ_WRITE]
    node = web.cluster.nodes[0]
    key = node.add("x", b"x")
    lock = web.api(f"lockcontent?key={key}", uuid=node.uuid, token=token).json
    assert lock["locked"] is True
    assert web.api(f"remove?key={key}", uuid=node.uuid, token=token).json["removed"] is False
    assert node.has_object(key)
    kept = web.api(
        f"keeplocked?lockid={lock['lockid']}", uuid=node.uuid, token=token, body=b'{"unlock":false}\n{"unlock":true}\n'
    )
    assert kept.json == {"locked": False}

    def removed() -> bool:
        return web.api(f"remove?key={key}", uuid=node.uuid, token=token).json["removed"] is True

    assert wait_until(removed)
    assert not node.has_object(key)


def test_the_page_says_how_to_get_the_dataset_and_escapes_foreign_markup(cluster: Cluster) -> None:
    cluster.gateway.annex("describe", "node1", "<script>alert(1)</script>")
    with web_of(cluster, "--public-read") as web:
        page = web.ask("GET", "/")
        assert f"git clone {web.url} data".encode() in page.body
        assert b"<script>" not in page.body
        assert b"&lt;script&gt;" in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]


def test_no_redirect_leads_from_https_to_http(public: Web) -> None:
    """The gateway does not know what a reverse proxy in front of it is asked for."""
    connection = http.client.HTTPConnection("127.0.0.1", public.port, timeout=START_SECONDS)
    with contextlib.closing(connection):
        connection.request("GET", "/data")
        response = connection.getresponse()
        assert (response.status, b"git clone" in response.read()) == (200, True)
    assert public.ask("GET", "/config/").status == 404
    assert public.ask("GET", "/git-annex").status == 404


def test_a_signal_ends_the_gateway_cleanly_without_waiting_for_silent_clients(cluster: Cluster) -> None:
    with web_of(cluster, "--public-read") as gateway:
        with socket.create_connection(("127.0.0.1", gateway.port)) as silent:
            # Answered after the silent one was accepted.
            assert gateway.ask("GET", "/config").status == 200
            gateway.process.send_signal(signal.SIGTERM)
            silent.settimeout(5)
            assert silent.recv(1) == b""
        assert gateway.process.wait(START_SECONDS) == 0


def test_https_needs_a_usable_certificate(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    listen = ("serve", "--listen", f"https://127.0.0.1:{free_port()}/")
    assert "--certificate" in cluster_remote(cluster.gateway, *listen, code=2).err
    (environment.directory / "no.pem").write_text("no certificate")
    files = ("--certificate", environment.directory / "no.pem", "--key", environment.directory / "no.pem")
    done = cluster_remote(cluster.gateway, *listen, *files, code=None)
    assert done.code != 0
    assert "cannot be used as certificate and key" in done.err


def test_https_works_as_http_does(cluster: Cluster) -> None:
    environment = cluster.gateway.environment
    certificate, key = make_certificate(environment)
    port = free_port()
    options = ("--public-read", "--certificate", certificate, "--key", key)
    process = serve(cluster.gateway, "--listen", f"https://127.0.0.1:{port}/", *options)
    try:
        trusting = ssl.create_default_context(cafile=str(certificate))

        def page() -> bytes:
            connection = http.client.HTTPSConnection("127.0.0.1", port, timeout=START_SECONDS, context=trusting)
            with contextlib.closing(connection), contextlib.suppress(OSError):
                connection.request("GET", "/")
                return connection.getresponse().read()
            return b""

        assert wait_until(lambda: b"git clone https://127.0.0.1" in page(), START_SECONDS)
    finally:
        end_group(process.pid)
        process.wait(START_SECONDS)
