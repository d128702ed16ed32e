"""What a server over HTTP can do to its client: lead it elsewhere, take its login, send too much or too little."""

from __future__ import annotations

import base64
import gzip
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import anyio
import httpcore
import pytest

from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.logins import Login
from cluster_remote.p2p.errors import AuthenticationFailed, ProtocolError, SessionError, Unreachable
from cluster_remote.p2p.file import FileSource
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import Present, Session, Stored
from cluster_remote.transport.address import parse_address
from cluster_remote.transport.http import HttpSession
from cluster_remote.transport.httpclient import HttpClient
from cluster_remote.transport.opening import Caller, session_at
from cluster_remote.transport.trust import Refusal
from tests.p2p.memory import Pieces
from tests.remote.testbed import Testbed, text
from tests.support.certificates import make_certificate
from tests.support.environment import Environment
from tests.support.sockets import free_port

pytestmark = pytest.mark.anyio

CLIENT = UUID("11111111-2222-4333-8444-555555555555")
SERVER = UUID("11111111-2222-4333-8444-666666666666")
SECRET = "verysecrettoken"
KEY = Key("SHA256-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
ENDLESS = 1000
"""Chunks of 64 KiB that a body has which does not end: far more than a client may take in."""

Respond = Callable[[bytes], Iterator[bytes]]


@contextmanager
def server(
    respond: Respond, port: int | None = None, tls: ssl.SSLContext | None = None
) -> Iterator[tuple[int, list[bytes]]]:
    """Answer every request on a port; give the port, and the requests as they come, without their bodies."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", port or 0)) as listener:
        ending = threading.Event()

        def answer(accepted: socket.socket) -> None:
            accepted.settimeout(10)
            try:
                talking = accepted if tls is None else tls.wrap_socket(accepted, server_side=True)
            except OSError:
                accepted.close()
                return
            with talking as connection:
                try:
                    request = b""
                    while b"\r\n\r\n" not in request and (data := connection.recv(65536)):
                        request += data
                    # Closing a connection with unread data would take the answer from the client.
                    while request and not is_complete(request) and (data := connection.recv(65536)):
                        request += data
                    if request:
                        heard.append(request.partition(b"\r\n\r\n")[0])
                        for part in respond(request):
                            connection.sendall(part)
                except OSError:
                    return

        def accept() -> None:
            while not ending.is_set():
                connection, _ = listener.accept()
                answer(connection)

        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield listener.getsockname()[1], heard
        finally:
            ending.set()
            socket.create_connection(listener.getsockname()).close()
            thread.join(20)
            assert not thread.is_alive()


def is_complete(request: bytes) -> bool:
    """Whether the body of a request has arrived."""
    head, _, body = request.partition(b"\r\n\r\n")
    length = re.search(rb"\r\nContent-Length: ([0-9]+)", head)
    return body.endswith(b"0\r\n\r\n") if length is None else len(body) == int(length[1])


def answered(status: str, *headers: str, body: bytes = b"", length: int | None = None) -> Respond:
    """The same answer to every request."""
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers, "", ""]

    def respond(_: bytes) -> Iterator[bytes]:
        yield "\r\n".join(lines).encode() + body

    return respond


def session_with(port: int, allowed: str | None = None, timeout: float = 3.0) -> Session:
    address = parse_address(f"annex+http://127.0.0.1:{port}/git-annex/")
    caller = Caller(CLIENT, timeout)
    return session_at(
        address, caller if allowed is None else caller.restricted_to(allowed), server=SERVER, token=SECRET
    )


async def outcome(port: int) -> str:
    """What comes of a question and of a download, in words."""
    session = session_with(port)
    said = ""
    try:
        for ask in (_checked, _fetched):
            try:
                with anyio.fail_after(60):
                    said += f"{await ask(session)}; "
            except SessionError as error:
                said += f"{error}; "
    finally:
        await session.aclose()
    return said


async def _checked(session: Session) -> str:
    return f"present: {await session.check_present(KEY)}"


async def _fetched(session: Session) -> str:
    async with session.download(KEY, AssociatedFile(), 0) as download:
        content = b"".join([bytes(chunk) async for chunk in download.chunks()])
        return f"fetched {content!r}, valid: {await download.valid()}"


CHALLENGE = 'WWW-Authenticate: Basic realm="\x1b[31mgit-annex"'


@pytest.mark.parametrize("status", ["301 Moved", "302 Found", "303 See Other", "307 Temporary", "308 Permanent"])
async def test_a_redirect_is_followed_to_nobody_and_takes_no_login_along(status: str) -> None:
    with server(answered("200 OK", body=b"{}")) as (elsewhere, heard_there):

        def respond(request: bytes) -> Iterator[bytes]:
            if b"Authorization" not in request:
                yield from answered("401 Unauthorized", CHALLENGE)(request)
            else:
                yield from answered(status, f"Location: http://127.0.0.1:{elsewhere}/git-annex/")(request)

        with server(respond) as (port, heard):
            said = await outcome(port)
    assert "redirects" in said
    assert SECRET not in said
    assert heard_there == []
    login = base64.b64encode(f"git-annex:{SECRET}".encode())
    assert any(b"Authorization: Basic" in request for request in heard)
    assert login not in said.encode()


async def test_a_redirect_to_itself_ends_at_once() -> None:
    port = free_port()
    with server(answered("302 Found", f"Location: http://127.0.0.1:{port}/"), port) as (_, heard):
        assert "redirects" in await outcome(port)
    assert len(heard) <= 4


async def test_a_shared_url_into_a_private_network_is_connected_to_by_no_redirect_either() -> None:
    with server(answered("200 OK", body=b'{"present":true}')) as (port, heard):
        session = session_with(port, allowed="")
        with pytest.raises(Refusal, match=r"allowed-ip-addresses"):
            await session.check_present(KEY)
        await session.aclose()
    assert heard == []


async def test_logins_that_a_helper_makes_up_anew_each_time_are_not_tried_for_ever() -> None:
    class Helper:
        given = 0

        async def login(self, refused: Sequence[Login]) -> Login:
            self.given += 1
            return Login("me", str(self.given))

        async def accepted(self, login: Login) -> None:
            raise AssertionError(login)

        async def rejected(self, login: Login) -> None:
            """Think of another one."""

    with server(answered("401 Unauthorized", CHALLENGE)) as (port, heard):
        client = HttpClient(
            f"http://127.0.0.1:{port}",
            SERVER,
            name="the server",
            client=CLIENT,
            pool=httpcore.AsyncConnectionPool(),
            authentication=Helper(),
        )
        session = HttpSession(client)
        with anyio.fail_after(20), pytest.raises(AuthenticationFailed):
            await session.check_present(KEY)
        await session.aclose()
    assert len(heard) < 8


async def test_an_error_of_the_network_says_where_and_what_was_tried() -> None:
    session = session_with(free_port())
    with pytest.raises(Unreachable, match=r"^annex\+http://127\.0\.0\.1:\d+/git-annex/: checking .*: cannot connect"):
        await session.check_present(KEY)
    await session.aclose()


async def test_a_certificate_of_the_client_is_shown_to_a_server_that_asks_for_one(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("GIT_SSL_CAINFO", "GIT_SSL_CERT", "GIT_SSL_KEY"):
        monkeypatch.delenv(variable, raising=False)
    certificate, key = map(str, make_certificate(environment))
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificate)
    tls.load_cert_chain(certificate, key)
    tls.verify_mode = ssl.CERT_REQUIRED
    with server(answered("200 OK", body=b'{"present":true}'), tls=tls) as (port, _):
        address = parse_address(f"annex+https://localhost:{port}/git-annex/")
        trusting = {"http.sslcainfo": (certificate,)}
        for shown in ({"http.sslcert": (certificate,), "http.sslkey": (key,)}, {}):
            caller = Caller(CLIENT, 3.0, config=GitConfig({**trusting, **shown}))
            session = session_at(address, caller, server=SERVER)
            if shown:
                assert await session.check_present(KEY)
            else:
                with pytest.raises(SessionError):
                    await session.check_present(KEY)
            await session.aclose()


def _endless(head: bytes) -> Respond:
    def respond(_: bytes) -> Iterator[bytes]:
        yield head
        for _number in range(ENDLESS):
            yield b"10000\r\n" + b"x" * 0x10000 + b"\r\n"

    return respond


LENGTH = "X-git-annex-data-length"
BODIES: dict[str, Respond] = {
    "a truncated body": answered("200 OK", f"{LENGTH}: 5", body=b"hel", length=5),
    "a padded body": answered("200 OK", f"{LENGTH}: 5", body=b"hello world"),
    "less than announced": answered("200 OK", f"{LENGTH}: 5", body=b"hel"),
    "a compressed body": answered(
        "200 OK", f"{LENGTH}: 5", "Content-Encoding: gzip", body=gzip.compress(b"hello", mtime=0)
    ),
    "a bomb": answered("200 OK", f"{LENGTH}: 5", "Content-Encoding: gzip", body=gzip.compress(bytes(10_000_000))),
    "an endless body": _endless(f"HTTP/1.1 200 OK\r\n{LENGTH}: 5\r\nTransfer-Encoding: chunked\r\n\r\n".encode()),
    "an endless error": _endless(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "an endless header": lambda _: iter([b"HTTP/1.1 200 OK\r\nX: " + b"y" * 10_000_000]),
    "two lengths": answered("200 OK", f"{LENGTH}: 5", "Content-Length: 4", body=b"hello"),
    "more than the key says": answered("200 OK", f"{LENGTH}: 6", body=b"hello!"),
    "a length below zero": answered("200 OK", f"{LENGTH}: -5", body=b"hello"),
    "two announcements": answered("200 OK", f"{LENGTH}: 5", f"{LENGTH}: 4", body=b"hello"),
    "no HTTP": lambda _: iter([b"\x1b]0;PWNED\x07\x00\xff" * 1000]),
    "nothing": lambda _: iter([]),
    "an error with escape sequences": answered("500 \x1b[31m", body=b"\x1b]0;PWNED\x07\x9b31m"),
}


@pytest.mark.parametrize("name", BODIES)
async def test_an_unexpected_body_is_an_error_and_leaves_no_file(name: str) -> None:
    with server(BODIES[name]) as (port, _):
        said = await outcome(port)
    assert "valid: True" not in said
    assert "present: True" not in said
    assert said.isprintable()
    assert len(said) < 2000
    assert SECRET not in said


@pytest.mark.parametrize("name", ["an endless body", "an endless error"])
async def test_of_an_endless_body_little_is_taken(name: str) -> None:
    taken = 0

    def counted(request: bytes) -> Iterator[bytes]:
        nonlocal taken
        for part in BODIES[name](request):
            yield part
            taken += len(part)

    with server(counted) as (port, _):
        await outcome(port)
    # Two requests, and what fits into the buffers of both sides.
    assert taken < 2 * ENDLESS * 0x10000 // 4


async def test_an_answer_without_content_has_a_mebibyte_at_most() -> None:
    for name in ("an endless body", "an endless error"):
        with server(BODIES[name]) as (port, _):
            session = session_with(port, timeout=20.0)
            with pytest.raises(ProtocolError, match="more than 1048576 bytes"):
                await session.lock(KEY).__aenter__()
            await session.aclose()


@pytest.mark.parametrize("name", ["a padded body", "an endless body"])
async def test_of_a_content_no_more_is_passed_on_than_was_announced(name: str) -> None:
    got = 0
    with server(BODIES[name]) as (port, _):
        session = session_with(port)

        async def fetch() -> None:
            nonlocal got
            async with session.download(KEY, AssociatedFile(), 0) as download:
                async for chunk in download.chunks():
                    got += len(chunk)

        with pytest.raises(ProtocolError):
            await fetch()
        await session.aclose()
    assert got <= 5


# So that no request is sent on a connection that is being closed.
CLOSE = "Connection: close"


class Failing:
    """A server that fails the first uploads and takes the next.

    Attributes:
        asked: the requests, with the offset if there is one.
    """

    def __init__(self, failure: bytes, times: int, *, had: int = 0, stored: frozenset[UUID] | None = None) -> None:
        """Fail so many `times`; keep `had` bytes of an upload that failed, or all of it, `stored` on these nodes."""
        self.failure = failure
        self.times = times
        self.had = had
        self.stored = stored
        self.asked: list[str] = []

    def __call__(self, request: bytes) -> Iterator[bytes]:
        endpoint = request.split(b"/v4/")[1].partition(b"?")[0].decode()
        offset = re.search(rb"[?&]offset=([0-9]+)", request)
        self.asked.append(f"{endpoint} {int(offset[1])}" if offset else endpoint)
        failed = len([each for each in self.asked if each.startswith("put ") or each == "put"])
        if endpoint == "putoffset":
            said: dict[str, object] = {"offset": self.had * failed}
            if self.stored is not None and failed:
                said = {"alreadyhave": True, "plusuuids": [str(uuid) for uuid in self.stored]}
            yield from answered("200 OK", CLOSE, body=json.dumps(said).encode())(request)
        elif failed <= self.times:
            yield self.failure
        else:
            yield from answered("200 OK", CLOSE, body=b'{"stored":true,"plusuuids":[]}')(request)


NOTHING = b"HTTP/1.1 %b\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
FAILURES = {f"a {status}": NOTHING % f"{status} No".encode() for status in (500, 502, 503, 504)}
FAILURES["a connection that breaks"] = b""
FAILURES["half an answer"] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uploads are repeated without a pause."""
    monkeypatch.setattr("cluster_remote.transport.http.PAUSE", 0)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", FAILURES)
async def test_an_upload_that_the_server_fails_is_offered_once_more(name: str, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    source = FileSource(bytes(tmp_path / "hello"))
    for failing, again in (
        (Failing(FAILURES[name], 1), ["putoffset", "put"]),
        # It goes on where the server says.
        (Failing(FAILURES[name], 1, had=2), ["putoffset", "put 2"]),
    ):
        with server(failing) as (port, _):
            session = session_with(port)
            assert await session.store(KEY, AssociatedFile(), source) == Stored(True)
            await session.aclose()
        assert failing.asked == ["putoffset", "put", *again]


async def test_each_request_of_a_small_upload_is_one_write(tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    received: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            connection, _ = listener.accept()
            with connection:
                for said in ({"offset": 0}, {"stored": True, "plusuuids": []}):
                    received.append(connection.recv(65536))
                    for part in answered("200 OK", body=json.dumps(said).encode())(received[-1]):
                        connection.sendall(part)

        thread = threading.Thread(target=serve)
        thread.start()
        session = session_with(listener.getsockname()[1])
        assert await session.store(KEY, AssociatedFile(), FileSource(bytes(tmp_path / "hello"))) == Stored(True)
        await session.aclose()
        thread.join(20)
    assert [is_complete(request) for request in received] == [True, True]
    assert received[1].endswith(b"\r\n\r\nhello")


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("nodes", [frozenset(), frozenset({CLIENT, SERVER})])
async def test_an_upload_that_arrived_although_the_server_failed_has_stored_it(
    nodes: frozenset[UUID], tmp_path: Path
) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    failing = Failing(b"", 1, stored=nodes)
    with server(failing) as (port, _):
        session = session_with(port)
        source = FileSource(bytes(tmp_path / "hello"))
        # Not Present: if git-annex undoes the upload, the content must go again.
        assert await session.store(KEY, AssociatedFile(), source) == Stored(True, nodes)
        assert await session.store(KEY, AssociatedFile(), source) == Present(nodes)
        await session.aclose()
    assert failing.asked == ["putoffset", "put", "putoffset", "putoffset"]


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", FAILURES)
async def test_an_upload_is_repeated_once_and_only_if_its_content_can_be_read_again(name: str, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    for source, asked in (
        (FileSource(bytes(tmp_path / "hello")), ["putoffset", "put"] * 2),
        (Pieces(b"hello"), ["putoffset", "put"]),
    ):
        failing = Failing(FAILURES[name], 9)
        with server(failing) as (port, _):
            session = session_with(port)
            with pytest.raises(SessionError):
                await session.store(KEY, AssociatedFile(), source)
            await session.aclose()
        assert failing.asked == asked


@pytest.mark.parametrize("status", ["400 Bad", "403 Forbidden", "404 Not Found", "409 Conflict", "501 No"])
async def test_an_upload_that_the_server_does_not_want_is_not_repeated(status: str, tmp_path: Path) -> None:
    (tmp_path / "hello").write_bytes(b"hello")
    failing = Failing(NOTHING % status.encode(), 1)
    with server(failing) as (port, _):
        session = session_with(port)
        with pytest.raises(SessionError):
            await session.store(KEY, AssociatedFile(), FileSource(bytes(tmp_path / "hello")))
        await session.aclose()
    assert failing.asked == ["putoffset", "put"]


def _dripping(head: bytes, drop: bytes, pause: float = 0.1) -> Respond:
    def respond(_: bytes) -> Iterator[bytes]:
        yield head
        while True:
            time.sleep(pause)
            yield drop

    return respond


DRIPS: dict[str, Respond] = {
    "a head": _dripping(b"HTTP/1.1 200 OK\r\n", b"X: y\r\n"),
    "answers that come before the answer": _dripping(b"", b"HTTP/1.1 102 Processing\r\n\r\n", 0),
    "an answer": _dripping(b'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{"\r\n', b"1\r\n \r\n"),
    "an error": _dripping(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
}


@pytest.mark.parametrize("name", DRIPS)
async def test_an_answer_that_drips_is_given_up_in_time(name: str) -> None:
    with server(DRIPS[name]) as (port, _):
        session = session_with(port, timeout=1.0)
        began = time.monotonic()
        with pytest.raises(SessionError):
            await session.lock(KEY).__aenter__()
        await session.aclose()
        assert time.monotonic() - began < 8


ANSWERS = [
    b'{"present":' + b"[" * 200_000,
    b'{"present":' + b'{"a":' * 100_000,
    b'{"present":true,"present":"\x1b[31m"}',
    b'{"present":1}',
    b'{"present":NaN}',
    b"null",
    b'"' + b"\\ud800" * 1000 + b'"',
    b'{"timestamp":' + b"9" * 400 + b"}",
    b'{"timestamp":' + b"9" * 5000 + b"}",
    b'{"timestamp":-1e999}',
    b'{"removed":true,"plusuuids":[["' + b"x" * 1000 + b'"]]}',
    b'{"removed":true,"plusuuids":{"11111111-2222-4333-8444-555555555555\\n":1}}',
    b'{"locked":true,"lockid":"\\r\\nX: y"}',
]


@pytest.mark.parametrize("answer", ANSWERS, ids=range(len(ANSWERS)))
async def test_an_odd_answer_is_an_error_of_the_session_or_none(answer: bytes) -> None:
    with server(answered("200 OK", body=answer)) as (port, heard):
        session = session_with(port, timeout=1.0)

        async def lock() -> None:
            async with session.lock(KEY):
                pass

        for ask in (partial(session.check_present, KEY), partial(session.remove, KEY), session.timestamp, lock):
            said = ""
            try:
                await ask()
            except SessionError as error:
                said = str(error)
            assert said.isprintable()
            assert len(said) < 2000
        await session.aclose()
        assert not any(b"\nX: y" in request for request in heard)


async def test_a_number_of_more_than_64_bits_is_an_error() -> None:
    with server(answered("200 OK", body=b'{"timestamp":%d}' % 2**63)) as (port, _):
        session = session_with(port, timeout=1.0)
        with pytest.raises(SessionError, match="timestamp"):
            await session.timestamp()
        await session.aclose()
    with server(answered("200 OK", body=b'{"offset":%d}' % 10**400)) as (port, _):
        session = session_with(port, timeout=1.0)
        with pytest.raises(SessionError, match="offset"):
            async with session.upload(Key("WORM--unsized"), AssociatedFile()):
                pass
        await session.aclose()


@pytest.mark.slow
def test_a_login_stands_in_no_log_error_trace_or_list_of_processes(own_testbed: Testbed) -> None:
    """With a server that wants one and never takes it, and looks at our processes meanwhile."""
    lists: list[bytes] = []

    def respond(request: bytes) -> Iterator[bytes]:
        for process in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                lists.append(process.read_bytes())
            except OSError:
                continue
        yield from answered("401 Unauthorized", CHALLENGE)(request)

    client, uuid = own_testbed.client, own_testbed.cluster.uuid
    said = ""
    with server(respond) as (port, heard):
        env = {"CLUSTER_REMOTE_TOKEN": SECRET, "GIT_TERMINAL_PROMPT": "0", "GIT_TRACE_CURL": "1"}
        url = f"annex+http://127.0.0.1:{port}/git-annex/"
        initremote = (
            *("git", "annex", "initremote", "overhttp", f"--sameas={uuid}", "--private", "--debug"),
            *("type=external", "externaltype=cluster", "encryption=none", f"url={url}"),
        )
        for command in (
            initremote,
            ("cluster-remote", "trace", "--", *initremote),
            ("cluster-remote", "setup", "overhttp", url),
            ("cluster-remote", "ping", url),
            ("cluster-remote", "doctor"),
        ):
            done = own_testbed.environment.run(*command, cwd=client.path, check=False, env=env)
            said += text(done)
    sent = next(_coded_in(request).decode() for request in heard if b"Basic" in request)
    assert SECRET.encode() in base64.b64decode(sent)
    for secret in (SECRET, sent):
        assert secret not in said
        assert not any(secret.encode() in each for each in lists)
    assert "\x1b" not in said


def _coded_in(request: bytes) -> bytes:
    return next(line for line in request.split(b"\r\n") if line.startswith(b"Authorization")).rpartition(b" ")[2]
