"""A node on a hung disk keeps no command waiting.

A dead mount takes privileges, so calls to the node's directory stand still within our program alone; git and git-annex
are as ever.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.remote.testbed import initremote
from tests.support.environment import Environment
from tests.support.processes import end_group
from tests.support.repositories import Repository, make_cluster

HANGING = """\
import builtins, functools, io, os, time

def hanging(function):
    @functools.wraps(function)
    def call(path=None, *more, **named):
        try:
            text = os.fsdecode(path)
        except TypeError:
            text = ""
        if (text + "/").startswith(os.environ["HUNG"] + "/"):
            time.sleep(120)
        return function(path, *more, **named)
    return call

if "HUNG" in os.environ:
    for name in ("access", "listdir", "lstat", "open", "readlink", "scandir", "stat", "statvfs"):
        setattr(os, name, hanging(getattr(os, name)))
    os.path.lexists = hanging(os.path.lexists)
    os.path.exists = hanging(os.path.exists)
    io.open = builtins.open = hanging(io.open)
"""
# Seconds for each deadline (--timeout), and for a command with all its deadlines.
TIMEOUT, LONGEST = 1, 20

COMMANDS: dict[str, tuple[tuple[str, ...], int]] = {
    "status": (("status", "all"), 1),
    "check": (("check", "all", "--all"), 1),
    "repair": (("repair", "all", "--dry-run"), 1),
    "doctor": (("doctor", "all"), 1),
    "present": (("present", "all", "file", "--node", "node3"), 3),
    "get": (("get", "all", "file", "--node", "node3", "--to", "got"), 3),
    "put": (("put", "all", "new", "--node", "node3"), 3),
    "drop": (("drop", "all", "gone", "--force", "--node", "node3"), 3),
    "drop from all": (("drop", "all", "gone", "--force"), 1),
    "lock": (("lock", "all", "file", "--node", "node3", "--", "true"), 3),
}
CHANGES: dict[str, tuple[str, ...]] = {
    "setup": ("setup", "again", "--node", "node1", "--node", "node3"),
    "node add": ("node", "add", "all", "node3"),
    "node remove": ("node", "remove", "all", "node3"),
    "node replace": ("node", "replace", "all", "node3", "node1"),
    "rename": ("rename", "all", "other"),
    "remove": ("remove", "all"),
}


@pytest.fixture(scope="module")
def here(make_environment: Callable[[], Environment]) -> Repository:
    """A repository with a cluster of three nodes without a server; all have `file` and `gone`."""
    environment = make_environment()
    cluster = make_cluster(environment, environment.directory)
    here = cluster.gateway
    initremote(here, "all", f"timeout={TIMEOUT}", sameas=cluster.uuid)
    for name in ("file", "gone"):
        here.add(name, name.encode())
    here.annex("copy", "--quiet", "--to", "all", "file", "gone")
    here.add("new", b"new")
    here.annex("drop", "--quiet", "file")
    return here


@pytest.fixture
def hung(here: Repository, tmp_path: Path) -> dict[str, str]:
    """What makes our program's calls to node3 hang."""
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    place = here.config("remote.node3.url")
    assert place is not None
    return {"PYTHONPATH": str(tmp_path), "HUNG": str(here.path / place)}


def run(here: Repository, hung: dict[str, str], *words: str) -> tuple[int, str]:
    """Run a command; return its exit code and what it wrote."""
    began = time.monotonic()
    done = here.environment.run(*words, cwd=here.path, env=hung, check=False, timeout=100)
    assert time.monotonic() - began < LONGEST
    return done.returncode, (done.stdout + done.stderr).decode()


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_names_the_node_as_unreachable(name: str, here: Repository, hung: dict[str, str]) -> None:
    words, code = COMMANDS[name]
    before = words.index("--") if "--" in words else len(words)
    words = (*words[:before], "--timeout", str(TIMEOUT), *words[before:])
    ended, written = run(here, hung, "cluster-remote", *words)
    assert (ended, "node3" in written, "Traceback" in written) == (code, True, False), written


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_is_refused_because_git_annex_would_hang(name: str, here: Repository, hung: dict[str, str]) -> None:
    before = here.git("config", "--list").stdout
    ended, written = run(here, hung, "cluster-remote", *CHANGES[name])
    assert (ended, "node3" in written) == (3, True), written
    assert here.git("config", "--list").stdout == before


def test_git_annex_continues_with_the_other_nodes(here: Repository, hung: dict[str, str]) -> None:
    for words, code in (
        (("info", "all"), 0),
        (("whereis", "file"), 0),
        (("get", "--from", "all", "file"), 0),
        (("copy", "--to", "all", "new"), 0),
        (("fsck", "--fast", "--from", "all", "new"), 0),
        (("drop", "--from", "all", "new"), 1),
    ):
        ended, written = run(here, hung, "git", "annex", *words)
        assert ended == code, written
        assert words[0] not in {"copy", "drop"} or "node3" in written or "not there" in written


def test_serve_answers_for_the_other_nodes(here: Repository, hung: dict[str, str]) -> None:
    socket = here.environment.directory / "gw"
    serving = here.environment.popen("cluster-remote", "serve", "--listen", f"unix:{socket}", cwd=here.path, env=hung)
    try:
        for _ in range(200):
            if socket.exists():
                break
            time.sleep(0.1)
        made = here.environment.run("cluster-remote", "token", "create", cwd=here.path)
        token = made.stdout.decode().split()[-1]
        asking = ("cluster-remote", "present", f"unix:{socket}", here.key("file"), "--timeout", "10")
        ended, written = run(here, {"CLUSTER_REMOTE_TOKEN": token}, *asking)
        assert ended == 0, written
    finally:
        end_group(serving.pid)
        serving.communicate()
