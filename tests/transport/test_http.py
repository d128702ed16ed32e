"""HttpSession with the real `git annex p2phttp`: one repository and a cluster, in every version of the protocol."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager

import anyio
import httpcore
import pytest
from anyio.abc import SocketStream

from cluster_remote.annex.logins import Login
from cluster_remote.p2p.errors import AuthenticationFailed, Refused, SourceError, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.server import Mode
from cluster_remote.p2p.session import Present, Removal, Stored, Upload
from cluster_remote.transport.address import Http
from cluster_remote.transport.by_http import http_session
from cluster_remote.transport.http import HttpSession
from cluster_remote.transport.httpclient import HttpClient
from cluster_remote.transport.opening import Caller
from tests.gateway.test_web import web_of
from tests.p2p.memory import Content, Pieces
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository, make_cluster, make_repository
from tests.support.slow import only_in_all
from tests.support.sockets import free_port, serve_p2phttp

pytestmark = pytest.mark.anyio

CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")
FILE = AssociatedFile("dir/a file")
VERSIONS = [4, 3, 2, 1, 0]


class Endpoint:
    """A repository that can be reached over HTTP."""

    def __init__(self, repository: Repository, port: int, prefix: str = "") -> None:
        self.repository = repository
        self.port = port
        self.prefix = prefix

    @asynccontextmanager
    async def session(
        self, uuid: str | None = None, *, version: int = 4, logins: tuple[Login, ...] = ()
    ) -> AsyncIterator[HttpSession]:
        """Open a session with the repository or another UUID it serves, in at most that version."""
        http = HttpClient(
            f"http://127.0.0.1:{self.port}{self.prefix}",
            UUID(uuid or self.repository.uuid),
            name="the server",
            client=CLIENT,
            pool=httpcore.AsyncConnectionPool(),
            authentication=Logins(*logins),
            timeout=20,
        )
        http.version = version
        session = HttpSession(http)
        try:
            yield session
        finally:
            await session.aclose()


class Logins:
    """Offer one login after another, and record the outcome of each."""

    def __init__(self, *logins: Login) -> None:
        self.logins = logins
        self.taken: list[Login] = []

    async def login(self, refused: object) -> Login | None:
        left = [login for login in self.logins if login not in list(refused)]  # type: ignore[call-overload]
        return left[0] if left else None

    async def accepted(self, login: Login) -> None:
        self.taken.append(login)

    async def rejected(self, login: Login) -> None:
        assert login not in self.taken


@pytest.fixture(scope="module")
def single(make_environment: Callable[[], Environment]) -> Iterator[Endpoint]:
    environment = make_environment()
    repository = make_repository(environment, environment.directory / "r", "one (alone)")
    with serve_p2phttp(repository) as port:
        yield Endpoint(repository, port)


@pytest.fixture(scope="module")
def gateway(make_environment: Callable[[], Environment]) -> Iterator[tuple[Cluster, Endpoint]]:
    environment = make_environment()
    made = make_cluster(environment, environment.directory)
    with serve_p2phttp(made.gateway) as port:
        yield made, Endpoint(made.gateway, port)


@pytest.fixture(params=[VERSIONS[0], VERSIONS[-1], *only_in_all(*VERSIONS[1:-1])])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


async def fetched(session: HttpSession, key: Key, offset: int = 0) -> tuple[bytes, bool]:
    async with session.download(key, FILE, offset) as download:
        content = b"".join([bytes(chunk) async for chunk in download.chunks()])
        assert len(content) == download.length
        return content, await download.valid()


async def test_every_request_is_answered_in_every_version(single: Endpoint, version: int) -> None:
    content = Content(1000)
    async with single.session(version=version) as session:
        assert await session.open() == UUID(single.repository.uuid)
        assert session.version == version
        assert not await session.check_present(content.key)
        assert await session.store(content.key, FILE, content.source()) == Stored(True)
        assert single.repository.object_bytes(str(content.key)) == content.bytes
        assert await session.check_present(content.key)
        again = await session.store(content.key, FILE, content.source())
        assert again == (Present() if version else Stored(True))
        assert await fetched(session, content.key) == (content.bytes, True)
        async with session.lock(content.key) as is_locked:
            assert is_locked
            # How the real server says that a content of its own repository is locked.
            async with single.session() as other:
                with pytest.raises(Refused, match="500"):
                    await other.remove(content.key)
        if version >= 3:
            now = await session.timestamp()
            assert not (await session.remove(content.key, now - 10)).removed
            assert await session.remove(content.key, now + 100) == Removal(True)
        else:
            with pytest.raises(Refused, match="needs 3"):
                await session.timestamp()
            with pytest.raises(Refused, match="needs 3"):
                await session.remove(content.key, 0)
            assert await session.remove(content.key) == Removal(True)
        assert not await session.check_present(content.key)
        assert not single.repository.has_object(str(content.key))
        async with session.lock(content.key) as is_locked:
            assert not is_locked


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_contents_of_every_size_round_trip(single: Endpoint, version: int, size: int) -> None:
    content = Content(size)
    positions: list[int] = []
    async with single.session(version=version) as session:
        await session.remove(content.key)
        assert await session.store(content.key, FILE, content.source(), positions.append) == Stored(True)
        assert await fetched(session, content.key) == (content.bytes, True)
    assert positions == sorted(positions)
    assert (positions[-1] if positions else 0) == size
    assert single.repository.object_bytes(str(content.key)) == content.bytes


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001])
async def test_a_download_can_start_at_any_offset(single: Endpoint, offset: int) -> None:
    content = Content(1000)
    async with single.session() as session:
        await session.store(content.key, FILE, content.source())
        assert await fetched(session, content.key, offset) == (content.bytes[offset:], True)


@pytest.mark.parametrize("key", ["SHA256-s1000--00", "SHA256-s0--00", "GPGHMACSHA1--00"])
async def test_missing_content_is_not_valid(single: Endpoint, version: int, key: str) -> None:
    async with single.session(version=version) as session:
        assert await fetched(session, Key(key)) == (b"", False)


async def test_wrong_bytes_and_changed_content_are_not_stored(single: Endpoint, version: int) -> None:
    content = Content(1000)
    async with single.session(version=version) as session:
        for source in (Pieces(b"x" * 1000), Pieces(content.bytes, valid=False)):
            outcome = await session.store(content.key, FILE, source)
            assert isinstance(outcome, Stored)
            assert not outcome.stored
            assert not await session.check_present(content.key)


async def test_an_upload_whose_source_failed_resumes_later(single: Endpoint) -> None:
    content = Content(1_000_000)
    async with single.session() as session:
        broken = Pieces(content.bytes[:600_000], length=len(content.bytes), raises=SourceError("the plug was pulled"))
        with pytest.raises(SourceError, match="the plug was pulled"):
            await session.store(content.key, FILE, broken)
        async with session.upload(content.key, FILE) as upload:
            assert isinstance(upload, Upload)
            assert 0 < upload.offset <= 600_000
            assert await upload.send(content.source(upload.offset)) == Stored(True)
    assert single.repository.object_bytes(str(content.key)) == content.bytes


@pytest.mark.parametrize("name", [b"a/b", b"%", b"&s", b"\xff\xfe", b"[x]", b"\xc2\xa0", b"'q'"])
async def test_keys_with_odd_names_are_stored_and_found(single: Endpoint, name: bytes) -> None:
    key = Key(os.fsdecode(b"WORM-s3--" + name))
    async with single.session() as session:
        assert await session.store(key, AssociatedFile(os.fsdecode(name)), Pieces(b"abc")) == Stored(True)
        assert await session.check_present(key)
        assert await fetched(session, key) == (b"abc", True)
        assert await session.remove(key) == Removal(True)


async def test_a_cluster_names_the_nodes_that_stored_and_removed(gateway: tuple[Cluster, Endpoint]) -> None:
    cluster, endpoint = gateway
    nodes = {UUID(node.uuid) for node in cluster.nodes}
    content = Content(1000)
    async with endpoint.session(cluster.uuid) as session:
        stored = await session.store(content.key, FILE, content.source())
        assert isinstance(stored, Stored)
        assert nodes <= stored.uuids
        assert cluster.holders(str(content.key)) == [True] * 3
        present = await session.store(content.key, FILE, content.source())
        assert isinstance(present, Present)
        assert nodes <= present.uuids
        async with session.lock(content.key) as is_locked:
            assert not is_locked, "nodes are locked, never a cluster"
        removal = await session.remove(content.key)
        assert removal.removed
        assert nodes <= removal.uuids
    assert cluster.holders(str(content.key)) == [False] * 3


@pytest.mark.parametrize("ours", [False, True], ids=["p2phttp", "ours"])
async def test_a_bucket_filled_by_another_tool_is_checked(environment: Environment, ours: bool) -> None:
    cluster = make_cluster(environment, environment.directory, nodes=1)
    gateway, bucket = cluster.gateway, environment.directory / "bucket"
    bucket.mkdir()
    gateway.annex("initremote", "bucket", "type=directory", f"directory={bucket}", "encryption=none")
    gateway.git("config", "remote.bucket.annex-cluster-node", "mycluster")
    gateway.annex("updatecluster")
    content, elsewhere, nowhere = Content(700), Content(700), Content(700)

    def fill(content: Content) -> None:
        place = gateway.annex("examinekey", "--format=${hashdirlower}${key}/${key}", str(content.key)).stdout.decode()
        (bucket / place).parent.mkdir(parents=True)
        (bucket / place).write_bytes(content.bytes)

    node = UUID(gateway.config("remote.bucket.annex-uuid") or "")
    with ExitStack() as stack:
        if ours:
            web = stack.enter_context(web_of(cluster))
            endpoint = Endpoint(gateway, web.port, "/data")
            logins: tuple[Login, ...] = (Login("any", web.tokens[Mode.READ_WRITE]),)
        else:
            endpoint, logins = Endpoint(gateway, stack.enter_context(serve_p2phttp(gateway))), ()
        async with endpoint.session(cluster.uuid, logins=logins) as session:
            for each, expected in ((content, True), (nowhere, False)):
                async with session.upload(each.key, FILE) as offer:
                    assert isinstance(offer, Upload)
                    if expected:
                        fill(each)
                    outcome = await offer.check_arrived()
                    assert (outcome.stored, outcome.uuids) == (expected, frozenset({node} if expected else ()))
            assert await session.check_present(content.key)
            assert await fetched(session, content.key) == (content.bytes, True)
        # An older server is asked whether it is there.
        async with (
            endpoint.session(cluster.uuid, version=3, logins=logins) as session,
            session.upload(elsewhere.key, FILE) as offer,
        ):
            assert isinstance(offer, Upload)
            assert not (await offer.check_arrived()).stored
    assert gateway.locations(str(content.key)) == {str(node)}


async def test_an_unserved_repository_is_named(single: Endpoint) -> None:
    async with single.session("11111111-1111-4111-8111-111111111111") as session:
        with pytest.raises(Unreachable, match="does not serve repository 11111111"):
            await session.check_present(Content(3).key)


async def test_a_missing_server_is_reported() -> None:
    nowhere = Endpoint(Repository.__new__(Repository), free_port())
    async with nowhere.session("11111111-1111-4111-8111-111111111111") as session:
        with pytest.raises(Unreachable, match=r"the server: checking .*: cannot connect"):
            await session.check_present(Content(3).key)


async def test_a_login_is_sent_when_requested(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "r", "one (alone)")
    content = Content(1000)
    secrets = {"GIT_ANNEX_P2PHTTP_PASSWORD_ada": "right", "GIT_ANNEX_P2PHTTP_PASSWORD_bob": "right"}
    secrets["GIT_ANNEX_P2PHTTP_PERMISSIONS_bob"] = "readonly"
    with serve_p2phttp(repository, "--authenv-http", env=secrets) as port:
        endpoint = Endpoint(repository, port)
        async with endpoint.session(logins=(Login("ada", "wrong"), Login("ada", "right"))) as session:
            assert await session.store(content.key, FILE, content.source()) == Stored(True)
        for logins in ((), (Login("ada", "wrong"),)):
            async with endpoint.session(logins=logins) as session:
                with pytest.raises(AuthenticationFailed) as caught:
                    await session.check_present(content.key)
                assert "wrong" not in str(caught.value)
        async with endpoint.session(logins=(Login("bob", "right"),)) as session:
            assert await session.check_present(content.key)
            with pytest.raises(Refused, match="does not allow it"):
                await session.remove(content.key)


async def test_a_server_sees_a_request_whose_body_is_still_to_come() -> None:
    arrived = anyio.Event()

    async def answer(client: SocketStream) -> None:
        async with client:
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += await client.receive()
                if b"\r\n\r\n" in received:
                    arrived.set()
            await client.send(b"HTTP/1.1 200 OK\r\nContent-Length: 15\r\n\r\n" + b'{"stored":true}')

    async def body() -> AsyncIterator[bytes]:
        with anyio.fail_after(5):
            await arrived.wait()
        yield b"content"

    port = free_port()
    session = http_session(Http("127.0.0.1", port), Caller(CLIENT), CLIENT, None, frozenset())
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, answer)
        async with session.http.send("POST", "put", {}, "uploading", body=body()) as response:
            assert await session.http.read_json(response, "uploading") == {"stored": True}
        await session.aclose()
        tasks.cancel_scope.cancel()


async def test_concurrent_uploads_and_downloads_do_not_interfere(single: Endpoint) -> None:
    contents = [Content(500_000) for _ in range(6)]

    async def there_and_back(content: Content) -> None:
        async with single.session() as session:
            assert await session.store(content.key, FILE, content.source()) == Stored(True)
            assert await fetched(session, content.key) == (content.bytes, True)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            for content in contents:
                tasks.start_soon(there_and_back, content)
