"""Peers behind child processes: a real git-annex-shell, and children that behave badly. None of them is left behind,
and what they say on standard error reaches the people who have to mend it."""

from __future__ import annotations

import os
import shlex
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from cluster_remote.p2p.client import StreamSession
from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.transport.address import Directory, parse_address
from cluster_remote.transport.opening import Caller, stream_session
from cluster_remote.transport.process import ProcessTransport, _ProcessConnection
from tests.p2p.memory import CLIENT, SERVER, Pieces
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Repository, make_repository
from tests.support.slow import only_in_all

pytestmark = pytest.mark.anyio

KEY = Key("SHA256E-s3--abc")
HELLO = f"echo AUTH-SUCCESS {SERVER}; read version; echo VERSION 4"


def child(environment: Environment, script: str, *, timeout: float = 20.0, hint: str = "") -> StreamSession:
    """Return a session with a shell script."""
    return StreamSession(
        ProcessTransport(["sh", "-c", script], name="a child", environment=environment.env, hint=hint),
        client=CLIENT,
        timeout=timeout,
    )


async def failure(session: StreamSession) -> SessionError:
    """Return the error of a request; nothing may be left of the child."""
    try:
        with pytest.raises(SessionError) as caught:
            await session.check_present(KEY)
    finally:
        await session.aclose()
    assert str(caught.value).isprintable()
    return caught.value


def descriptors() -> int:
    """Return how many descriptors this process has open."""
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


# A directory


@pytest.mark.parametrize(
    "name", ["it's", "-dash", "latin1\udcff", *only_in_all("with space", '"q"', "100%", "$(ls)", "a;b", "caf\u00e9")]
)
async def test_a_repository_in_a_directory_of_any_name_is_reachable(environment: Environment, name: str) -> None:
    repository = make_repository(environment, environment.directory / "plain", "odd")
    repository.path.rename(environment.directory / name)
    server = UUID(Repository(environment.directory / name, environment).uuid)
    with environment.applied():
        session = stream_session(Directory(str(environment.directory / name)), Caller(CLIENT, 20.0), server=server)
        assert await session.open() == server
        assert not await session.check_present(KEY)
        await session.aclose()
    environment.assert_no_process_left(0)


async def test_a_directory_that_is_not_a_repository_is_reported_in_git_annexs_words(
    environment: Environment,
) -> None:
    with environment.applied():
        session = stream_session(Directory(f"{environment.home}/no where"), Caller(CLIENT, 20.0))
        error = await failure(session)
    assert isinstance(error, ConnectionLost)
    assert str(error).startswith(f"{environment.home}/no where: checking {KEY}: ")
    assert "git-annex-shell: " in str(error)


async def test_an_unexpected_repository_is_refused_in_git_annexs_words(
    environment: Environment,
) -> None:
    repository = make_repository(environment, environment.directory / "r", "r")
    with environment.applied():
        session = stream_session(Directory(str(repository.path)), Caller(CLIENT, 20.0), server=SERVER)
        error = await failure(session)
    assert str(SERVER) in str(error)


async def test_a_missing_git_annex_shell_error_says_where_it_comes_from(environment: Environment) -> None:
    environment.env["PATH"] = str(environment.bin)
    # git is still needed to know which variables not to hand on.
    (environment.bin / "git").symlink_to("/usr/bin/git")
    with environment.applied():
        error = await failure(stream_session(parse_address("/somewhere"), Caller(CLIENT, 20.0)))
    assert isinstance(error, Unreachable)
    assert "cannot run 'git-annex-shell': No such file or directory; git-annex-shell comes with git-annex" in str(error)


async def test_a_program_that_is_not_executable_is_unreachable(environment: Environment) -> None:
    program = environment.program("git-annex-shell", "#!/bin/sh\n")
    program.chmod(0o644)
    transport = ProcessTransport([str(program)], name="a child", environment=environment.env)
    error = await failure(StreamSession(transport, client=CLIENT))
    assert isinstance(error, Unreachable)
    assert "Permission denied" in str(error)


REPOSITORY_VARIABLES = {
    "GIT_DIR": "/elsewhere/.git",
    "GIT_WORK_TREE": "/elsewhere",
    "GIT_INDEX_FILE": "/elsewhere/index",
    "GIT_PREFIX": "sub/",
    "GIT_OBJECT_DIRECTORY": "/elsewhere/objects",
    "GIT_CONFIG_PARAMETERS": "'annex.uuid'='x'",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "annex.uuid",
    "GIT_CONFIG_VALUE_0": "x",
}


@pytest.mark.parametrize("url", ["/some where", "host:/some where"])
async def test_a_child_sees_no_git_variable_of_our_own_repository(environment: Environment, url: str) -> None:
    for name in ("git-annex-shell", "ssh"):
        environment.program(name, '#!/bin/sh\nenv -0 > "$HOME/variables"\nprintf "%s\\0" "$@" > "$HOME/arguments"\n')
    environment.env.update(REPOSITORY_VARIABLES, GIT_ANNEX_SHELL_READONLY="1", GIT_SSH_VARIANT="ssh")
    with environment.applied():
        await failure(stream_session(parse_address(url), Caller(CLIENT, 20.0), server=SERVER))
    seen = dict(line.split("=", 1) for line in (environment.home / "variables").read_text().split("\0")[:-1])
    assert not set(seen) & set(REPOSITORY_VARIABLES)
    assert seen["GIT_ANNEX_SHELL_READONLY"] == "1"
    assert seen["HOME"] == str(environment.home)
    arguments = (environment.home / "arguments").read_text().split("\0")[:-1]
    words = shlex.split(arguments[-1]) if url.startswith("host") else ["git-annex-shell", *arguments]
    assert words == ["git-annex-shell", "p2pstdio", "/some where", str(CLIENT), "--uuid", str(SERVER)]


async def test_a_token_is_never_an_argument(environment: Environment) -> None:
    with environment.applied():
        session = stream_session(parse_address("/somewhere"), Caller(CLIENT), token="sesame0pen")
    assert isinstance(session.transport, ProcessTransport)
    assert session.transport.token is None
    assert not [word for word in session.transport.command if "sesame0pen" in word]


# What a child says


async def test_a_childs_stderr_tail_is_in_the_error(environment: Environment) -> None:
    error = await failure(child(environment, "echo 'the disk is not mounted' >&2; exit 1"))
    assert isinstance(error, ConnectionLost)
    assert str(error).endswith("closed while authenticating: the disk is not mounted")


async def test_the_stderr_tail_within_a_request_is_in_the_error(environment: Environment) -> None:
    error = await failure(child(environment, f"{HELLO}; read request; echo 'killed by the cat' >&2"))
    assert isinstance(error, ConnectionLost)
    assert str(error).endswith("closed while waiting for an answer: killed by the cat")


async def test_the_stderr_tail_becomes_one_line_without_control_characters(environment: Environment) -> None:
    said = r"first\n\n  \033[31msecond\r\n\tthird\033]0;title\007 \302\233 \377\n"
    error = await failure(child(environment, f"printf '{said}' >&2"))
    assert str(error).endswith(r": first; \x1b[31msecond; third\x1b]0;title\x07 \x9b \xff")


async def test_long_stderr_keeps_its_end(environment: Environment) -> None:
    error = await failure(child(environment, "seq 100000 >&2; echo and then it broke >&2"))
    assert str(error).endswith("; 99999; 100000; and then it broke")
    assert len(str(error)) < 1000


async def test_a_child_writing_much_stderr_is_never_blocked(environment: Environment) -> None:
    talk = "dd if=/dev/zero bs=65536 count=48 2>/dev/null >&2"
    session = child(environment, f"{talk}; {HELLO}; read request; {talk}; echo SUCCESS; {talk}; cat")
    assert await session.check_present(KEY)
    await session.aclose()


async def test_a_child_speaking_another_protocol_is_a_protocol_error(environment: Environment) -> None:
    error = await failure(child(environment, "echo 'Welcome to the machine!'; cat"))
    assert isinstance(error, ProtocolError)
    assert "unknown message 'Welcome'" in str(error)


async def test_a_silent_child_times_out_with_its_stderr_tail(environment: Environment) -> None:
    error = await failure(child(environment, "echo 'password?' >&2; exec sleep 60", timeout=0.3))
    assert isinstance(error, TimedOut)
    assert str(error).endswith("no progress for 0.3 seconds while authenticating: password?")
    environment.assert_no_process_left(0)


# Its end


@pytest.mark.parametrize(
    "script",
    [
        "cat > /dev/null",
        "exec sleep 60",
        "sleep 60; true",
        "(sleep 60; true); true",
        "trap '' TERM HUP; sleep 60; true",
        "trap 'sleep 60' TERM; sleep 60; true",
        "kill -STOP $$",
    ],
    ids=[
        "that waits for the end of its input",
        "that does not",
        "with a child",
        "with children",
        "that ignores SIGTERM",
        "that goes on after SIGTERM",
        "that is stopped",
    ],
)
async def test_a_child_ends_with_its_connection_within_three_grace_periods(
    environment: Environment, script: str
) -> None:
    before = descriptors()
    transport = ProcessTransport(["sh", "-c", f"echo; {script}"], name="a child", environment=environment.env)
    connection = await transport.connect()
    assert await connection.receive(1) == b"\n"
    start = time.monotonic()
    await connection.aclose(0.3)
    assert time.monotonic() - start < 0.9 + 1.0
    environment.assert_no_process_left(0)
    assert wait_until(lambda: descriptors() <= before)


async def test_a_child_ends_with_its_session(environment: Environment) -> None:
    session = child(environment, f"{HELLO}; cat > /dev/null; sleep 0.2")
    await session.open()
    await session.aclose()
    environment.assert_no_process_left(0)


async def test_a_child_ends_when_its_request_is_cancelled(environment: Environment) -> None:
    before = descriptors()
    session = child(environment, f"trap '' TERM; {HELLO}; sleep 60")
    with anyio.move_on_after(0.3) as scope:
        await session.check_present(KEY)
    assert scope.cancelled_caught
    environment.assert_no_process_left(0)
    assert session.version is None
    assert wait_until(lambda: descriptors() <= before)


async def test_a_child_that_stops_reading_is_killed(environment: Environment) -> None:
    content = Pieces(*[b"x" * 100_000] * 10)
    session = child(environment, f"{HELLO}; read request; echo PUT-FROM 0; exec sleep 60", timeout=0.5)
    with pytest.raises(TimedOut, match="while sending content"):
        await session.store(Key("SHA256E-s1000000--abc"), AssociatedFile(), content)
    environment.assert_no_process_left(0)


async def test_a_daemon_left_by_a_child_is_left_alone_and_not_waited_for(environment: Environment) -> None:
    # As the master of a shared ssh connection: in a session of its own, and holding standard error open.
    session = child(environment, f"setsid sleep 60 </dev/null >/dev/null & {HELLO}; exit")
    await session.open()
    assert wait_until(lambda: "sleep 60" in commands(environment))
    with anyio.fail_after(4):
        await session.aclose()
    _end_the_one_left(environment)


def commands(environment: Environment) -> list[str]:
    return [process.command for process in environment.processes()]


def _end_the_one_left(environment: Environment) -> None:
    left = environment.processes()
    assert [process.command for process in left] == ["sleep 60"]
    os.kill(left[0].pid, signal.SIGKILL)


async def test_a_process_detached_from_a_child_survives_its_kill(environment: Environment) -> None:
    script = "setsid sleep 60 </dev/null >/dev/null 2>&1 & sleep 61 & echo; wait"
    transport = ProcessTransport(["sh", "-c", script], name="a child", environment=environment.env)
    connection = await transport.connect()
    await connection.receive(1)
    assert wait_until(lambda: {"sleep 60", "sleep 61"} <= set(commands(environment)))
    await connection.aclose(0.3)
    _end_the_one_left(environment)


async def test_a_bounded_amount_of_a_childs_stderr_is_kept(environment: Environment) -> None:
    script = "yes | head -c 3000000 >&2; echo; cat"
    transport = ProcessTransport(["sh", "-c", script], name="a child", environment=environment.env)
    connection = await transport.connect()
    assert isinstance(connection, _ProcessConnection)
    await connection.receive(1)
    assert 0 < len(connection._stderr.last) <= 8192
    await connection.aclose(1.0)


async def test_a_child_whose_stderr_stays_open_is_not_waited_for(
    environment: Environment,
) -> None:
    session = child(environment, "echo 'gone' >&2; setsid sleep 60 </dev/null >/dev/null & exit 1")
    start = time.monotonic()
    error = await failure(session)
    assert str(error).endswith(": gone")
    assert time.monotonic() - start < 4
    for process in environment.processes():
        os.kill(process.pid, signal.SIGKILL)


async def test_children_leave_nothing_behind(environment: Environment) -> None:
    before = descriptors()
    for _ in range(5):
        session = child(environment, f"{HELLO}; cat > /dev/null")
        await session.open()
        await session.aclose()
    environment.assert_no_process_left(0)
    assert wait_until(lambda: descriptors() <= before)


async def test_a_child_that_died_while_idle_is_restarted(environment: Environment) -> None:
    session = child(environment, f"{HELLO}; read request; echo SUCCESS")
    assert await session.check_present(KEY)
    assert wait_until(lambda: session._stream is not None and session._stream.ended())
    assert await session.check_present(KEY)
    await session.aclose()


# A directory on a mount whose server does not answer


class Mount:
    """A mount that hangs: every access to a directory on it blocks in the kernel."""

    def __init__(self) -> None:
        self.answers = threading.Event()

    def identity(self, place: str) -> tuple[int, int]:
        self.answers.wait(30)
        return 1, 2


@pytest.fixture
def mount(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mount]:
    made = Mount()
    monkeypatch.setattr("cluster_remote.transport.mountcheck._identity", made.identity)
    monkeypatch.setattr("cluster_remote.transport.mountcheck._mounts", lambda: "1 0 0:1 / / rw - nfs4 nas:/ rw\n")
    yield made
    made.answers.set()


def on_mount(environment: Environment, timeout: float) -> StreamSession:
    script = HELLO + "; while read request; do echo FAILURE; done"
    transport = ProcessTransport(["sh", "-c", script], name="a disk", environment=environment.env, directory="/mnt")
    return StreamSession(transport, client=CLIENT, timeout=timeout)


async def test_a_hung_mount_blocks_nobody_else_and_times_out(environment: Environment, mount: Mount) -> None:
    session, ticks = on_mount(environment, 0.5), []

    async def tick() -> None:
        while True:
            ticks.append(anyio.current_time())
            await anyio.sleep(0.01)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        error = await failure(session)
        tasks.cancel_scope.cancel()
    assert isinstance(error, TimedOut)
    assert len(ticks) > 10
    environment.assert_no_process_left(0)


async def test_a_mount_that_hangs_later_loses_its_connection(environment: Environment, mount: Mount) -> None:
    mount.answers.set()
    session = on_mount(environment, 0.5)
    assert not await session.check_present(KEY)
    assert not await session.check_present(KEY)
    mount.answers.clear()
    assert isinstance(await failure(session), TimedOut)
    mount.answers.set()
    assert not await session.check_present(KEY)
    await session.aclose()
    environment.assert_no_process_left(0)
