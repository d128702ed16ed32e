"""Requests that are no proper HTTP, or that lead where they should not: h11 refuses most, and nothing else suffers."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import anyio
import pytest

from cluster_remote.gateway.gateway import Limits
from cluster_remote.p2p.server import Mode
from tests.security.test_clients import Endpoint, gateway, off
from tests.security.test_web_clients import Raw, all_said, api, connected, told
from tests.support.repositories import Cluster

pytestmark = pytest.mark.anyio


async def said(endpoint: Endpoint, request: bytes) -> str:
    """All that is answered to these bytes, until the gateway closes or is silent for two seconds."""
    client = connected(endpoint)
    client.socket.settimeout(2)
    with client.socket:
        try:
            client.socket.sendall(request)
        except ConnectionError:
            pass
        return await off(all_said, client)


def heard(client: Raw, words: bytes) -> bytes:
    """Read until these words have come, or nothing any more."""
    came = b""
    while words not in came and (more := client.socket.recv(1000)):
        came += more
    return came


def with_token(token: str, *headers: bytes, path: str, body: bytes = b"") -> bytes:
    login = base64.b64encode(f"any:{token}".encode())
    head = [f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Authorization: Basic " + login]
    head += [b"X-git-annex-data-length: 5", *headers]
    return b"\r\n".join([*head, b"", body])


# A second request that hides behind the first one's body, in the eyes of who reads the length in another way.
HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: x\r\n\r\n"
SMUGGLED = {
    "two lengths": ([b"Content-Length: 5", b"Content-Length: 0"], b"hello"),
    "two lengths in one": ([b"Content-Length: 5, 0"], b"hello"),
    "a length below zero": ([b"Content-Length: -5"], b"hello"),
    "a length with a sign": ([b"Content-Length: +5"], b"hello"),
    "a length in hexadecimal": ([b"Content-Length: 0x5"], b"hello"),
    "another coding": ([b"Transfer-Encoding: gzip, chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "chunked twice": ([b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "a coding with a tab": ([b"Transfer-Encoding: \x0bchunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "a blank before the colon": ([b"Transfer-Encoding : chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "a chunk of no size": ([b"Transfer-Encoding: chunked"], b"x\r\nhello\r\n0\r\n\r\n"),
    "a chunk with a sign": ([b"Transfer-Encoding: chunked"], b"-5\r\nhello\r\n0\r\n\r\n"),
    "a chunk that does not end": ([b"Transfer-Encoding: chunked"], b"5\r\nhelloXX0\r\n\r\n"),
    "a huge chunk": ([b"Transfer-Encoding: chunked"], b"FFFFFFFFFFFFFFFFFFFFF\r\nhello"),
    "a folded length": ([b"Content-Length: 5\r\n 0"], b"hello"),
    "a line feed alone": ([b"X: a\nTransfer-Encoding: chunked", b"Content-Length: 5"], b"5\r\nhello\r\n0\r\n\r\n"),
    "a huge chunk extension": ([b"Transfer-Encoding: chunked"], b"5;" + b"x" * 1_000_000),
    "a line end alone": ([b"X: a\rContent-Length: 5"], b"hello"),
    "a NUL": ([b"X: \x00"], b"hello"),
    "no coding": ([b"Transfer-Encoding: identity", b"Content-Length: 5"], b"hello"),
    "another coding after chunks": ([b"Transfer-Encoding: chunked, identity"], b"5\r\nhello\r\n0\r\n\r\n"),
    "a quoted coding": ([b'Transfer-Encoding: "chunked"'], b"5\r\nhello\r\n0\r\n\r\n"),
    "a folded coding": ([b"Transfer-Encoding:\r\n gzip"], b"5\r\nhello\r\n0\r\n\r\n"),
    "chunks with line feeds alone": ([b"Transfer-Encoding: chunked"], b"5\nhello\n0\n\n"),
    "a size of 21 digits": ([b"Transfer-Encoding: chunked"], b"000000000000000000005\r\nhello\r\n0\r\n\r\n"),
    "a size in hexadecimal of Python": ([b"Transfer-Encoding: chunked"], b"0x5\r\nhello\r\n0\r\n\r\n"),
}


@pytest.mark.parametrize("name", SMUGGLED)
async def test_a_body_of_uncertain_length_is_refused_and_nothing_hides_behind_it(
    shared: Cluster, tmp_path: Path, name: str
) -> None:
    headers, body = SMUGGLED[name]
    key = f"WORM-s5--{name.replace(' ', '-')}"
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        token = endpoint.tokens.create(Mode.READ_WRITE)[1]
        path = api(shared.uuid, f"put?key={key}")
        answer = await said(endpoint, with_token(token, *headers, path=path, body=body + HIDDEN))
        assert "404" not in answer, "the hidden request was taken for one"
        assert '"stored":true' not in answer
        assert shared.holders(key) == [False] * 3
        assert not any("internal error" in line for line in endpoint.log)


async def test_a_length_beside_chunks_is_refused_and_the_connection_ends(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        token = endpoint.tokens.create(Mode.READ_WRITE)[1]
        headers = (b"Content-Length: 3", b"Transfer-Encoding: chunked")
        body = b"5\r\nhello\r\n0\r\n\r\n" + HIDDEN
        answer = await said(
            endpoint, with_token(token, *headers, path=api(shared.uuid, "put?key=WORM-s5--te"), body=body)
        )
        assert (answer.count("HTTP/1.1"), answer.split()[1]) == (1, "400")
        assert shared.holders("WORM-s5--te") == [False] * 3


@pytest.mark.parametrize(
    "request_",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 100_000 + b"\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 1_000_000,
        b"GET /" + b"y" * 1_000_000,
        b"GET /config\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /\xc3\xa4 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x00" * 1000,
        b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET http://169.254.169.254/ HTTP/1.1\r\nHost: x\r\n\r\n",
        b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    ids=[
        "many headers",
        "a long header",
        "a long url",
        "no version",
        "no host",
        "two hosts",
        "no UTF-8",
        "no ASCII",
        "NULs",
        "a proxy's",
        "another's url",
        "no path",
    ],
)
async def test_what_is_no_request_is_refused_and_the_next_client_is_served(
    shared: Cluster, tmp_path: Path, request_: bytes
) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as endpoint:
        answer = await said(endpoint, request_)
        assert answer == "" or answer.split()[1][0] == "4", answer[:200]
        assert "git clone" not in answer
        client = connected(endpoint)
        with client.socket:
            assert await told(client.ask, "GET", "/config") == 200
        assert not any("internal error" in line or "Error:" in line for line in endpoint.log)


@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/%2e%2e/%2e%2e/etc/passwd",
        "/config/../../../etc/passwd",
        "/git-upload-pack/../config",
        "/.git/config",
        "/objects/info/packs",
        "/HEAD",
        "/info/refs?service=git-upload-archive",
        "/info/refs?service=../../bin/sh",
        "/info/refs?service=git-upload-pack%00--help",
        "/git-annex/../config",
        "/git-annex/UUID/v4/../../../config",
        "//config",
        "/%00",
        "/%ff%fe",
    ],
)
async def test_a_path_leads_to_nothing_but_what_is_served(shared: Cluster, tmp_path: Path, path: str) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as endpoint:
        client = connected(endpoint)
        with client.socket:
            assert await told(client.ask, "GET", path.replace("UUID", shared.uuid)) in (400, 403, 404)
            assert b"root:" not in client.body
            assert b"[core]" not in client.body


@pytest.mark.parametrize(
    "key",
    [
        "..%2f..%2f..%2fevil",
        "%2fetc%2fpasswd",
        "a%2f..%2f..%2fb",
        "%252e%252e%252fx",
        "..",
        "%c3%28",
        "%ff%fe",
        "%5Bx%5D",
        "a%3Bb%26c%25",
        "a%00b",
        "a%0Ab",
        "a%0D%0Ab",
    ],
)
async def test_a_key_over_http_is_no_path_out_of_the_repositories(shared: Cluster, tmp_path: Path, key: str) -> None:
    top = shared.gateway.path.parent
    before = {path.name for path in top.rglob("*") if ".git" not in path.parts}
    async with gateway(shared, tmp_path, Limits()) as endpoint:
        token = endpoint.tokens.create(Mode.READ_WRITE)[1]
        client = connected(endpoint)
        with client.socket:
            for word in (f"WORM-s5--{key}", f"[{base64.urlsafe_b64encode(b'WORM-s5--../../../evil').decode()}]"):
                path = api(shared.uuid, f"put?key={word}")
                client.begin("POST", path, token, X_git_annex_data_length=5, Content_Length=5)
                client.socket.sendall(b"hello")
                assert await told(client.answer) in (200, 400)
                if client.status == 200 and json.loads(client.body)["stored"]:
                    assert await told(client.ask, "GET", api(shared.uuid, f"key/{word}"), token) == 200
                    assert client.body == b"hello"
    assert {path.name for path in top.rglob("*") if ".git" not in path.parts} == before


# Browsers


PAGES = {
    "another site": b"Origin: https://evil.example",
    "a page in a sandbox": b"Origin: null",
    "no origin": b"Sec-Fetch-Site: cross-site",
    "the gateway itself": b"Sec-Fetch-Site: same-origin",
}


@pytest.mark.parametrize("page", PAGES)
async def test_no_page_changes_anything_with_the_login_that_a_browser_remembers(
    shared: Cluster, tmp_path: Path, page: str
) -> None:
    node = shared.nodes[0]
    name = page.replace(" ", "-")
    key = node.add(name, name.encode())
    async with gateway(shared, tmp_path, Limits()) as served:
        token = served.tokens.create(Mode.READ_WRITE)[1]
        paths = [api(node.uuid, f"{each}?key={key}") for each in ("remove", "lockcontent", "checkpresent")]
        paths += [api(shared.uuid, f"put?key=WORM-s5--{name}"), "/git-receive-pack"]
        for path in paths:
            headers = (b"Content-Length: 5", b"Content-Type: text/plain", PAGES[page])
            answer = await said(served, with_token(token, *headers, path=path, body=b"hello"))
            assert answer.split()[1] == "403", (path, answer)
            assert "access-control-" not in answer.lower()
        assert node.has_object(key)
        assert shared.holders(f"WORM-s5--{name}") == [False] * 3
        # Programs send no such header.
        answer = await said(served, with_token(token, b"Content-Length: 0", path=paths[2]))
        assert '{"present":true}' in answer


async def test_no_page_is_told_that_it_may_ask(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as served:
        asked = b"Host: x\r\nOrigin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n\r\n"
        for method in (b"OPTIONS", b"GET"):
            answer = await said(served, method + b" /config HTTP/1.1\r\n" + asked)
            assert answer.split()[1] == ("403" if method == b"OPTIONS" else "200")
            assert "access-control-" not in answer.lower()


@pytest.mark.parametrize("form", ["key/{}", "v4/key/{}?" + "clientuuid=11111111-2222-4333-8444-555555555555"])
async def test_a_browser_takes_content_for_no_page_or_script(shared: Cluster, tmp_path: Path, form: str) -> None:
    node = shared.nodes[0]
    key = node.add("page.html", b"<script>alert(1)</script>")
    async with gateway(shared, tmp_path, Limits(), public_read=True) as served:
        path = f"/git-annex/{node.uuid}/{form.format(key)}"
        answer = (await said(served, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())).lower()
        assert "<script>" in answer
        assert "x-content-type-options: nosniff" in answer
        assert "content-type: application/octet-stream" in answer
        # Other sites may embed what anyone can read, and nothing that needs a login.
        assert "cross-origin-resource-policy" not in answer
        token = served.tokens.create(Mode.READ_ONLY)[1]
        login = base64.b64encode(f"any:{token}".encode()).decode()
        request = f"GET {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Basic {login}\r\n\r\n"
        assert "cross-origin-resource-policy: same-origin" in (await said(served, request.encode())).lower()


async def test_a_body_is_no_request_whatever_the_method(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as served:
        length = b"Content-Length: %d\r\n\r\n" % len(HIDDEN)
        for method, first in ((b"HEAD", "200"), (b"GET", "200"), (b"DELETE", "405")):
            asked = method + b" /config HTTP/1.1\r\nHost: x\r\n" + length + HIDDEN + PIPELINED
            statuses = re.findall(r"HTTP/1\.1 ([0-9]+)", await said(served, asked))
            assert statuses in ([first, "200"], [first]), (method, statuses)


async def test_an_answer_to_head_has_no_body(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as served:
        answer = await said(served, PIPELINED.replace(b"GET", b"HEAD") + PIPELINED)
        assert answer.count("HTTP/1.1 200") == 2
        assert answer.count("uuid = ") == 1


@pytest.mark.parametrize("coding", [b"Content-Length: 5", b"Transfer-Encoding: Chunked"])
async def test_a_client_that_waits_to_be_told_to_go_on_is_told_or_refused(
    shared: Cluster, tmp_path: Path, coding: bytes
) -> None:
    name = coding.partition(b":")[0].decode()
    key = f"WORM-s5--{name}"
    async with gateway(shared, tmp_path, Limits()) as served:
        token = served.tokens.create(Mode.READ_WRITE)[1]
        path = api(shared.uuid, f"put?key={key}")
        client = connected(served)
        client.socket.settimeout(10)
        with client.socket:
            client.socket.sendall(with_token(token, coding, b"Expect: 100-continue", path=path))
            assert (await anyio.to_thread.run_sync(heard, client, b"\r\n\r\n")).startswith(b"HTTP/1.1 100 ")
            client.socket.sendall(b"hello" if name == "Content-Length" else b"5\r\nhello\r\n0\r\n\r\n")
            assert b'"stored":true' in await anyio.to_thread.run_sync(heard, client, b"}")
        assert shared.holders(key) == [True] * 3
        answer = await said(served, with_token("wrong", coding, b"Expect: 100-continue", path=path))
        assert re.findall(r"HTTP/1\.1 ([0-9]+)", answer)[-1] == "401"


async def test_a_body_that_has_no_end_is_not_stored(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits()) as served:
        token = served.tokens.create(Mode.READ_WRITE)[1]
        path = api(shared.uuid, "put?key=WORM-s5--endless")
        body = b"5\r\nhello\r\n" + b"10000\r\n" + b"x" * 0x10000 + b"\r\n"
        answer = await said(served, with_token(token, b"Transfer-Encoding: chunked", path=path, body=body * 3))
        assert '"stored":true' not in answer
        assert shared.holders("WORM-s5--endless") == [False] * 3


PIPELINED = b"GET /config HTTP/1.1\r\nHost: x\r\n\r\n"


async def test_requests_in_a_row_are_answered_in_their_order(shared: Cluster, tmp_path: Path) -> None:
    async with gateway(shared, tmp_path, Limits(), public_read=True) as served:
        other = b"GET /nothing HTTP/1.1\r\nHost: x\r\n\r\n"
        answer = await said(served, PIPELINED + other + PIPELINED + b"no request at all\r\n\r\n" + PIPELINED)
        assert re.findall(r"HTTP/1\.1 ([0-9]+)", answer) == ["200", "404", "200", "400"]
