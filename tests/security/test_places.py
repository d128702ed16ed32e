"""Repositories, sockets and hosts that may be a stranger's: refused before anything of them is used."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import anyio
import pytest

from cluster_remote.annex.disk import ask_disk
from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import Repository as Ours
from cluster_remote.cluster.opening import resolved
from cluster_remote.diagnosis.content import move_aside
from cluster_remote.diagnosis.disks import _paths_of
from cluster_remote.lifecycle.remote_steps import Enable, Initremote, RemoveRemote
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.steps import Command, Plan, carry_out
from cluster_remote.p2p.errors import ConnectionLost, Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.transport.address import Directory, Tcp, Unix, parse_address
from cluster_remote.transport.network import Network
from cluster_remote.transport.opening import Caller, session_at
from cluster_remote.transport.trust import Refusal, check_directory, connectable
from tests.remote.testbed import Testbed, text
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository

CLIENT = UUID("11111111-2222-4333-8444-555555555555")
pytestmark = pytest.mark.anyio
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to others")


@pytest.fixture
def nested(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> tuple[Repository, Repository]:
    """A repository, and one inside its work tree whose hook leaves a trace."""
    for name, value in environment.env.items():
        monkeypatch.setenv(name, value)
    outer = make_repository(environment, environment.directory / "outer", "outer")
    inner = make_repository(environment, outer.path / "data/inner", "inner")
    return outer, inner


async def asked(path: str, here: Repository) -> str:
    """What comes of a session with a repository at `path`: who it is, or why not."""
    session = session_at(Directory(path), Caller(CLIENT, 20.0, repository=Ours.here(here.path)))
    try:
        return str(await session.open())
    except Unreachable as error:
        return str(error)
    finally:
        await session.aclose()


async def test_a_repository_inside_the_work_tree_is_refused(
    nested: tuple[Repository, Repository], monkeypatch: pytest.MonkeyPatch
) -> None:
    outer, inner = nested
    link = outer.path.parent / "link"
    link.symlink_to(inner.path)
    monkeypatch.chdir(outer.path)
    for path in (
        inner.path,
        inner.path / ".git",
        link,
        "/proc/self/cwd/data/inner",
        f"{outer.path}/.git/../data/inner",
    ):
        assert "inside the work tree" in await asked(str(path), outer)
    # A link in the work tree is as much a stranger's.
    (outer.path / "out").symlink_to(make_repository(outer.environment, link.parent / "apart", "apart").path)
    assert "inside the work tree" in await asked(str(outer.path / "out"), outer)
    for allowed in (outer.path, outer.path / ".git"):
        assert await asked(str(allowed), outer) == outer.uuid
    assert await asked(str(inner.path), inner) == inner.uuid


async def test_damaged_content_is_moved_aside_in_no_repository_that_may_be_a_stranger_s(
    nested: tuple[Repository, Repository],
) -> None:
    outer, inner = nested
    key = inner.add("f", b"content")
    inner.damage_object(key)
    await move_aside(inner.path, Ours.here(outer.path), [Key(key)])
    assert inner.has_object(key)
    await move_aside(inner.path, Ours.here(inner.path), [Key(key)])
    assert not inner.has_object(key)


def test_an_unverified_remote_shows_no_directory() -> None:
    """git would run there, and a look may mount what is there."""
    for state, expected in (("automatic", {}), ("verified", {CLIENT: Path("/evil")})):
        settings = {"annex-uuid": CLIENT, "annex-directory": "/evil", "annex-verified": state}
        config = GitConfig.parse("".join(f"remote.evil.{name}\n{value}\0" for name, value in settings.items()).encode())
        assert _paths_of(config, Path("/here"), [CLIENT]) == expected


async def test_a_repository_that_any_clone_brought_along_is_refused(nested: tuple[Repository, Repository]) -> None:
    """Not only into the work tree that we run in: there may be another, or one around it."""
    outer, _ = nested
    top = outer.path.parent
    (outer.path / "evil").mkdir()
    for name, content in (("HEAD", b"ref: refs/heads/main\n"), ("refs/.keep", b""), ("objects/.keep", b"")):
        outer.write(f"evil/{name}", content)
    outer.write("evil/config", f"[annex]\n\tuuid = {CLIENT}\n\tversion = 10\n".encode())
    outer.git("-c", "annex.largefiles=nothing", "add", "-f", "evil")
    outer.git("commit", "-q", "-m", "evil")
    outer.git("worktree", "add", "-q", str(top / "another"))
    (top / "another/evil/annex").mkdir()
    other = make_repository(outer.environment, top / "other", "other")
    module = make_repository(outer.environment, outer.path / "module", "module")
    outer.git("add", "module")
    for here, path in (
        (Repository(top / "another", outer.environment), outer.path / "evil"),
        (other, top / "another/evil"),
        (other, top / "another/evil/annex"),
        (module, outer.path / "evil"),
    ):
        assert "came with the clone" in await asked(str(path), here)
    # Of a submodule only its commit is committed.
    assert await asked(str(module.path), other) == module.uuid
    (outer.path / ".git/index").write_bytes(b"damaged")
    assert "may have come with the clone" in await asked(str(outer.path / "evil"), other)
    # A directory that git does not take for a repository is no clone.
    (outer.path / ".git/HEAD").unlink()
    assert "came with the clone" not in await asked(str(outer.path / "evil"), other)


async def test_committed_files_around_a_repository_are_not_the_repository(
    nested: tuple[Repository, Repository],
) -> None:
    """Git commits no .git, so the user made this repository where a clone had some files."""
    outer, inner = nested
    other = make_repository(outer.environment, outer.path.parent / "other", "other")
    hidden = (inner.path / ".git").rename(outer.path.parent / "hidden")
    outer.write("data/inner/file", b"content")
    outer.git("-c", "annex.largefiles=nothing", "add", "data/inner/file")
    hidden.rename(inner.path / ".git")
    assert await asked(str(inner.path), other) == inner.uuid


@pytest.mark.parametrize("kind", ["pipe", "garbage", "long name"])
async def test_what_cannot_be_looked_at_is_left_to_git_annex_shell(tmp_path: Path, kind: str) -> None:
    """It says what is wrong, and other nodes are used meanwhile."""
    directory = tmp_path / (300 * "x" if kind == "long name" else "odd")
    if kind != "long name":
        directory.mkdir()
    if kind == "pipe":
        os.mkfifo(directory / ".git")
    elif kind == "garbage":
        (directory / ".git").write_bytes(b"gitdir: \0\n")
    for path in (directory, directory / "inside"):
        with anyio.fail_after(20):
            await ask_disk(check_directory, str(path), None, os.environ)


async def test_a_node_inside_the_work_tree_is_refused(own_testbed: Testbed) -> None:
    client = own_testbed.client
    inner = make_repository(own_testbed.environment, client.path / "node", "inner")
    client.git("remote", "add", "inner", str(inner.path))
    client.git("fetch", "-q", "inner")
    client.annex("info", "inner")
    client.annex("initcluster", "nested")
    client.git("config", "remote.inner.annex-cluster-node", "nested")
    client.annex("updatecluster")
    client.git("config", "--unset", "remote.inner.annex-uuid")
    here = Ours.here(client.path)
    with own_testbed.environment.applied(client.path):
        assert (await resolved(await here.current_config(), here)).remote_uuid("inner") is None
    client.git("config", "remote.inner.annex-uuid", inner.uuid)
    done = own_testbed.environment.run(
        *("git", "annex", "initremote", "n", f"--sameas={client.config('annex.cluster.nested')}", "--private"),
        *("type=external", "externaltype=cluster", "encryption=none"), cwd=client.path,
    )  # fmt: skip
    key = client.add("f", b"f")
    done = client.annex("copy", "--to", "n", "f", check=False)
    assert "inside the work tree" in text(done)
    assert not inner.has_object(key)


@as_root
async def test_a_repository_of_another_owner_is_refused_unless_the_user_trusts_it(
    nested: tuple[Repository, Repository],
) -> None:
    outer, _ = nested
    other = make_repository(outer.environment, outer.path.parent / "other", "other")
    run = outer.environment.run
    run("chown", "-R", "12345", other.path)
    said = await asked(str(other.path), outer)
    assert f"git config --global --add safe.directory {other.path}" in said
    run("chown", "0", other.path)
    assert "safe.directory" in await asked(str(other.path), outer)
    outer.git("config", "--global", "--add", "safe.directory", str(other.path))
    run("chown", "12345", other.path)
    assert await asked(str(other.path), outer) == other.uuid


@as_root
async def test_another_owner_is_found_behind_what_leads_to_his_repository(
    nested: tuple[Repository, Repository],
) -> None:
    outer, _ = nested
    top = outer.path.parent
    other = make_repository(outer.environment, top / "other.git", "other")
    ours = top / "ours"
    ours.mkdir()
    (ours / ".git").write_text("gitdir: ../other.git/.git\n")
    (top / "link").symlink_to(other.path)
    (other.path / "sub/ours").mkdir(parents=True)
    outer.environment.run("chown", "-R", "12345", other.path)
    outer.environment.run("chown", "0", other.path / "sub/ours", other.path / ".git/annex")
    # git-annex-shell adds .git to the name of a directory that there is not, and uses what is around a directory.
    for path in (
        *(ours, top / "other", top / "link", f"{top}/link/"),
        *(other.path / "sub/ours", top / "link/sub/ours", other.path / ".git/annex"),
    ):
        assert "safe.directory" in await asked(str(path), outer)


@as_root
async def test_a_socket_of_another_user_gets_no_token(environment: Environment) -> None:
    directory = environment.directory / "open"
    directory.mkdir()
    directory.chmod(0o1777)
    environment.directory.chmod(0o755)
    path = directory / "socket"
    code = (
        "import os, socket, sys\nos.setuid(12345)\ns = socket.socket(socket.AF_UNIX)\ns.bind(sys.argv[1])\ns.listen()\n"
        "print('up', flush=True)\nprint(s.accept()[0].recv(100), flush=True)"
    )
    with environment.popen(sys.executable, "-c", code, path) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        session = session_at(Unix(str(path)), Caller(CLIENT, 20.0), token="secret")
        with pytest.raises(Refusal, match="12345"):
            await session.open()
        await session.aclose()
        assert server.stdout.readline() == b"b''\n"
    # In a directory of that user's own, it is the expected one.
    os.chown(directory, 12345, -1)
    path.unlink()
    with environment.popen(sys.executable, "-c", code, path) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"up\n"
        session = session_at(Unix(str(path)), Caller(CLIENT, 20.0), token="secret")
        with pytest.raises(ConnectionLost):
            await session.open()
        await session.aclose()
        assert b"secret" in server.stdout.readline()


@pytest.mark.parametrize(
    ("address", "allowed", "may"),
    [
        ("8.8.8.8", "", True),
        ("127.0.0.1", "", False),
        ("127.0.0.1", "all", True),
        ("127.0.0.1", "10.0.0.1 127.0.0.1", True),
        ("127.0.0.1", "[127.0.0.1]:80", True),
        ("127.0.0.1", "[127.0.0.1]:81", False),
        ("127.0.0.1", "nonsense", False),
        ("10.1.2.3", "", False),
        ("192.168.1.1", "", False),
        ("169.254.169.254", "", False),
        ("0.0.0.0", "", False),
        ("224.0.0.1", "", False),
        ("::1", "", False),
        ("::1", "::1", True),
        ("fe80::1%eth0", "", False),
        ("fd00::1", "", False),
        ("fec0::1", "", False),
        ("::ffff:127.0.0.1", "", False),
        ("::ffff:127.0.0.1", "127.0.0.1", True),
        ("2002:7f00:1::", "", False),
        ("64:ff9b::7f00:1", "", False),
        ("64:ff9b:1::7f00:1", "", False),
        ("::ffff:0:127.0.0.1", "", False),
        ("::127.0.0.1", "", False),
        ("::127.0.0.1", "127.0.0.1", True),
        ("2606:4700:4700::1111", "", True),
        ("127.0.0.1", None, True),
    ],
)
def test_which_addresses_a_shared_url_may_lead_to(address: str, allowed: str | None, may: bool) -> None:
    assert connectable(address, 80, allowed) is may


async def test_a_shared_url_leads_to_no_address_of_this_machine_unless_that_is_allowed() -> None:
    caller = Caller(CLIENT, 5.0)
    for host in ("localhost", "127.0.0.1", "::1"):
        session = session_at(Tcp(host, 1), caller.restricted_to(""), token="secret")
        with pytest.raises(Refusal, match=r"annex\.security\.allowed-ip-addresses"):
            await session.open()
    session = session_at(Tcp("127.0.0.1", 1), caller.restricted_to("127.0.0.1"), token="secret")
    with pytest.raises(Unreachable, match="refused"):
        await session.open()


async def test_a_name_that_leads_elsewhere_when_it_is_asked_again_is_asked_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """DNS rebinding: what is checked has to be what is connected to."""
    answers = iter(["93.184.215.14", "127.0.0.1"])
    tried: list[str] = []

    async def resolve(host: str, port: int) -> list[tuple[int, int, int, str, tuple[str, int]]]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers), port))]

    async def connect(host: str, port: int) -> None:
        tried.append(host)
        raise OSError("nobody is there")

    monkeypatch.setattr(anyio, "getaddrinfo", resolve)
    monkeypatch.setattr(anyio, "connect_tcp", connect)
    with pytest.raises(Unreachable):
        await Network("").connect("stranger.example", 80)
    assert tried == ["93.184.215.14"]


async def test_a_proxy_takes_no_shared_url_to_where_it_may_not_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proxy resolves the name: nobody here knows which address it connects to."""
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.2)
        monkeypatch.setenv("ALL_PROXY", f"socks5h://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        for url in ("tcp://example.invalid:1", "tls://example.invalid:1", "annex+http://example.invalid/git-annex/"):
            session = session_at(
                parse_address(url), Caller(CLIENT, 5.0).restricted_to(""), server=CLIENT, token="secret"
            )
            with pytest.raises(Refusal, match="through a proxy"):
                await session.open()
            await session.aclose()
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_shared_and_private_remotes_differ_in_that(own_testbed: Testbed) -> None:
    """The url of a private remote is one that this user has given; that of another may have come from anybody."""
    client = own_testbed.client
    client.git("config", "annex.security.allowed-ip-addresses", "10.0.0.1")
    for private, words in ((True, "Connection refused"), (False, "allowed-ip-addresses")):
        done = client.annex(
            *("initremote", f"p{private}", f"--sameas={own_testbed.cluster.uuid}", *(["--private"] if private else [])),
            *("type=external", "externaltype=cluster", "encryption=none", "url=tcp://127.0.0.1:1"),
            env={"CLUSTER_REMOTE_TOKEN": "secret"}, check=False,
        )  # fmt: skip
        assert words in text(done)


def test_programs_get_no_token(environment: Environment) -> None:
    repository = make_repository(environment, environment.directory / "r", "r")
    code = (
        "import os; from cluster_remote.annex.repository import *; r = Repository.here()\n"
        "assert 'CLUSTER_REMOTE_TOKEN' in os.environ\n"
        "for e in (foreign_environment(), r.environment()): assert 'CLUSTER_REMOTE_TOKEN' not in e"
    )
    environment.run(sys.executable, "-c", code, cwd=repository.path, env={"CLUSTER_REMOTE_TOKEN": "secret"})


async def test_a_token_is_given_to_what_is_set_up_with_it_and_to_nothing_that_is_undone(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_repository(environment, environment.directory / "r", "r")
    monkeypatch.setenv("CLUSTER_REMOTE_TOKEN", "secret")
    given: list[tuple[str, bool]] = []

    async def code(self: Runner, argv: Sequence[str], environment: Mapping[str, str], timeout: float) -> int:
        given.append((" ".join(argv), "CLUSTER_REMOTE_TOKEN" in environment))
        return int(argv[0] == "false")

    monkeypatch.setattr(Runner, "_code", code)
    steps = (
        RemoveRemote("old", (Enable("old", ("url=old",), None),)),
        Initremote(("git", "annex", "initremote", "new"), name="new"),
        Enable("cl", ("url=new",), ("url=old",)),
        Command(("git", "fetch")),
        Command(("false",)),
    )
    with pytest.raises(CommandFailed):
        await carry_out(Plan(steps), Runner(Ours.here(made.path), lambda line: None))
    assert given == [
        ("git annex initremote new", True),
        ("git annex enableremote cl url=new", True),
        ("git fetch", False),
        ("false", False),
        ("git annex enableremote cl url=old", False),
        ("git annex enableremote old url=old", False),
    ]


def test_the_hook_of_a_repository_that_came_with_a_clone_is_not_run(environment: Environment) -> None:
    """The whole attack: a bare repository in the work tree, and a remote in the branch that leads there."""
    from tests.security.stranger import autoenabled, commit

    source = make_repository(environment, environment.directory / "source", "source")
    bare = source.path / "ev.git"
    environment.run("git", "init", "-q", "--bare", bare)
    caught = environment.directory / "caught"
    hook = bare / "hooks/reference-transaction"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch '{caught}'\n")
    hook.chmod(0o755)
    (bare / "refs/heads/.keep").write_text("")
    (bare / "objects/.keep").write_text("")
    identity, line = autoenabled("/proc/self/cwd/ev.git")
    environment.run("git", "-C", bare, "config", "annex.uuid", identity)
    source.git("-c", "annex.largefiles=nothing", "add", "-f", "ev.git")
    source.git("commit", "-q", "-m", "data")
    commit(source, "remote.log", line)
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    victim = Repository(environment.directory / "victim", environment)
    caught.unlink(missing_ok=True)
    victim.annex("init", "victim")
    victim.annex("info", "evil", check=False)
    victim.annex("fsck", "--fast", "--from", "evil", check=False)
    victim.annex("get", "--from", "evil", ".", check=False)
    assert not Path(caught).exists()
