"""StreamSession with the real git-annex-shell: one repository and a cluster, in every version of the protocol."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import ConnectionLost, Refused, SourceError, WrongRepository
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import AuthSuccess, Message
from cluster_remote.p2p.session import Present, Removal, Stored, Upload
from cluster_remote.transport.address import Directory
from cluster_remote.transport.opening import Caller, stream_session, transport_to
from tests.p2p.memory import Content, Pieces
from tests.p2p.strategies import file_names, keys
from tests.support.environment import Environment
from tests.support.peers import limit_version
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, Repository, locked, make_cluster, make_repository
from tests.support.slow import only_in_all

pytestmark = pytest.mark.anyio

CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")
FILE = AssociatedFile("dir/a file")
VERSIONS = [4, 3, 2, 1, 0]


@pytest.fixture(scope="module")
def repository(make_environment: Callable[[], Environment]) -> Repository:
    environment = make_environment()
    return make_repository(environment, environment.directory / "r", "one (alone)")


@pytest.fixture(scope="module")
def gateway(make_environment: Callable[[], Environment]) -> Cluster:
    environment = make_environment()
    return make_cluster(environment, environment.directory)


@pytest.fixture(params=[VERSIONS[0], VERSIONS[-1], *only_in_all(*VERSIONS[1:-1])])
def version(request: pytest.FixtureRequest) -> int:
    found: int = request.param
    return found


@asynccontextmanager
async def spoken_with(
    repository: Repository,
    *,
    server: str | None = None,
    version: int = 4,
    timeout: float = 30.0,
    bypass: frozenset[UUID] = frozenset(),
    connections: int = 1,
    alone: bool = True,
) -> AsyncIterator[StreamSession]:
    """Open a session with git-annex-shell in a repository, limited to a version of the protocol.

    Fails if there were not exactly so many connections, or if a process is left of one that is `alone`.
    """
    environment = repository.environment
    traced: list[Message] = []
    shim = limit_version(environment, version) if version < 4 else None
    try:
        with environment.applied():
            session = stream_session(
                Directory(str(repository.path)),
                Caller(CLIENT, timeout, trace=lambda _, message: traced.append(message)),
                server=UUID(server or repository.uuid),
                bypass=bypass,
            )
        try:
            await session.open()
            assert session.version == version
            yield session
        finally:
            await session.aclose()
    finally:
        if shim is not None:
            shim.unlink(missing_ok=True)
    assert sum(isinstance(message, AuthSuccess) for message in traced) == connections
    if alone:
        environment.assert_no_process_left(1.0)


async def fetched(session: StreamSession, key: Key, offset: int = 0) -> tuple[bytes, bool]:
    async with session.download(key, FILE, offset) as download:
        content = b"".join([bytes(chunk) async for chunk in download.chunks()])
        assert len(content) == download.length
        return content, await download.valid()


# One repository


async def test_every_request_is_answered_in_every_version(repository: Repository, version: int) -> None:
    content = Content(1000)
    async with spoken_with(repository, version=version) as session:
        assert not await session.check_present(content.key)
        assert await session.store(content.key, FILE, content.source()) == Stored(True)
        assert repository.object_bytes(str(content.key)) == content.bytes
        assert await session.check_present(content.key)
        assert await session.store(content.key, FILE, content.source()) == Present()
        assert await fetched(session, content.key) == (content.bytes, True)
        async with session.lock(content.key) as is_locked:
            assert is_locked
        if version >= 3:
            now = await session.timestamp()
            assert not (await session.remove(content.key, now - 10)).removed
            assert await session.remove(content.key, now + 100) == Removal(True)
        else:
            with pytest.raises(Refused, match="needs version 3"):
                await session.timestamp()
            with pytest.raises(Refused, match="needs version 3"):
                await session.remove(content.key, 0)
            assert await session.remove(content.key) == Removal(True)
        assert not await session.check_present(content.key)
        assert not repository.has_object(str(content.key))
        assert await session.remove(content.key) == Removal(True), "what is not there counts as removed"
        async with session.lock(content.key) as is_locked:
            assert not is_locked


@pytest.mark.parametrize("offset", [0, 1, 999, 1000, 1001, 5000])
async def test_a_download_can_start_at_any_offset(repository: Repository, version: int, offset: int) -> None:
    content = Content(1000)
    async with spoken_with(repository, version=version) as session:
        await session.store(content.key, FILE, content.source())
        assert await fetched(session, content.key, offset) == (content.bytes[offset:], True)
        assert await session.check_present(content.key)


@pytest.mark.parametrize("size", [0, 1, 300_000, 3_000_000])
async def test_contents_of_every_size_round_trip(repository: Repository, version: int, size: int) -> None:
    content = Content(size)
    positions: list[int] = []
    async with spoken_with(repository, version=version) as session:
        # Of the empty one there is only one.
        await session.remove(content.key)
        assert await session.store(content.key, FILE, content.source(), positions.append) == Stored(True)
        assert await fetched(session, content.key) == (content.bytes, True)
    assert positions == sorted(positions)
    assert (positions[-1] if positions else 0) == size
    assert repository.object_bytes(str(content.key)) == content.bytes


async def test_content_with_an_unsized_key_round_trips(repository: Repository, version: int) -> None:
    content = Content(1000)
    key = Key(f"GPGHMACSHA256--{hashlib.sha256(content.bytes).hexdigest()}")
    async with spoken_with(repository, version=version) as session:
        assert await session.store(key, FILE, content.source()) == Stored(True)
        assert await fetched(session, key) == (content.bytes, True)
        assert await fetched(session, key, 400) == (content.bytes[400:], True)


@pytest.mark.parametrize("offset", [0, 500, 1000])
async def test_missing_content_is_not_valid(repository: Repository, version: int, offset: int) -> None:
    key = Content(1000).key
    async with spoken_with(repository, version=version) as session:
        if version == 0 and offset == 1000:
            with pytest.raises(Refused, match="does not have the content"):
                await fetched(session, key, offset)
        else:
            assert await fetched(session, key, offset) == (b"", False)
        assert not await session.check_present(key)


@pytest.mark.parametrize("name", [b"GPGHMACSHA1--00", b"SHA256-s0--00"])
async def test_missing_content_is_not_mistaken_for_empty(repository: Repository, version: int, name: bytes) -> None:
    key = Key(name.decode())
    async with spoken_with(repository, version=version) as session:
        if version == 0:
            with pytest.raises(Refused, match="does not have the content"):
                await fetched(session, key)
        else:
            assert await fetched(session, key) == (b"", False)


async def test_wrong_bytes_are_not_stored(repository: Repository, version: int) -> None:
    content = Content(1000)
    async with spoken_with(repository, version=version) as session:
        outcome = await session.store(content.key, FILE, Pieces(b"x" * 1000))
        assert isinstance(outcome, Stored)
        assert not outcome.stored
        assert outcome.reasons == (f"{repository.path} did not store it",)
        assert not await session.check_present(content.key)


async def test_content_that_changed_while_being_sent_is_not_stored(repository: Repository) -> None:
    content = Content(1000)
    async with spoken_with(repository) as session:
        outcome = await session.store(content.key, FILE, Pieces(b"x" * 1000, valid=False))
        assert isinstance(outcome, Stored)
        assert not outcome.stored
        assert "changed while it was sent" in outcome.reasons[0]


# Going on


async def _break_off(session: StreamSession, repository: Repository, content: Content, size: int) -> None:
    """Send `size` bytes of a content, wait until the repository has some of them, and disconnect."""
    with pytest.raises(SourceError, match="the plug was pulled"):
        await session.store(
            content.key,
            FILE,
            Pieces(content.bytes[:size], 0.3, length=len(content.bytes), raises=SourceError("the plug was pulled")),
        )
    partial = repository.path / ".git/annex/tmp" / str(content.key)
    assert wait_until(partial.exists)


async def test_an_interrupted_upload_resumes(repository: Repository, version: int) -> None:
    content = Content(1_000_000)
    async with spoken_with(repository, version=version, connections=2) as session:
        await _break_off(session, repository, content, 600_000)
        async with session.upload(content.key, FILE) as upload:
            assert isinstance(upload, Upload)
            assert 0 < upload.offset <= 600_000
            assert await upload.send(content.source(upload.offset)) == Stored(True)
        assert repository.object_bytes(str(content.key)) == content.bytes


@pytest.mark.parametrize("already", [1, 999, 1000])
async def test_only_missing_bytes_are_sent(repository: Repository, version: int, already: int) -> None:
    content = Content(1000)
    partial = repository.path / ".git/annex/tmp" / str(content.key)
    partial.parent.mkdir(exist_ok=True)
    partial.write_bytes(content.bytes[:already])
    async with spoken_with(repository, version=version) as session:
        async with session.upload(content.key, FILE) as upload:
            assert isinstance(upload, Upload)
            assert upload.offset == already
            assert await upload.send(content.source(already)) == Stored(True)
        assert await fetched(session, content.key) == (content.bytes, True)


# Odd names

ODD = [
    b"a b".replace(b" ", b"\xc2\xa0"),
    b"'q'",
    b'"',
    b"%",
    b"&s",
    b"100%25",
    b"\xff\xfe",
    b"\x01\x1b[2J",
    b"-rf",
    b"../up",
]


@pytest.mark.parametrize("name", ODD)
async def test_keys_with_odd_names_are_stored_and_found(repository: Repository, name: bytes) -> None:
    key = Key(os.fsdecode(b"WORM-s3--" + name))
    async with spoken_with(repository) as session:
        assert await session.store(key, AssociatedFile(os.fsdecode(name)), Pieces(b"abc")) == Stored(True)
        assert await session.check_present(key)
        assert await fetched(session, key) == (b"abc", True)
        assert await session.remove(key) == Removal(True)


@given(st.lists(st.tuples(keys, file_names), min_size=30, max_size=30))
@settings(max_examples=5, suppress_health_check=list(HealthCheck))
async def test_git_annex_answers_about_any_valid_key_and_file(
    repository: Repository, asked: list[tuple[Key, bytes]]
) -> None:
    async with spoken_with(repository) as session:
        for key, name in asked:
            assert not await session.check_present(key)
            async with session.download(key, AssociatedFile(os.fsdecode(name))) as download:
                assert [chunk async for chunk in download.chunks()] == []
                assert not await download.valid()


# Refusals


async def test_a_read_only_server_refuses_and_keeps_serving(repository: Repository, version: int) -> None:
    content = Content(1000)
    variables = repository.environment.env
    variables["GIT_ANNEX_SHELL_READONLY"] = "1"
    try:
        async with spoken_with(repository, version=version) as session:
            with pytest.raises(Refused, match=r"uploading .*read-only"):
                await session.store(content.key, FILE, content.source())
            assert not await session.check_present(content.key)
            with pytest.raises(Refused, match=r"removing .*read-only"):
                await session.remove(content.key)
            assert await fetched(session, content.key) == (b"", False)
    finally:
        del variables["GIT_ANNEX_SHELL_READONLY"]


async def test_an_append_only_server_refuses_removal_and_keeps_serving(repository: Repository) -> None:
    content = Content(1000)
    variables = repository.environment.env
    variables["GIT_ANNEX_SHELL_APPENDONLY"] = "1"
    try:
        async with spoken_with(repository) as session:
            assert await session.store(content.key, FILE, content.source()) == Stored(True)
            with pytest.raises(Refused, match=r"removing .*append-only"):
                await session.remove(content.key)
            assert await session.check_present(content.key)
    finally:
        del variables["GIT_ANNEX_SHELL_APPENDONLY"]


async def test_an_unexpected_repository_is_refused(repository: Repository, gateway: Cluster) -> None:
    with repository.environment.applied():
        transport = transport_to(Directory(str(repository.path)), Caller(CLIENT))
    session = StreamSession(transport, client=CLIENT, expected=UUID(gateway.uuid))
    with pytest.raises(WrongRepository, match=f"is repository {repository.uuid}, not {gateway.uuid}"):
        await session.open()
    repository.environment.assert_no_process_left(0)


# Locks


async def test_locked_content_cannot_be_removed_by_another_session_until_released(
    repository: Repository, version: int
) -> None:
    content = Content(1000)
    async with (
        spoken_with(repository, version=version) as holder,
        spoken_with(repository, version=version, alone=False, connections=2) as other,
    ):
        await holder.store(content.key, FILE, content.source())
        async with holder.lock(content.key) as is_locked:
            assert is_locked
            # A git-annex-shell that meets a locked content says so on standard error, and ends without an answer.
            with pytest.raises(ConnectionLost, match=r"removing .*: git-annex: content is locked"):
                await other.remove(content.key)
            assert await other.check_present(content.key)
        # There is no answer to UNLOCKCONTENT; to the next request there is.
        assert await holder.check_present(content.key)
        assert await other.remove(content.key) == Removal(True)


async def test_a_lock_is_released_after_an_exception(repository: Repository) -> None:
    content = Content(1000)
    async with spoken_with(repository) as holder, spoken_with(repository, alone=False) as other:
        await holder.store(content.key, FILE, content.source())
        with pytest.raises(ZeroDivisionError):
            async with holder.lock(content.key):
                raise ZeroDivisionError
        assert await holder.check_present(content.key)
        assert await other.remove(content.key) == Removal(True)
        assert not await holder.check_present(content.key)


# Cancelled and killed


async def test_cancelling_in_the_middle_of_an_upload_leaves_the_session_usable_and_no_child(
    repository: Repository, version: int
) -> None:
    content = Content(1_000_000)
    async with spoken_with(repository, version=version, connections=2) as session:
        with anyio.move_on_after(0.3) as scope:
            await session.store(content.key, FILE, Pieces(content.bytes[:500_000], 60.0, length=1_000_000))
        assert scope.cancelled_caught
        repository.environment.assert_no_process_left(1.0)
        assert not await session.check_present(content.key)


@asynccontextmanager
async def _in_the_middle_of_a_download(
    session: StreamSession, content: Content
) -> AsyncIterator[AsyncIterator[object]]:
    await session.store(content.key, FILE, content.source())
    async with session.download(content.key, FILE) as download:
        chunks = aiter(download.chunks())
        await anext(chunks)
        yield chunks


async def test_cancelling_in_the_middle_of_a_download_leaves_the_session_usable_and_no_child(
    repository: Repository, version: int
) -> None:
    content = Content(10_000_000)
    async with spoken_with(repository, version=version, connections=2) as session:
        with anyio.CancelScope() as scope:
            async with _in_the_middle_of_a_download(session, content):
                scope.cancel()
                await anyio.sleep(60)
        assert scope.cancelled_caught
        repository.environment.assert_no_process_left(1.0)
        assert await session.check_present(content.key)


async def test_leaving_a_download_early_leaves_the_session_usable_and_no_child(
    repository: Repository, version: int
) -> None:
    content = Content(10_000_000)
    async with spoken_with(repository, version=version, connections=2) as session:
        async with _in_the_middle_of_a_download(session, content):
            pass
        repository.environment.assert_no_process_left(1.0)
        assert await session.check_present(content.key)


async def test_leaving_an_upload_early_leaves_the_session_usable_and_no_child(
    repository: Repository, version: int
) -> None:
    content = Content(1000)
    async with spoken_with(repository, version=version, connections=2) as session:
        async with session.upload(content.key, FILE) as upload:
            assert isinstance(upload, Upload)
        repository.environment.assert_no_process_left(1.0)
        assert not await session.check_present(content.key)


def _kill_all(environment: Environment) -> None:
    for process in environment.processes():
        os.kill(process.pid, signal.SIGKILL)
        # A process that ends loses its memory first, and closes its pipes some time after that.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    environment.assert_no_process_left(5.0)


async def test_a_server_killed_in_the_middle_of_a_download_fails_that_request_only(repository: Repository) -> None:
    content = Content(10_000_000)
    async with spoken_with(repository, connections=2) as session:
        with pytest.raises(ConnectionLost, match=r"downloading .*of 10000000 bytes still to come"):
            await _download_from_a_server_that_is_killed(session, repository, content)
        assert await session.check_present(content.key)


async def _download_from_a_server_that_is_killed(
    session: StreamSession, repository: Repository, content: Content
) -> None:
    async with _in_the_middle_of_a_download(session, content) as chunks:
        _kill_all(repository.environment)
        async for _ in chunks:
            pass


async def test_a_server_killed_while_idle_is_restarted_for_the_next_request(repository: Repository) -> None:
    content = Content(1000)
    async with spoken_with(repository, connections=2) as session:
        await session.store(content.key, FILE, content.source())
        _kill_all(repository.environment)
        assert await session.check_present(content.key)


# A cluster


async def test_a_cluster_answers_every_request_in_every_version(gateway: Cluster, version: int) -> None:
    nodes = frozenset(UUID(node.uuid) for node in gateway.nodes)
    named = nodes if version >= 2 else frozenset()
    content = Content(1000)
    async with spoken_with(gateway.gateway, server=gateway.uuid, version=version) as session:
        assert await session.open() == UUID(gateway.uuid)
        assert not await session.check_present(content.key)
        assert await session.store(content.key, FILE, content.source()) == Stored(True, named)
        assert gateway.holders(str(content.key)) == [True, True, True]
        assert await session.check_present(content.key)
        assert await session.store(content.key, FILE, content.source()) == Present(named)
        assert await fetched(session, content.key) == (content.bytes, True)
        assert await fetched(session, content.key, 600) == (content.bytes[600:], True)
        async with session.lock(content.key) as is_locked:
            assert not is_locked, "it is nodes that can be locked"
        if version >= 3:
            assert await session.timestamp() > 0
        assert await session.remove(content.key) == Removal(True, named)
        assert gateway.holders(str(content.key)) == [False, False, False]
        assert not await session.check_present(content.key)


async def test_content_a_cluster_lacks_is_not_valid(gateway: Cluster, version: int) -> None:
    async with spoken_with(gateway.gateway, server=gateway.uuid, version=version) as session:
        assert await fetched(session, Content(1000).key) == (b"", False)
        assert not await session.check_present(Content(10).key)


async def test_a_timed_removal_from_a_cluster_honours_its_deadline(gateway: Cluster) -> None:
    content = Content(1000)
    async with spoken_with(gateway.gateway, server=gateway.uuid) as session:
        await session.store(content.key, FILE, content.source())
        now = await session.timestamp()
        late = await session.remove(content.key, now - 10)
        assert (late.removed, late.uuids) == (False, frozenset())
        assert gateway.holders(str(content.key)) == [True, True, True]
        assert (await session.remove(content.key, now + 100)).removed


async def test_a_locked_node_makes_a_removal_fail_and_name_the_others(gateway: Cluster) -> None:
    content = Content(1000)
    async with spoken_with(gateway.gateway, server=gateway.uuid) as session:
        await session.store(content.key, FILE, content.source())
        with locked(gateway.nodes[1], str(content.key)):
            removal = await session.remove(content.key)
        others = frozenset({UUID(gateway.nodes[0].uuid), UUID(gateway.nodes[2].uuid)})
        assert removal == Removal(False, others, (f"{gateway.gateway.path} did not remove it everywhere",))
        assert gateway.holders(str(content.key)) == [False, True, False]
        assert await session.remove(content.key) == Removal(True, others | {UUID(gateway.nodes[1].uuid)})


async def test_an_upload_to_a_cluster_resumes_at_the_lowest_offset(gateway: Cluster) -> None:
    content = Content(1000)
    for node, already in zip(gateway.nodes, (300, 200, 1000), strict=True):
        partial = node.path / ".git/annex/tmp" / str(content.key)
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(content.bytes[:already])
    async with spoken_with(gateway.gateway, server=gateway.uuid) as session:
        async with session.upload(content.key, FILE) as upload:
            assert isinstance(upload, Upload)
            assert upload.offset == 200
            outcome = await upload.send(content.source(200))
        assert outcome == Stored(True, frozenset(UUID(node.uuid) for node in gateway.nodes))
    assert all(node.object_bytes(str(content.key)) == content.bytes for node in gateway.nodes)


async def test_a_node_behind_a_gateway_is_addressed_by_its_uuid(gateway: Cluster, version: int) -> None:
    content = Content(1000)
    node = gateway.nodes[1]
    async with spoken_with(gateway.gateway, server=node.uuid, version=version) as session:
        assert await session.store(content.key, FILE, content.source()) == Stored(True)
        assert gateway.holders(str(content.key)) == [False, True, False]
        async with session.lock(content.key) as is_locked:
            assert is_locked
        removal = await session.remove(content.key)
        assert removal.removed
        assert removal.uuids <= {UUID(node.uuid)}


async def test_gateways_to_bypass_may_be_sent(gateway: Cluster) -> None:
    content = Content(1000)
    bypass = frozenset({UUID("0de00000-0000-4000-8000-000000000003")})
    async with spoken_with(gateway.gateway, server=gateway.uuid, bypass=bypass) as session:
        outcome = await session.store(content.key, FILE, content.source())
        assert isinstance(outcome, Stored)
        assert len(outcome.uuids) == 3


async def test_cancelling_an_upload_to_a_cluster_leaves_the_session_usable_and_no_child(gateway: Cluster) -> None:
    content = Content(1_000_000)
    async with spoken_with(gateway.gateway, server=gateway.uuid, connections=2) as session:
        with anyio.move_on_after(1.0) as scope:
            await session.store(content.key, FILE, Pieces(content.bytes[:500_000], 60.0, length=1_000_000))
        assert scope.cancelled_caught
        gateway.gateway.environment.assert_no_process_left(1.0)
        assert not await session.check_present(content.key)
