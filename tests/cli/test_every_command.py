"""What all commands have in common: help, JSON, exit codes, and a clear line where something is in the way.

A new command has to be added to CASES; a test says so. What ends before anything is started is tried within the test's
own process, which takes a tenth of the time.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import pytest

from cluster_remote.cli.app import every_command
from cluster_remote.cli.app import run as run_command_line
from cluster_remote.cli.render import JsonStream, emit_error
from cluster_remote.cli.schema import OUTCOMES
from tests.cli.ailing import on_a_terminal
from tests.cli.command import Done, cluster_remote
from tests.cli.outcomes import outcome
from tests.cli.test_doctor import careless
from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.processes import end_group, wait_until
from tests.support.slow import representatives

NOBODYS = "SHA256E-s5--0000000000000000000000000000000000000000000000000000000000000000"
COLOUR = re.compile(r"\x1b\[(?:[0-9;]*;)?(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[0-9;]*m")

# Stands still for as long as it is let, after it has said that it does.
STALLING = """\
#!/bin/sh
touch "$STALLED"
exec sleep 120
"""


@dataclass(frozen=True)
class Case:
    """How to bring a command into each situation; None where there is no such situation for it.

    Attributes:
        works: arguments with which it does something in the testbed's client.
        code: its exit code then.
        unknown: arguments with the name of something that does not exist; the exit code is 2.
        down: arguments with which nobody answers, and the exit code.
        outside: arguments that need a repository of git-annex; the exit code is 4 where there is none.
        waits: arguments with which it waits for a server that stands still.
        takes_remote: whether its first argument is completed with the names of remotes.
    """

    works: tuple[str, ...] | None = ()
    code: int = 0
    unknown: tuple[str, ...] | None = ("nowhere-to-be-found",)
    down: tuple[tuple[str, ...], int] | None = (("gone",), 3)
    outside: tuple[str, ...] | None = ("mycl",)
    waits: tuple[str, ...] | None = ("mycl",)
    takes_remote: bool = True


def requesting(*more: str, works: tuple[str, ...], code: int = 0) -> Case:
    """A command that asks one thing of one server."""
    return Case(
        works=works,
        code=code,
        unknown=("nowhere-to-be-found", NOBODYS, *more),
        down=(("gone", NOBODYS, *more), 3),
        outside=("mycl", NOBODYS, *more),
        waits=("mycl", NOBODYS, *more),
    )


def changing(*more: str) -> Case:
    """A command that changes a cluster, with tests of its own for what it does."""
    return Case(works=None, unknown=("nowhere-to-be-found", *more), down=None, outside=("mycl", *more), waits=None)


CASES: dict[str, Case] = {
    "setup": Case(
        works=("mycl", "{gateway}"),
        unknown=("again", "--node", "nowhere-to-be-found"),
        down=(("fresh", "/nowhere/at/all"), 3),
        outside=("mycl", "/nowhere"),
        waits=("fresh", "{gateway}"),
    ),
    "node add": changing("n1"),
    "node remove": changing("n1"),
    "node replace": changing("n1", "n2"),
    "rename": changing("other"),
    "remove": changing(),
    "ping": Case(works=("mycl",)),
    "status": Case(works=("mycl",)),
    "check": Case(works=("mycl", "--all")),
    "repair": Case(works=("mycl",)),
    "doctor": Case(works=("mycl",), down=(("gone",), 1)),
    "present": requesting(works=("mycl", "file")),
    "put": Case(
        works=("mycl", "file"),
        unknown=("nowhere-to-be-found", "--key", NOBODYS, "--from", "/dev/null"),
        down=(("gone", "--key", NOBODYS, "--from", "/dev/null"), 3),
        outside=("mycl", "--key", NOBODYS, "--from", "/dev/null"),
        waits=("mycl", "--key", NOBODYS, "--from", "/dev/null"),
    ),
    "get": requesting("--to", "{new}", works=("mycl", "file", "--to", "{new}")),
    "drop": requesting("--force", works=("mycl", NOBODYS, "--force")),
    "lock": requesting("--", "true", works=("mycl", "file", "--node", "node1", "--", "true")),
    "trace": Case(
        works=("--", "cluster-remote", "ping", "mycl"),
        unknown=("--", "cluster-remote", "ping", "nowhere-to-be-found"),
        down=(("--", "cluster-remote", "ping", "gone"), 3),
        outside=("--", "cluster-remote", "ping", "mycl"),
        waits=("--", "cluster-remote", "ping", "mycl"),
        takes_remote=False,
    ),
    # Needs no repository, and has tests of its own for the rest.
    "demo": Case(unknown=None, down=None, outside=None, waits=None, takes_remote=False),
    "bench": Case(
        works=("mycl", "--case", "small", "--files", "1", "--rounds", "1"),
        down=(("gone", "--case", "small"), 3),
        waits=("mycl", "--case", "small", "--files", "1"),
    ),
    "serve": Case(
        works=None,
        unknown=("--cluster", "nowhere-to-be-found", "--listen", "unix:{new}"),
        down=None,
        outside=("--listen", "unix:{new}"),
        waits=None,
        takes_remote=False,
    ),
    "token create": Case(unknown=None, down=None, outside=(), waits=None, takes_remote=False),
    "token list": Case(unknown=None, down=None, outside=(), waits=None, takes_remote=False),
    "token revoke": Case(
        works=("{token}",), unknown=None, down=None, outside=("abcd1234",), waits=None, takes_remote=False
    ),
}

WITHOUT_JSON = {
    "setup": "what it shows is what git-annex says",
    "node add": "what it shows is what it does",
    "node remove": "what it shows is what it does",
    "node replace": "what it shows is what it does",
    "rename": "what it shows is what it does",
    "remove": "what it shows is what it does",
    "demo": "it is there to be looked at",
    "serve": "it has no outcome",
    "bench": "it saves its figures: --json FILE",
}
# Nothing in them waits for anybody.
INSTANT = {"token create", "token list", "token revoke"}
# They carry out a plan of commands by the code by which setup does, which tests/lifecycle interrupts.
PLANNED = {"node add", "node remove", "node replace", "rename", "remove"}

COMMANDS = every_command()


def has_json(name: str) -> bool:
    """Whether a command has a switch `--json`."""
    return any(
        "--json" in option.opts and option.is_flag for option in COMMANDS[name].params if hasattr(option, "is_flag")
    )


@pytest.fixture(scope="module")
def common(make_environment: Callable[[], Environment]) -> Testbed:
    """A testbed in order, with a remote `gone` besides that leads nowhere, and a file that all nodes have."""
    environment = make_environment()
    testbed = make_testbed(environment, node_remotes=True)
    with careless(environment):
        initremote(testbed.client, "gone", "url=/nowhere/at/all", sameas=testbed.cluster.uuid)
    testbed.client.git("config", "remote.gone.annex-cost", "50")
    testbed.client.git("config", "remote.gone.annex-sync", "false")
    testbed.client.add("file", b"a file that all nodes have\n")
    testbed.client.git("commit", "--quiet", "--message", "file")
    testbed.client.annex("copy", "--to", "mycl", "file")
    (testbed.client.path / "folder").mkdir()
    return testbed


def filled(arguments: tuple[str, ...], testbed: Testbed, new: Path) -> list[str]:
    """Arguments with what only a test knows put in."""
    values = {"gateway": testbed.url, "new": str(new)}
    if "{token}" in arguments:
        values["token"] = outcome("token create", cluster_remote(testbed.client, "token", "create", "--json").out)[
            "token"
        ]["id"]
    return [argument.format(**values) for argument in arguments]


class Inside:
    """The command line, run within this process: as the program does it, save its start."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def __call__(
        self, environment: Environment, cwd: Path, *arguments: str, code: int = 0, env: Mapping[str, str] | None = None
    ) -> Done:
        self._capture.readouterr()
        with (
            environment.applied(cwd),
            patch.dict(os.environ, env or {}),
            patch.object(sys, "argv", ["cluster-remote", *arguments]),
            # What is running is not python -m pytest.
            patch.object(sys.modules["__main__"], "__package__", None),
        ):
            try:
                returned = run_command_line()
            except SystemExit as ended:  # how completion ends
                returned = int(ended.code or 0)
        written = self._capture.readouterr()
        done = Done(subprocess.CompletedProcess(arguments, returned, written.out.encode(), written.err.encode()))
        assert done.code == code, f"cluster-remote {' '.join(arguments)}: {done!r}"
        assert "Traceback" not in done.err
        assert "bug in the program" not in done.err
        return done


# They run a command of the user's, which writes to where this process writes.
STARTING = {"lock", "trace"}


def run(name: str, arguments: list[str], inside: Inside, where: Environment, cwd: Path, code: int) -> Done:
    """Run a command in the quickest way."""
    if name in STARTING:
        return cluster_remote(where, *name.split(), *arguments, code=code, cwd=cwd)
    return inside(where, cwd, *name.split(), *arguments, code=code)


@pytest.fixture
def inside(capsys: pytest.CaptureFixture[str]) -> Inside:
    return Inside(capsys)


def with_case(situation: str, *chosen: str) -> pytest.MarkDecorator:
    """For every command that can be in a situation; `make test` only tries those chosen to stand for the rest."""
    names = [name for name, case in CASES.items() if getattr(case, situation) is not None]
    return pytest.mark.parametrize("name", representatives(names, *(chosen or names)))


# All of them


def test_every_command_is_listed_here() -> None:
    assert set(CASES) == set(COMMANDS)


def test_every_command_has_a_json_schema_or_a_reason_not_to() -> None:
    assert {name for name in COMMANDS if has_json(name)} == set(OUTCOMES)
    assert set(COMMANDS) - set(OUTCOMES) == set(WITHOUT_JSON)


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_help_has_an_example_and_all_options(name: str, common: Testbed, inside: Inside) -> None:
    shown = inside(common.environment, common.environment.directory, *name.split(), "--help").out
    words = re.sub(r"\s+", " ", shown)
    assert f"Example: cluster-remote {name}" in words
    assert "Exit codes: 0" in words or name not in {"check", "repair", "status"}
    assert "\x1b" not in shown
    # Optional arguments are in one pair of brackets, required ones in none.
    assert not re.search(r"\[\[|\{", shown.partition("\n\n")[0])
    for option in COMMANDS[name].params:
        if getattr(option, "help", None) is not None and option.opts[0].startswith("--"):
            assert option.opts[0] in shown


def test_help_says_what_the_exit_codes_mean(common: Testbed, inside: Inside) -> None:
    shown = re.sub(r"\s+", " ", inside(common.environment, common.environment.directory, "--help").out)
    for code in ("0 ", "1 ", "2 ", "3 ", "4 ", "130 "):
        assert code in shown.partition("Exit codes:")[2]


def test_wrong_usage_is_explained(common: Testbed, inside: Inside) -> None:
    for words, arguments in (
        ("No such command", ["nonsense"]),
        ("No such option", ["ping", "--nonsense", "x"]),
        ("Missing argument", ["ping"]),
    ):
        assert words in inside(common.environment, common.client.path, *arguments, code=2).err


def test_help_and_completion_import_no_command(common: Testbed) -> None:
    # A shell completes while its user waits.
    completing = {"COMP_WORDS": "cluster-remote ", "COMP_CWORD": "1", "_CLUSTER_REMOTE_COMPLETE": "complete_bash"}
    for arguments, env in ((["--help"], {}), ([], completing)):
        profile = cluster_remote(common.client, *arguments, env={**env, "PYTHONPROFILEIMPORTTIME": "1"}).err
        imported = {line.rpartition("|")[2].strip() for line in profile.splitlines()}
        assert "cluster_remote.cli.app" in imported
        assert imported.isdisjoint({"cluster_remote.cli.render", "cluster_remote.annex.repository", "rich.console"})


# Each of them


@pytest.mark.parametrize("name", sorted(OUTCOMES))
def test_json_output_matches_its_schema_also_from_a_subdirectory(
    name: str, common: Testbed, inside: Inside, tmp_path: Path
) -> None:
    case = CASES[name]
    assert case.works is not None
    arguments = [
        "../file" if argument == "file" else argument for argument in filled(case.works, common, tmp_path / "new")
    ]
    folder = common.client.path / "folder"
    done = run(name, ["--json", *arguments], inside, common.environment, folder, case.code)
    outcome(name, done.out)
    assert "\x1b" not in done.out + done.err


@with_case("unknown")
def test_an_unknown_remote_is_wrong_usage_and_named(name: str, common: Testbed, inside: Inside, tmp_path: Path) -> None:
    arguments = CASES[name].unknown
    assert arguments is not None
    words = filled(arguments, common, tmp_path / "new")
    done = run(name, words, inside, common.environment, common.client.path, 2)
    assert "nowhere-to-be-found" in done.err
    assert len(done.err.splitlines()) == (2 if name == "trace" else 1)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", sorted(set(OUTCOMES) & {name for name, case in CASES.items() if case.unknown}))
def test_an_error_is_reported_as_json(name: str, common: Testbed, inside: Inside, tmp_path: Path) -> None:
    arguments = CASES[name].unknown
    assert arguments is not None
    words = ["--json", *filled(arguments, common, tmp_path / "new")]
    done = run(name, words, inside, common.environment, common.client.path, 2)
    if name == "trace":
        # The command that it runs has not been asked for JSON.
        assert json.loads(done.out)["exit_code"] == 2
    else:
        said = json.loads(done.out)
        assert set(said) == {"error", "exit_code"}
        assert said["exit_code"] == 2
        assert "nowhere-to-be-found" in said["error"]


def test_an_error_midway_still_ends_in_valid_json() -> None:
    written = io.StringIO()
    stream = JsonStream(written)
    with contextlib.suppress(ZeroDivisionError), stream.items("findings") as add:
        add({"key": 1})
        add({"key": 2})
        raise ZeroDivisionError
    emit_error("it broke", 3)
    assert json.loads(written.getvalue()) == {"findings": [{"key": 1}, {"key": 2}], "error": "it broke", "exit_code": 3}


@pytest.mark.parametrize(
    "arguments", [["check", "--json", "--jobs", "0"], ["get", "--json"], ["status", "--json", "--no"]]
)
def test_wrong_usage_is_reported_as_json(arguments: list[str], common: Testbed, inside: Inside) -> None:
    assert json.loads(inside(common.environment, common.client.path, *arguments, code=2).out)["exit_code"] == 2


def test_help_shows_the_commands_in_groups_and_no_types(common: Testbed, inside: Inside) -> None:
    place = common.environment.directory
    shown = inside(common.environment, place, "--help").out
    assert shown.index("Set up:") < shown.index("  setup") < shown.index("Check and repair:") < shown.index("  status")
    for name in COMMANDS:
        assert not re.search(
            r"<\w+>|\b(TEXT|INTEGER|FLOAT)\b",
            inside(common.environment, place, *name.split(), "--help").out.replace("--note TEXT", ""),
        )


@with_case("down")
def test_an_unreachable_server_is_reported(name: str, common: Testbed, inside: Inside, tmp_path: Path) -> None:
    down = CASES[name].down
    assert down is not None
    arguments, code = down
    words = filled(arguments, common, tmp_path / "new")
    done = run(name, words, inside, common.environment, common.client.path, code)
    assert "/nowhere/at/all" in done.out + done.err
    assert not (tmp_path / "new").exists()


@pytest.fixture(scope="module")
def bare_places(make_environment: Callable[[], Environment]) -> Iterator[tuple[Environment, list[Path]]]:
    """A directory in no repository, and a repository that git-annex has nothing to do with."""
    environment = make_environment()
    nowhere, plain = environment.directory / "nowhere", environment.directory / "plain"
    nowhere.mkdir()
    environment.run("git", "init", "--quiet", str(plain))
    yield environment, [nowhere, plain]
    assert not list(nowhere.iterdir())
    assert not (plain / ".git/annex").exists()
    assert [file.name for file in plain.iterdir()] == [".git"]


@with_case("outside")
def test_outside_a_repository_the_exit_code_says_so(
    name: str, bare_places: tuple[Environment, list[Path]], inside: Inside, common: Testbed, tmp_path: Path
) -> None:
    arguments = CASES[name].outside
    assert arguments is not None
    environment, places = bare_places
    words = filled(arguments, common, tmp_path / "new")
    for place in places:
        done = run(name, words, inside, environment, place, 4)
        assert "repository" in done.err
        assert str(place) in done.err
        assert not (tmp_path / "new").exists()


@with_case("works", "status", "check", "token list", "get", "trace")
def test_a_closed_output_is_not_a_fault_of_the_program(name: str, common: Testbed, tmp_path: Path) -> None:
    case = CASES[name]
    assert case.works is not None
    arguments = filled(case.works, common, tmp_path / "new")
    reading, writing = os.pipe()
    os.close(reading)
    process = popen_forked(
        common.environment, "cluster-remote", *name.split(), *arguments,
        cwd=common.client.path, stdin=subprocess.DEVNULL, stdout=writing, stderr=subprocess.PIPE,
    )  # fmt: skip
    os.close(writing)
    with process:
        try:
            _, err = process.communicate(timeout=60)
        finally:
            end_group(process.pid)
    assert process.returncode == 1
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err


@contextmanager
def running(
    name: str, arguments: list[str], testbed: Testbed, env: dict[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Start a command with its stderr in a pipe; kill what is left of it at the end."""
    process = popen_forked(
        testbed.environment, "cluster-remote", *name.split(), *arguments,
        cwd=testbed.client.path, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=env,
    )  # fmt: skip
    with process:
        try:
            yield process
        finally:
            end_group(process.pid)


def interrupt_twice(process: subprocess.Popen[bytes]) -> None:
    """Send SIGINT to the whole process group, as a terminal does, and once more, as impatient users do."""
    os.killpg(process.pid, signal.SIGINT)
    os.killpg(process.pid, signal.SIGINT)


@pytest.fixture(scope="module")
def stalling(common: Testbed) -> dict[str, str]:
    """Variables that make git-annex-shell never answer."""
    directory = common.environment.directory / "stalling"
    directory.mkdir()
    program = directory / "git-annex-shell"
    program.write_text(STALLING)
    program.chmod(0o755)
    return {"PATH": f"{directory}{os.pathsep}{common.environment.env['PATH']}"}


@with_case("waits", "status", "check", "put", "lock", "trace")
def test_an_interrupt_ends_the_command_at_once_and_is_reported(
    name: str, common: Testbed, stalling: dict[str, str], tmp_path: Path
) -> None:
    case = CASES[name]
    assert case.waits is not None
    mark = tmp_path / "stalled"
    arguments = filled(case.waits, common, tmp_path / "new")
    with running(name, arguments, common, {**stalling, "STALLED": str(mark)}) as process:
        assert wait_until(mark.exists, 30)
        interrupt_twice(process)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert b"cluster-remote: interrupted" in err
    assert b"Traceback" not in err
    common.environment.assert_no_process_left()
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_sigterm_and_sighup_count_as_an_interrupt(
    signum: int, common: Testbed, stalling: dict[str, str], tmp_path: Path
) -> None:
    # git-annex sends SIGTERM to everybody around it when it gets a SIGINT; closing a terminal sends SIGHUP.
    mark = tmp_path / "stalled"
    with running("ping", ["mycl"], common, {**stalling, "STALLED": str(mark)}) as process:
        assert wait_until(mark.exists, 30)
        process.send_signal(signum)
        _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"cluster-remote: interrupted\n")
    common.environment.assert_no_process_left()


@pytest.mark.parametrize(("name", "arguments"), [("demo", ()), ("bench", ("--case", "small", "--rounds", "1"))])
def test_an_interrupt_leaves_nothing_behind(name: str, arguments: tuple[str, ...], common: Testbed) -> None:
    temporary = Path(common.environment.env["TMPDIR"])
    before = set(temporary.iterdir())
    with running(name, list(arguments), common) as process:
        # In the middle of its work: there is a repository of its own already.
        assert wait_until(lambda: any(any(made.rglob(".git")) for made in set(temporary.iterdir()) - before), 30)
        interrupt_twice(process)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert b"cluster-remote: interrupted" in err
    assert b"Traceback" not in err
    common.environment.assert_no_process_left(20)
    assert {file for file in set(temporary.iterdir()) - before if file.is_dir()} == set()


@pytest.mark.parametrize(("name", "arguments"), [("demo", ()), ("bench", ("--case", "small", "--rounds", "1"))])
def test_a_command_ends_what_it_runs_when_only_it_is_told(
    name: str, arguments: tuple[str, ...], common: Testbed, tmp_path: Path
) -> None:
    mark = tmp_path / "stalled"
    program = tmp_path / "git-annex"
    program.write_text(f"#!/bin/sh\ntouch '{mark}'\nexec sleep 1000\n")
    program.chmod(0o755)
    path = f"{tmp_path}{os.pathsep}{common.environment.env['PATH']}"
    with running(name, list(arguments), common, {"PATH": path}) as process:
        assert wait_until(mark.exists, 30)
        process.terminate()
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    common.environment.assert_no_process_left()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_an_interrupt_stops_serving_cleanly(signum: int, common: Testbed, tmp_path: Path) -> None:
    socket = tmp_path / "socket"
    gateway = Testbed(common.cluster, common.cluster.gateway)
    with running("serve", ["--listen", f"unix:{socket}"], gateway) as process:
        assert wait_until(socket.exists, 30)
        os.killpg(process.pid, signum)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert b"Traceback" not in err
    assert not socket.exists()


def test_every_interruptible_command_is_tested_for_it() -> None:
    waiting = {name for name, case in CASES.items() if case.waits is not None}
    assert waiting | {"demo", "bench", "serve"} | INSTANT | PLANNED == set(CASES)


# Terminals and shells


@pytest.mark.parametrize("name", ["status", "check", "doctor"])
def test_colour_is_used_on_a_terminal_and_not_with_no_color(name: str, common: Testbed, tmp_path: Path) -> None:
    works = CASES[name].works
    assert works is not None
    command = ["cluster-remote", *name.split(), *filled(works, common, tmp_path / "new")]
    shown = on_a_terminal(common.environment, common.client.path, *command)
    assert COLOUR.search(shown)
    shown = on_a_terminal(common.environment, common.client.path, *command, env={"NO_COLOR": "1"})
    assert shown.strip()
    assert not COLOUR.search(shown)


def completed(inside: Inside, environment: Environment, cwd: Path, *words: str) -> list[str]:
    """Return what the shell is offered for the last word."""
    asked = {
        "COMP_WORDS": " ".join(("cluster-remote", *words)),
        "COMP_CWORD": str(len(words)),
        "_CLUSTER_REMOTE_COMPLETE": "complete_bash",
    }
    done = inside(environment, cwd, env=asked)
    assert done.err == ""
    return done.out.split()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.takes_remote])
def test_the_shell_completes_remotes(name: str, common: Testbed, inside: Inside) -> None:
    assert completed(inside, common.environment, common.client.path / "folder", *name.split(), "my") == ["mycl"]


@pytest.mark.parametrize("name", ["present", "put", "get", "drop", "lock"])
def test_the_shell_completes_nodes(name: str, common: Testbed, inside: Inside) -> None:
    offered = completed(inside, common.environment, common.client.path, name, "mycl", "--node", "n")
    assert {"node1", "node2", "node3"} <= set(offered)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("setup", "x", "--node", "n"), ["node1", "node2", "node3"]),
        (("setup", "x", "--cluster", ""), ["mycluster"]),
        (("serve", "--cluster", "my"), ["mycluster"]),
        (("token", "create", "--node", ""), ["here", "mycluster", "node1", "node2", "node3"]),
    ],
    ids=" ".join,
)
def test_on_the_gateway_the_shell_completes_tokens_nodes_and_clusters(
    words: tuple[str, ...], offered: list[str], common: Testbed, inside: Inside
) -> None:
    assert sorted(completed(inside, common.environment, common.cluster.gateway.path, *words)) == offered


def test_completion_outside_a_repository_is_silent_and_empty(
    bare_places: tuple[Environment, list[Path]], inside: Inside
) -> None:
    environment, places = bare_places
    for place in places:
        assert completed(inside, environment, place, "ping", "x") == []
        assert completed(inside, environment, place, "present", "x", "--node", "") == []
        assert completed(inside, environment, place, "token", "create", "--node", "") == []
        assert completed(inside, environment, place, "serve", "--cluster", "") == []
        assert completed(inside, environment, place, "setup", "x", "--node", "") == []


def test_the_installed_program_completes(common: Testbed) -> None:
    env = {"COMP_WORDS": "cluster-remote pi", "COMP_CWORD": "1", "_CLUSTER_REMOTE_COMPLETE": "complete_bash"}
    assert cluster_remote(common.client, env=env).out.split() == ["ping"]
