"""One ssh connection per server for all sessions, as with git-annex's own remotes, against a real server."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.transport import sharedssh, ssh
from cluster_remote.transport.address import parse_address
from cluster_remote.transport.opening import Caller, stream_session
from tests.remote.testbed import initremote
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Cluster, Repository, make_repository
from tests.support.ssh import SshServer

KEY = Key("SHA256E-s3--abc")
CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")


@pytest.fixture
def repository(environment: Environment) -> Repository:
    return make_repository(environment, environment.home / "r", "r")


@pytest.fixture(autouse=True)
def closed(environment: Environment, ssh_server: SshServer) -> Iterator[None]:
    """End the shared connections, as the end of the process would."""
    with environment.applied():
        yield
    for directory in sharedssh._directories:
        directory.close()
    sharedssh._directories.clear()
    environment.assert_no_process_left()


def _session(
    server: SshServer, repository: Repository, *options: str, timeout: float = 30.0, path: str = ""
) -> StreamSession:
    caller = Caller(CLIENT, timeout, share_ssh=True, ssh_options=options)
    return stream_session(parse_address(f"{server.host}:{path or repository.path}"), caller)


def _master(environment: Environment) -> int:
    """Return the process that holds the shared connection."""
    (socket,) = Path(sharedssh._directories[0].path).iterdir()
    said = environment.run("sh", "-c", f"{os.environ['GIT_SSH_COMMAND']} -S {socket} -O check x 2>&1").stdout
    return int(said.decode().split("pid=")[1].split(")")[0])


@pytest.mark.anyio
async def test_ten_sessions_share_a_connection(ssh_server: SshServer, repository: Repository) -> None:
    sessions = [_session(ssh_server, repository) for _ in range(24)]
    async with anyio.create_task_group() as tasks:
        for session in sessions:
            tasks.start_soon(session.check_present, KEY)
    assert ssh_server.connections == 3
    for session in sessions[:5]:
        await session.aclose()
    more = [_session(ssh_server, repository) for _ in range(5)]
    for session in more:
        assert not await session.check_present(KEY)
    assert ssh_server.connections == 3, "places that were given up are used again"
    for session in (*sessions, *more):
        await session.aclose()


@pytest.mark.anyio
async def test_different_options_need_a_separate_connection(ssh_server: SshServer, repository: Repository) -> None:
    for options in ((), ("-o", "Compression=yes"), ()):
        session = _session(ssh_server, repository, *options)
        await session.open()
        await session.aclose()
    assert ssh_server.connections == 2


@pytest.mark.anyio
@pytest.mark.parametrize("idle", [True, False], ids=["with an open session", "without one"])
async def test_a_lost_connection_costs_one_more_login(
    environment: Environment, ssh_server: SshServer, repository: Repository, idle: bool
) -> None:
    session = _session(ssh_server, repository)
    assert not await session.check_present(KEY)
    if not idle:
        await session.aclose()
    # Its socket stays, and nobody is behind it.
    os.kill(_master(environment), signal.SIGKILL)
    assert wait_until(lambda: session._stream is None or session._stream.ended())
    assert not await session.check_present(KEY)
    assert ssh_server.connections == 2
    await session.aclose()


@pytest.mark.anyio
async def test_a_hung_connection_is_not_reused(
    environment: Environment, ssh_server: SshServer, repository: Repository
) -> None:
    session = _session(ssh_server, repository, timeout=1.0)
    await session.open()
    await session.aclose()
    master = _master(environment)
    os.kill(master, signal.SIGSTOP)
    try:
        with pytest.raises(TimedOut):
            await session.open()
        again = _session(ssh_server, repository)
        await again.open()
        await again.aclose()
        assert ssh_server.connections == 2
    finally:
        os.kill(master, signal.SIGCONT)


@pytest.mark.anyio
async def test_a_server_restart_costs_one_more_login(ssh_server: SshServer, repository: Repository) -> None:
    session = _session(ssh_server, repository)
    await session.open()
    ssh_server.stop()
    ssh_server.start()
    assert wait_until(lambda: session._stream is not None and session._stream.ended())
    others = [_session(ssh_server, repository) for _ in range(4)]
    async with anyio.create_task_group() as tasks:
        for each in (session, *others):
            tasks.start_soon(each.check_present, KEY)
    assert ssh_server.connections == 2
    for each in (session, *others):
        await each.aclose()


@pytest.mark.anyio
async def test_a_failed_login_fails_for_everybody_waiting_for_it(environment: Environment, tmp_path: Path) -> None:
    program = environment.program("ssh", f"#!/bin/sh\necho x >> '{tmp_path}/tries'\nsleep 0.5\necho no >&2; exit 255\n")
    environment.env["GIT_SSH_COMMAND"] = os.environ["GIT_SSH_COMMAND"] = str(program)
    failed = 0

    async def fail() -> None:
        nonlocal failed
        with pytest.raises(Unreachable):
            await stream_session(parse_address("nas:/dir"), Caller(CLIENT, 5.0, share_ssh=True)).open()
        failed += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(fail)
    assert failed == 4
    assert (tmp_path / "tries").read_text() == "x\n"


@pytest.mark.anyio
async def test_a_wrong_repository_does_not_cost_the_connection(ssh_server: SshServer, repository: Repository) -> None:
    with pytest.raises(Unreachable):
        await _session(ssh_server, repository, path="/nowhere").open()
    session = _session(ssh_server, repository)
    await session.open()
    await session.aclose()
    assert ssh_server.connections == 1


@pytest.mark.anyio
async def test_a_server_that_allows_one_session_per_connection_serves_all(
    ssh_server: SshServer, repository: Repository
) -> None:
    ssh_server.sessions = 1
    sessions = [_session(ssh_server, repository) for _ in range(6)]
    async with anyio.create_task_group() as tasks:
        for session in sessions:
            tasks.start_soon(session.check_present, KEY)
    assert ssh_server.connections == 6
    for session in sessions:
        await session.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("options", [(), ("-oControlMaster=no", "-oLogLevel=INFO")], ids=["shared", "not shared"])
async def test_a_server_that_opens_no_session_for_a_moment_is_asked_again(
    ssh_server: SshServer, repository: Repository, options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh, "_PAUSES", (0.05,) * 60)
    first, second = (_session(ssh_server, repository, *options) for _ in range(2))
    await first.open()
    ssh_server.sessions = 0
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(second.open)
        await anyio.sleep(0.3)
        ssh_server.sessions = 10
    await first.aclose()
    await second.aclose()


@pytest.mark.anyio
async def test_the_sockets_are_in_a_new_private_directory(
    ssh_server: SshServer, repository: Repository, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long, odd = tmp_path / ("long" * 30), tmp_path / "%h"
    for each in (long, odd):
        each.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(odd))
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    session = _session(ssh_server, repository)
    await session.open()
    await session.aclose()
    _check_directory(Path(sharedssh._directories[0].path), not_in=(long, odd))


def _check_directory(directory: Path, not_in: tuple[Path, ...]) -> None:
    assert not [entry for each in not_in for entry in each.iterdir()]
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert directory.stat().st_uid == os.getuid()
    (socket,) = directory.iterdir()
    assert len(os.fsencode(socket)) + 17 < 100
    sharedssh._directories[0].close()
    assert not directory.exists()


@pytest.mark.parametrize("caching", [True, False])
def test_git_annex_copy_logs_in_once_unless_configured_otherwise(
    environment: Environment, ssh_server: SshServer, cluster: Cluster, caching: bool
) -> None:
    gateway = cluster.gateway
    gateway.git("config", "annex.sshcaching", str(caching).lower())
    for number, node in enumerate(cluster.nodes, 1):
        gateway.git("config", f"remote.node{number}.url", ssh_server.url(node.path))
    initremote(gateway, "clu", sameas=cluster.uuid)
    keys = [gateway.add(f"f{number}", os.urandom(1000)) for number in range(4)]
    before = ssh_server.connections
    gateway.annex("copy", "-J2", "--to", "clu", *(f"f{number}" for number in range(4)))
    environment.assert_no_process_left()
    assert all(node.has_object(key) for node in cluster.nodes for key in keys)
    assert (ssh_server.connections - before == 1) is caching
