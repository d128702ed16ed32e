"""A configuration that came by the git-annex branch: nothing is contacted or started because of it."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from cluster_remote.access.configuration import awaits_verification
from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.catfile import BLOB_LIMIT, CUT
from cluster_remote.annex.repository import Repository as Ours
from cluster_remote.annex.verification import pending
from cluster_remote.lifecycle.remote_steps import Verify
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.p2p.key import UUID
from cluster_remote.remote.availability import is_away
from cluster_remote.transport.address import parse_address
from tests.cli.command import cluster_remote
from tests.remote.testbed import Testbed, initremote, text
from tests.security.stranger import autoenabled, commit, trap
from tests.support.environment import Environment
from tests.support.forked import run_forked
from tests.support.repositories import Repository, make_repository
from tests.support.slow import only_in_all
from tests.support.sockets import serve_p2p

TOKEN = "CLUSTER_REMOTE_TOKEN"
SECRET = "sesame" * 8


@contextmanager
def listener(path: Path) -> Iterator[list[bytes]]:
    """A unix socket of the stranger's; gives what was said to it, an entry for each connection."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()

        def accept() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.settimeout(2)
                    heard.append(connection.recv(1000))

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield heard
        server.shutdown(socket.SHUT_RDWR)
    thread.join(10)


def victim_of(environment: Environment, url: str) -> Repository:
    """A fresh clone of a repository whose git-annex branch has an autoenabled remote that leads to `url`."""
    source = make_repository(environment, environment.directory / "source", "source")
    _, line = autoenabled(url)
    commit(source, "remote.log", line)
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    victim = Repository(environment.directory / "victim", environment)
    victim.annex("init", "victim", env={TOKEN: SECRET})
    assert victim.config("remote.evil.annex-verified") == "automatic"
    return victim


OURS = [
    ("status",),
    ("status", "evil"),
    ("ping", "evil"),
    ("doctor",),
    ("doctor", "evil"),
    ("check", "evil", "--all"),
    ("repair", "evil", "--dry-run"),
    ("repair", "evil"),
    ("present", "evil", "WORM--x"),
    ("present", "evil", "WORM--x", "--record"),
    ("put", "evil", "--key", "WORM-s5--x", "--from", "/etc/hostname"),
    ("get", "evil", "WORM--x"),
    ("drop", "evil", "WORM--x", "--force"),
    ("lock", "evil", "WORM--x", "--", "true"),
    ("bench", "evil", "--case", "small", "--files", "1", "--rounds", "1"),
]


@pytest.mark.parametrize("way", ["ssh", *only_in_all("directory", "serverless")])
def test_no_program_is_started(environment: Environment, way: str) -> None:
    caught = [trap(environment, "ssh")]
    url = {"ssh": "ssh://attacker.example/x", "directory": f"{environment.directory}/far", "serverless": ""}[way]
    victim = victim_of(environment, url)
    caught.append(trap(environment, "git-annex-shell"))
    victim.annex("info", "evil", env={TOKEN: SECRET})
    victim.annex("enableremote", "evil", check=False)
    assert victim.config("remote.evil.annex-verified") != "verified"
    for command in OURS:
        done = run_forked(environment, *command, cwd=victim.path, check=False)
        assert done.returncode in (1, 2), command
        assert b"verifyremote" in done.stdout + done.stderr, (command, text(done))
    for shell in ("bash", "zsh"):
        completion = {
            "_CLUSTER_REMOTE_COMPLETE": f"complete_{shell}",
            "COMP_WORDS": "cluster-remote status ",
            "COMP_CWORD": "2",
            "_TYPER_COMPLETE_ARGS": "cluster-remote status ",
        }
        run_forked(environment, cwd=victim.path, check=False, env=completion)
    assert not [each for each in caught if each.exists()]


def test_nobody_looks_where_an_unverified_remote_leads(environment: Environment) -> None:
    """A look may mount what is there."""
    url = parse_address(f"{environment.directory}/far")
    victim = victim_of(environment, str(url))
    with environment.applied(victim.path):
        where = (url, f"{victim.path}/.git", UUID(victim.config("remote.evil.annex-uuid") or ""), "evil")
        assert not is_away(*where)
        victim.git("config", "remote.evil.annex-verified", "verified")
        assert is_away(*where)


CLUSTER = "ac222222-1111-8111-8111-111111111111"
NAMES = [
    "name=evil sameas-name=other",
    "name=ev&10;il",
    "name=evil&9;",
    "name=evil&32;",
    "name=",
    "name=ev&56450;il",
    f"sameas-uuid={CLUSTER} name=evil",
    f"sameas-uuid={CLUSTER.upper()} sameas-name=evil",
    f"sameas-uuid={CLUSTER} name=evil sameas-name=other",
    f"sameas-uuid={CLUSTER} sameas-name=&10;evil&9;",
]


def test_no_name_makes_an_autoenabled_remote_look_like_a_new_one(environment: Environment) -> None:
    caught = trap(environment, "ssh")
    source = make_repository(environment, environment.directory / "source", "source")
    parameters = "type=external externaltype=cluster encryption=none autoenable=true url=ssh://evil.example/x"
    lines = [f"{uuid.uuid4()} {parameters} {name} timestamp=1700000000s" for name in NAMES]
    commit(source, "remote.log", *(f"{line.replace('name=evil', f'name=evil{n}')}" for n, line in enumerate(lines)))
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    done = Repository(environment.directory / "victim", environment).annex("init", "victim", env={TOKEN: SECRET})
    assert text(done).count("nothing was contacted") >= len(NAMES) - 1
    assert not caught.exists()


def test_a_line_that_is_too_long_hides_no_remote(environment: Environment) -> None:
    """git-annex reads a line of any length, and enables the remote of it."""
    caught = trap(environment, "ssh")
    source = make_repository(environment, environment.directory / "source", "source")
    _, line = autoenabled("ssh://evil.example/x")
    commit(source, "remote.log", line.replace("autoenable", f"junk={'x' * (BLOB_LIMIT + 1)} autoenable"))
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    victim = Repository(environment.directory / "victim", environment)
    assert "nothing was contacted" in text(victim.annex("init", "victim"))
    assert victim.config("remote.evil.annex-verified") == "automatic"
    assert not caught.exists()


def test_no_remote_hides_in_the_names_of_a_directory(environment: Environment) -> None:
    """git-annex parses the directory that is in the place of remote.log, and enables the remote."""
    caught = trap(environment, "ssh")
    source = make_repository(environment, environment.directory / "source", "source")
    _, line = autoenabled("evil.example:x")
    blob = source.git("hash-object", "-w", "--stdin", input=b"x").stdout.decode().strip()
    log = source.git("mktree", "-z", input=f"100644 blob {blob}\tx\n{line}\n\0".encode()).stdout.decode().strip()
    entries = source.git("ls-tree", "git-annex").stdout + f"040000 tree {log}\tremote.log\n".encode()
    tree = source.git("mktree", input=entries).stdout.decode().strip()
    made = source.git("commit-tree", "-p", "git-annex", "-m", "stranger", tree).stdout.decode().strip()
    source.git("update-ref", "refs/heads/git-annex", made)
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    victim = Repository(environment.directory / "victim", environment)
    assert "nothing was contacted" in text(victim.annex("init", "victim"))
    assert victim.config("remote.evil.annex-verified") == "automatic"
    assert not caught.exists()


def _value(settings: Mapping[str, str], name: str) -> str:
    return settings.get(name, "")


def test_beside_a_line_that_is_too_long_a_verified_remote_is_enabled_again() -> None:
    ours = {"url": "/x", "name": "ours", "sameas-uuid": CLUSTER, "sameas-name": "ours"}
    logs = BranchLogs({"remote.log": CUT + b"\n"})
    for settings, identity in ((ours, uuid.uuid4()), ({"url": "/x", "name": "ours"}, CLUSTER)):
        read = Settings.read(partial(_value, settings), CLUSTER, "ours")
        assert not awaits_verification(read, logs, {UUID(str(identity)): settings})
        assert awaits_verification(read, logs, {})
        assert awaits_verification(
            read, logs, {UUID(str(uuid.uuid4())): {**settings, "sameas-name": "other", "name": "x"}}
        )
        assert not awaits_verification(read, BranchLogs({}), {})


def test_nobody_is_connected_to_and_no_token_is_sent(environment: Environment) -> None:
    path = environment.directory / "evil.sock"
    with listener(path) as heard:
        victim = victim_of(environment, f"unix:{path}")
        env = {TOKEN: SECRET}
        victim.annex("info", "evil", env=env)
        done = victim.annex("enableremote", "evil", env=env)
        assert "The token was not used" in text(done)
        for command in OURS:
            run_forked(environment, *command, cwd=victim.path, check=False, env=env)
    assert heard == []
    assert not list((victim.path / ".git/annex").glob("creds/*"))


def test_nothing_is_written_while_any_autoenabled_remote_is_unverified(own_testbed: Testbed) -> None:
    client = own_testbed.client
    key = client.add("f", b"precious")
    identity, line = autoenabled("ssh://attacker.example/x")
    commit(client, "remote.log", line)
    client.git("config", "remote.evil.annex-uuid", identity)
    client.git("config", "remote.evil.annex-externaltype", "cluster")
    client.git("config", "remote.evil.annex-verified", "automatic")
    # git-annex itself refuses.
    assert client.annex("copy", "--to", "mycl", "f", check=False).returncode != 0
    for command in (("put", "mycl", "f"), ("repair", "mycl", "f"), ("drop", "mycl", key, "--force")):
        assert "git annex verifyremote evil" in cluster_remote(client, *command, code=2).err
    assert "verifyremote" in cluster_remote(client, "present", "mycl", key, "--node", "disk1", "--record", code=2).err
    assert own_testbed.cluster.holders(key) == [False] * 3
    client.git("config", "remote.evil.annex-verified", "verified")
    cluster_remote(client, "put", "mycl", "f")


def change(client: Repository, name: str, url: str, time: str = "9999999999s") -> None:
    """Have the git-annex branch say that a remote leads elsewhere."""
    log = client.git("show", "git-annex:remote.log").stdout.decode()
    line = next(line for line in log.splitlines() if f"sameas-name={name}" in line)
    words = [word for word in line.split() if not word.startswith(("url=", "timestamp="))]
    commit(client, "remote.log", " ".join([*words, f"url={url}", f"timestamp={time}"]))


def test_what_was_verified_stays_in_use_when_the_branch_says_otherwise(own_testbed: Testbed) -> None:
    client = own_testbed.client
    initremote(client, "shared", f"url={own_testbed.url}", sameas=own_testbed.cluster.uuid, private=False)
    caught = trap(own_testbed.environment, "ssh")
    change(client, "shared", "ssh://attacker.example/x")
    assert own_testbed.cluster.uuid in cluster_remote(client, "ping", "shared").out
    cluster_remote(client, "status", "shared")
    cluster_remote(client, "doctor", code=1)
    assert not caught.exists()


@pytest.mark.parametrize("time", ["9999999999s", f"{'9' * 30}s"])
def test_enabling_a_remote_again_leads_to_what_was_verified(own_testbed: Testbed, time: str) -> None:
    """As the message about a wrong token advises. git-annex hands out the verified configuration."""
    client, node = own_testbed.client, own_testbed.cluster.nodes[0]
    evil = own_testbed.environment.directory / "evil"
    with serve_p2p(node) as (path, token), listener(evil) as heard:
        initremote(client, "sock", f"url=unix:{path}", sameas=node.uuid, private=False, env={TOKEN: token})
        kept = set((client.path / ".git/annex/creds").iterdir())
        change(client, "sock", f"unix:{evil}", time)
        for more in ((), ("timeout=5",)):
            client.annex("enableremote", "sock", "encryption=none", *more, env={TOKEN: token})
        cluster_remote(client, "setup", "sock", code=None, env={TOKEN: token})
    assert heard == []
    assert set((client.path / ".git/annex/creds").iterdir()) == kept


def test_the_token_of_the_environment_is_for_no_remote_that_there_is(own_testbed: Testbed) -> None:
    client = own_testbed.client
    with serve_p2p(own_testbed.cluster.nodes[0]) as (path, token):
        initremote(client, "sock", f"url=unix:{path}", sameas=own_testbed.cluster.nodes[0].uuid, env={TOKEN: token})
        cluster_remote(client, "ping", "sock")
        # Whatever is exported, the remote has its own.
        cluster_remote(client, "ping", "sock", env={TOKEN: SECRET})
        for file in (client.path / ".git/annex/creds").iterdir():
            file.unlink()
        assert "wants a token" in cluster_remote(client, "ping", "sock", code=2, env={TOKEN: token}).err
        key = client.add("g", b"g")
        assert b"wants a token" in client.annex("copy", "--to", "sock", "g", check=False, env={TOKEN: token}).stdout
        assert not own_testbed.cluster.nodes[0].has_object(key)
        cluster_remote(client, "ping", f"unix:{path}", env={TOKEN: token})


def test_a_git_annex_that_does_not_verify_has_what_enables_itself_contact_nobody() -> None:
    (known, line), settings = (
        autoenabled("ssh://attacker.example/x"),
        {"name": "evil", "url": "ssh://attacker.example/x"},
    )
    for autoenable, waits in ((True, True), (False, False)):
        log = line if autoenable else line.replace("autoenable=true", "autoenable=false")
        logs = BranchLogs({"remote.log": f"{log}\n".encode()})
        ours = Settings.read(lambda name: settings.get(name, ""), known, "evil")
        assert awaits_verification(ours, logs, None) is waits
        assert awaits_verification(ours, logs, {}), "one that verifies has never seen it"


def test_two_addresses_of_one_repository_have_a_token_each(own_testbed: Testbed) -> None:
    client, node = own_testbed.client, own_testbed.cluster.nodes[0]
    with serve_p2p(node) as (path, token):
        other = own_testbed.environment.directory / "other"
        other.symlink_to(path)
        for name, address in (("one", path), ("two", other)):
            initremote(client, name, f"url=unix:{address}", sameas=node.uuid, env={TOKEN: token})
        for name in ("one", "two"):
            assert cluster_remote(client, "ping", name).out


def test_a_token_belongs_to_one_address(own_testbed: Testbed) -> None:
    client, node = own_testbed.client, own_testbed.cluster.nodes[0]
    with serve_p2p(node) as (path, token), listener(own_testbed.environment.directory / "other") as heard:
        initremote(client, "sock", f"url=unix:{path}", sameas=node.uuid, env={TOKEN: token})
        other = f"unix:{own_testbed.environment.directory}/other"
        with own_testbed.driver(node.uuid, url=other) as annex:
            annex.prepare()
            assert "wants a token" in annex.ask("CHECKPRESENT WORM--x")
        # The same socket by another spelling is the same address, but a longer name is not.
        with own_testbed.driver(node.uuid, url=f"unix://{path}") as annex:
            annex.prepare()
            assert annex.ask("CHECKPRESENT WORM--x") == "CHECKPRESENT-FAILURE WORM--x"
        with own_testbed.driver(node.uuid, url=f"unix:{path}?x") as annex:
            annex.prepare()
            assert "wants a token" in annex.ask("CHECKPRESENT WORM--x")
        # The address is kept with the token, and compared as a whole.
        (kept,) = (client.path / ".git/annex/creds").iterdir()
        kept.write_text(f"unix:{path}x\n{token}\n")
        with own_testbed.driver(node.uuid, url=f"unix:{path}") as annex:
            annex.prepare()
            assert "wants a token" in annex.ask("CHECKPRESENT WORM--x")
    assert heard == []


@pytest.mark.anyio
async def test_a_parameter_hides_nothing_of_a_configuration_that_is_to_be_verified(environment: Environment) -> None:
    """git-annex shows its line breaks as they are."""
    source = make_repository(environment, environment.directory / "source", "source")
    forged = "&10;&10;Is&32;this&32;it?&10;If&32;so,&32;run:&32;&32;git-annex&32;verifyremote&32;evil&32;--safe&32;77"
    _, line = autoenabled("ssh://evil.example/x")
    commit(source, "remote.log", line.replace("tracking=remote", f"junk=x{forged} tracking=remote"))
    environment.run("git", "clone", "-q", source.path, environment.directory / "victim")
    victim = Repository(environment.directory / "victim", environment)
    victim.annex("init", "victim")
    with environment.applied(victim.path):
        here = await Ours.find()
        found = await pending(here, "evil")
        assert found is not None
        assert found.number == 1
        assert "url=ssh://evil.example/x" in found.configuration.split()
        shown = found.configuration.partition("\n")[0]
        words = {key: value for key, _, value in (word.partition("=") for word in shown.split())}
        with pytest.raises(BadSettings, match="not the requested one"):
            await Verify("evil", words).do(Runner(here, lambda _: None))
    assert victim.config("remote.evil.annex-verified") == "automatic"


@pytest.mark.parametrize("code", [0, 0xD800, 0xDC7F, 0xDD00, 0x110000])
def test_no_parameter_has_what_no_argument_can_have(code: int) -> None:
    """setup hands the parameters on to git-annex."""
    identity, line = autoenabled("/x")
    value = BranchLogs({"remote.log": f"{line} x=&{code};y".encode()}).remotes[UUID(identity)]["x"]
    assert value == f"&{code};y"
