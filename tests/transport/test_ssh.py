"""The command line for ssh: the user's own program and options as git takes them, and nothing that a url could smuggle
in; then the same against a real ssh."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster_remote.p2p.errors import ConnectionLost, SessionError, TimedOut, Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.transport.address import BadAddress, Ssh, parse_address
from cluster_remote.transport.by_process import ssh_environment
from cluster_remote.transport.opening import Caller, stream_session
from cluster_remote.transport.ssh import SshTransport, can_share, ssh_command
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Repository, make_repository
from tests.support.slow import representatives
from tests.support.ssh import SshServer

HOST = Ssh("host", "/dir", "me")
KEY = Key("SHA256E-s3--abc")
CLIENT = UUID("c11e0000-0000-4000-8000-000000000002")

# Writes down its arguments, of all its calls, and fails: enough for git to have said what it wanted. A call with -G
# asks which kind of ssh this is.
RECORDER = """\
#!/bin/sh
case " $* " in *" -G "*) exit; esac
printf '%s\\0' "$@" > "$HOME/arguments"
exit 1
"""


# The last word


@given(st.lists(st.text(st.characters(exclude_characters="\0", codec="utf-8")), min_size=1, max_size=30))
@settings(max_examples=30)
def test_the_remote_shell_sees_exactly_the_intended_words(words: list[str]) -> None:
    line = ssh_command(HOST, ["printf", "%s\\0", *words], {})[-1]
    read = subprocess.run(["sh", "-c", line], capture_output=True, check=True, timeout=10).stdout
    assert read.split(b"\0")[:-1] == [word.encode() for word in words]


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize(
    "path",
    [
        "/a b",
        "/it's",
        '/"q"',
        "/$(id)",
        "/`id`",
        "/a;ls",
        "/a\\b",
        "/!!",
        "/*",
        "~/x",
        "/caf\u00e9",
        "/\udcff",
        "/a#b",
        "/&",
    ],
)
def test_an_odd_path_reaches_git_annex_shell_unchanged(shell: str, path: str) -> None:
    line = ssh_command(HOST, ["printf", "%s", path], {})[-1]
    read = subprocess.run([shell, "-c", os.fsencode(line)], capture_output=True, check=True, timeout=10).stdout
    assert read == os.fsencode(path)


def test_an_exclamation_mark_is_escaped_outside_quotes() -> None:
    assert ssh_command(HOST, ["a b!c"], {})[-1] == r"""'a b'\!'c'"""


# Which program, with which options


@pytest.mark.parametrize(
    ("environment", "core", "start"),
    [
        ({}, None, ["ssh"]),
        ({"GIT_SSH": "/opt/my ssh"}, None, ["/opt/my ssh"]),
        ({"GIT_SSH": "/opt/my ssh"}, "ssh -F x", ["sh", "-c", 'ssh -F x "$@"', "ssh -F x"]),
        ({"GIT_SSH_COMMAND": "ssh -i 'a b'"}, "ssh -F x", ["sh", "-c", "ssh -i 'a b' \"$@\"", "ssh -i 'a b'"]),
        ({"GIT_SSH_COMMAND": "", "GIT_SSH": ""}, "", ["ssh"]),
    ],
)
def test_the_ssh_program_is_the_one_git_would_run(
    environment: Mapping[str, str], core: str | None, start: list[str]
) -> None:
    assert ssh_command(HOST, ["true"], environment, core) == [*start, "me@host", "true"]


def test_a_host_without_a_user_is_the_whole_destination() -> None:
    assert ssh_command(Ssh("host", "/dir"), ["true"], {}) == ["ssh", "host", "true"]
    assert ssh_command(Ssh("::1", "/dir"), ["true"], {}) == ["ssh", "::1", "true"]


@pytest.mark.parametrize(
    ("program", "options"),
    [
        ("ssh", ["-p", "22"]),
        ("/usr/bin/ssh", ["-p", "22"]),
        ("my-wrapper", ["-p", "22"]),
        ("plink", ["-P", "22"]),
        ("PLINK.EXE", ["-P", "22"]),
        ("tortoiseplink", ["-batch", "-P", "22"]),
        ("putty", ["-p", "22"]),
        ("simple", ["-p", "22"]),
    ],
)
def test_a_port_is_passed_as_the_program_expects(program: str, options: list[str]) -> None:
    address = Ssh("host", "/dir", port=22)
    assert ssh_command(address, ["true"], {"GIT_SSH": program})[1:-2] == options
    for line in (program, f"'{program}'", f"A=1 {program} -x", f"{program} 'unfinished"):
        assert ssh_command(address, ["true"], {"GIT_SSH_COMMAND": line})[4:-2] == options


@pytest.mark.parametrize(
    ("environment", "configured", "options"),
    [
        ({"GIT_SSH_VARIANT": "plink"}, "ssh", ["-P", "22"]),
        ({"GIT_SSH_VARIANT": "auto"}, None, ["-p", "22"]),
        ({}, "putty", ["-P", "22"]),
        ({}, "tortoiseplink", ["-batch", "-P", "22"]),
        ({"GIT_SSH": "plink"}, "ssh", ["-p", "22"]),
        ({"GIT_SSH": "plink"}, "auto", ["-P", "22"]),
    ],
)
def test_a_configured_variant_decides(
    environment: Mapping[str, str], configured: str | None, options: list[str]
) -> None:
    command = ssh_command(Ssh("host", "/dir", port=22), ["true"], environment, None, configured)
    assert command[1:-2] == options


def test_a_port_is_refused_if_the_program_cannot_take_one() -> None:
    with pytest.raises(BadAddress, match=r"ssh://host:22/dir: .*variant simple.* cannot be given a port"):
        ssh_command(Ssh("host", "/dir", port=22), ["true"], {"GIT_SSH_VARIANT": "simple"})
    assert ssh_command(Ssh("host", "/dir"), ["true"], {"GIT_SSH_VARIANT": "simple"})[-2:] == ["host", "true"]


@pytest.mark.parametrize(
    ("environment", "variant", "options", "shared"),
    [
        ({}, None, (), True),
        ({"GIT_SSH_COMMAND": "ssh -F x"}, None, (), True),
        ({"GIT_SSH": "/usr/bin/ssh"}, None, (), True),
        ({"GIT_SSH": "wrapper"}, None, (), False),
        ({"GIT_SSH": "wrapper"}, "ssh", (), True),
        ({"GIT_SSH": "wrapper", "GIT_SSH_VARIANT": "ssh"}, "simple", (), True),
        ({"GIT_SSH": "plink"}, None, (), False),
        ({}, "putty", (), False),
        ({"GIT_SSH_COMMAND": "ssh -o ControlPath=x"}, None, (), False),
        ({}, None, ("-S", "none"), False),
        ({}, None, ("-oControlMaster=no",), False),
        ({}, None, ("-o", "controlpersist=yes"), False),
    ],
)
def test_only_openssh_shares_connections_and_not_against_the_users_options(
    environment: dict[str, str], variant: str | None, options: tuple[str, ...], shared: bool
) -> None:
    assert can_share(environment, None, variant, options) is shared


HOW = ["GIT_SSH_COMMAND", "core.sshCommand", "GIT_SSH"]
NAMES = ["ssh", "plink", "tortoiseplink.exe", "other"]
VARIANTS = [None, "ssh", "plink", "putty", "tortoiseplink", "auto"]


@pytest.mark.parametrize("name", representatives(NAMES, NAMES[0], NAMES[-1]))
@pytest.mark.parametrize("how", HOW)
def test_the_program_gets_the_arguments_git_would_give_it(environment: Environment, how: str, name: str) -> None:
    program = environment.bin / "a directory" / name
    program.parent.mkdir()
    program.write_text(RECORDER)
    program.chmod(0o755)
    line = f"'{program}' -o 'An option=with spaces'"
    make_repository(environment, environment.directory / "r", "r")
    repository = Repository(environment.directory / "r", environment)
    core = line if how == "core.sshCommand" else None
    if core is not None:
        repository.git("config", "core.sshCommand", core)
    else:
        environment.env[how] = line if how == "GIT_SSH_COMMAND" else str(program)
    for variant in VARIANTS:
        if variant is not None:
            environment.env["GIT_SSH_VARIANT"] = variant
        repository.git("ls-remote", "ssh://me@host:2222/a dir", check=False)
        wanted = _recorded(environment)
        command = ssh_command(
            Ssh("host", "/a dir", "me", 2222), ["git-upload-pack", "/a dir"], environment.env, core, None
        )
        environment.run(*command, check=False)
        got = _recorded(environment)
        # git alone wants to hand on a variable of its own, and quotes the name of its program differently.
        wanted = [word for word in wanted if word not in ("-o", "SendEnv=GIT_PROTOCOL")]
        assert [word for word in got if word != "-o"] == wanted
        assert got[-1] == "git-upload-pack '/a dir'"


def _recorded(environment: Environment) -> list[str]:
    written = environment.home / "arguments"
    words = os.fsdecode(written.read_bytes()).split("\0")[:-1]
    written.unlink()
    return words


@given(
    st.lists(st.sampled_from(["-o", "ssh://", "-", "@", ":", "/", "~", "h", "%2D", "[::1]", " ", "'"]), max_size=8),
    st.sampled_from([{}, {"GIT_SSH_COMMAND": "ssh -v"}, {"GIT_SSH_VARIANT": "plink"}]),
)
def test_any_url_gives_just_a_destination_and_a_command(pieces: list[str], environment: Mapping[str, str]) -> None:
    try:
        address = parse_address("".join(pieces))
    except BadAddress:
        return
    if not isinstance(address, Ssh):
        return
    command = ssh_command(address, ["git-annex-shell", "p2pstdio", address.path], environment)
    plain = ssh_command(Ssh("host", "/dir", port=address.port), ["git-annex-shell", "p2pstdio", "/dir"], environment)
    assert command[:-2] == plain[:-2], "nothing of the url stands before the destination"
    assert not command[-2].startswith("-")
    assert command[-1].startswith("git-annex-shell p2pstdio ")


# A real ssh to a real server


def _caller(timeout: float = 30.0, ssh_command: str | None = None) -> Caller:
    return Caller(CLIENT, timeout, ssh_command)


@pytest.fixture
def repository(environment: Environment) -> Repository:
    return make_repository(environment, environment.home / 'it\'s a "repo" $(ls) 100% !', "odd")


@pytest.mark.anyio
async def test_a_repository_is_reached_by_every_form_of_ssh_address(
    environment: Environment, repository: Repository, ssh_server: SshServer
) -> None:
    host, name = ssh_server.host, repository.path.name
    quoted = name.replace("%", "%25").replace(" ", "%20")
    addresses = [
        f"{host}:{repository.path}",
        f"{ssh_server.user}@{host}:{name}",
        f"{host}:~/{name}",
        f"ssh://{host}{repository.path.parent}/{quoted}",
        f"ssh://{ssh_server.user}@127.0.0.1:{ssh_server.port}/~/{quoted}",
    ]
    server = UUID(repository.uuid)
    with environment.applied():
        for text in addresses:
            session = stream_session(parse_address(text), _caller(), server=server)
            assert await session.open() == server, text
            assert not await session.check_present(KEY)
            await session.aclose()
            environment.assert_no_process_left()


@pytest.mark.anyio
@pytest.mark.parametrize("how", HOW)
async def test_the_users_own_ssh_is_used_with_its_quotes_and_spaces(
    environment: Environment, repository: Repository, ssh_server: SshServer, how: str
) -> None:
    wrapper = environment.bin / "my own ssh"
    wrapper.write_text(
        f'#!/bin/sh\ntest "$1" = "--label=a b" && shift\n: > "$HOME/was used"\nexec {ssh_server.client_command} "$@"\n'
    )
    wrapper.chmod(0o755)
    del environment.env["GIT_SSH_COMMAND"]
    line = f"'{wrapper}' '--label=a b'"
    if how == "GIT_SSH":
        environment.env[how] = str(wrapper)
    elif how == "GIT_SSH_COMMAND":
        environment.env[how] = line
    core = line if how == "core.sshCommand" else None
    address = parse_address(f"ssh://127.0.0.1:{ssh_server.port}/~/{repository.path.name.replace('%', '%25')}")
    with environment.applied():
        session = stream_session(address, _caller(ssh_command=core), server=UUID(repository.uuid))
        assert await session.open() == UUID(repository.uuid)
        await session.aclose()
    assert (environment.home / "was used").exists()


async def _failure(environment: Environment, text: str, caller: Caller, server: UUID | None = None) -> SessionError:
    with environment.applied():
        session = stream_session(parse_address(text), caller, server=server)
        try:
            with pytest.raises(SessionError) as caught:
                await session.check_present(KEY)
        finally:
            await session.aclose()
    environment.assert_no_process_left(2.0)
    return caught.value


@pytest.mark.anyio
async def test_sshs_message_about_a_refusing_host_is_in_the_error(
    environment: Environment, ssh_server: SshServer
) -> None:
    ssh_server.stop()
    error = await _failure(environment, f"{ssh_server.host}:dir", _caller())
    assert isinstance(error, ConnectionLost)
    assert "Connection refused" in str(error)
    assert str(error).isprintable()


@pytest.mark.anyio
async def test_sshs_message_about_an_unknown_host_is_in_the_error(
    environment: Environment, ssh_server: SshServer
) -> None:
    error = await _failure(environment, "nowhere.invalid:dir", _caller())
    assert "nowhere.invalid" in str(error)
    assert "Could not resolve hostname" in str(error)


@pytest.mark.anyio
async def test_the_remote_git_annex_shells_message_is_in_the_error(
    environment: Environment, ssh_server: SshServer
) -> None:
    error = await _failure(environment, f"{ssh_server.host}:no such repository", _caller())
    assert "no such repository" in str(error)
    assert "git-annex-shell" in str(error)


@pytest.mark.anyio
async def test_a_host_without_git_annex_says_so(environment: Environment, ssh_server: SshServer) -> None:
    environment.program("git-annex-shell", "#!/bin/sh\necho 'git-annex-shell: not found' >&2\nexit 127\n")
    error = await _failure(environment, f"{ssh_server.host}:dir", _caller())
    assert "git-annex-shell: not found" in str(error)


@pytest.mark.anyio
async def test_a_missing_ssh_program_is_an_error_that_names_it(environment: Environment) -> None:
    environment.env["GIT_SSH"] = str(environment.bin / "nossh")
    error = await _failure(environment, "host:dir", _caller())
    assert isinstance(error, Unreachable)
    assert "nossh" in str(error)
    assert "No such file" in str(error)


@pytest.mark.anyio
async def test_a_hung_ssh_times_out_and_is_killed_with_the_reason_reported(environment: Environment) -> None:
    script = environment.program("slow ssh", "#!/bin/sh\ntrap '' TERM\necho 'waiting for a password' >&2\nsleep 60\n")
    environment.env["GIT_SSH_COMMAND"] = f"'{script}'"
    error = await _failure(environment, "host:dir", _caller(timeout=0.5))
    assert isinstance(error, TimedOut)
    assert "no progress for 0.5 seconds while authenticating" in str(error)
    assert "waiting for a password" in str(error)


@pytest.mark.anyio
async def test_a_returning_server_is_reconnected(
    environment: Environment, repository: Repository, ssh_server: SshServer
) -> None:
    with environment.applied():
        session = stream_session(parse_address(f"{ssh_server.host}:{repository.path}"), _caller())
        assert not await session.check_present(KEY)
        ssh_server.stop()
        assert wait_until(lambda: session._stream is not None and session._stream.ended())
        ssh_server.start()
        assert not await session.check_present(KEY)
        await session.aclose()


def test_the_programs_environment_keeps_the_ssh_variables(environment: Environment, tmp_path: Path) -> None:
    environment.env.update(GIT_DIR=str(tmp_path), GIT_SSH_VARIANT="ssh", GIT_SSH="x")
    with environment.applied():
        kept = ssh_environment()
    assert kept["GIT_SSH_VARIANT"] == "ssh"
    assert kept["GIT_SSH"] == "x"
    assert "GIT_DIR" not in kept


def test_a_refused_login_is_retried_a_few_times() -> None:
    transport = SshTransport(lambda options: ["ssh"], name="nas", environment={}, login=("nas",))
    refused = "the peer closed the connection: kex_exchange_identification: Connection closed by remote host"
    pauses = [transport.retry_delay(attempt, refused) for attempt in range(1, 7)]
    assert all(pause is not None and pause > 0 for pause in pauses[:5])
    assert pauses[5] is None
    assert transport.retry_delay(1, "Permission denied (publickey).") is None


@pytest.mark.anyio
async def test_only_a_few_logins_run_at_once_per_server() -> None:
    inside = most = 0

    async def log_in(destination: str) -> None:
        nonlocal inside, most
        async with SshTransport(lambda _: ["ssh"], name="nas", environment={}, login=(destination,)).turn():
            inside += 1
            most = max(most, inside)
            await anyio.sleep(0.01)
            inside -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(log_in, "nas")
    assert most == 4
