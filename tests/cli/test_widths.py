"""A narrow terminal loses no column and breaks no word."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.cli.ailing import on_a_terminal
from tests.cli.command import cluster_remote
from tests.remote.testbed import initremote
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_cluster
from tests.support.slow import only_in_all

COMMANDS = [
    "setup other --node node1 --node node2 --dry-run",
    "status",
    "check",
    "repair --dry-run",
    "doctor",
    "token list",
    "node replace own node1 node2 --dry-run",
]


@pytest.fixture(scope="module")
def narrowed(make_environment: Callable[[], Environment]) -> Repository:
    environment = make_environment()
    cluster = make_cluster(environment, environment.directory)
    gateway = cluster.gateway
    initremote(gateway, "own", sameas=cluster.uuid)
    gateway.annex("group", "node2", "archive")
    gateway.annex("wanted", "node3", "include=*.jpg or smallerthan=1mb")
    cluster_remote(gateway, "token", "create", "--note", "laptop in the hall upstairs")
    for name in ("a long name with many words in it.jpg", "short"):
        gateway.add(name, name.encode())
    gateway.annex("copy", "--quiet", "--to", "own", "short")
    away = cluster.nodes[0].path
    away.rename(away.with_name("unplugged"))
    gateway.annex("copy", "--quiet", "--to", "own", ".")
    return gateway


def _shown(gateway: Repository, command: str, columns: int) -> list[str]:
    """Return the lines a command writes, without control sequences and erased progress."""
    env = {"COLUMNS": str(columns), "NO_COLOR": "1"}
    text = on_a_terminal(gateway.environment, gateway.path, "cluster-remote", *command.split(), env=env)
    text = text.rpartition("\x1b[2K")[2]
    return [line.rstrip() for line in re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "").split("\n")]


def _words(lines: list[str]) -> set[str]:
    # Times, and what depends on how long something took, change from run to run.
    return set(re.findall(r"(?<![\w.])[A-Za-z][\w.=*-]+", "\n".join(lines)))


@pytest.mark.parametrize("columns", [60, *only_in_all(80)])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_narrow_terminal_shows_every_word_unbroken(narrowed: Repository, command: str, columns: int) -> None:
    wide, narrow = _shown(narrowed, command, 250), _shown(narrowed, command, columns)
    # Where there is a paragraph for each row, its first cell needs no heading.
    assert _words(wide) - _words(narrow) <= {"program", "node", "remote", "id", "there"}
    # Paths, UUIDs and commands to be copied stay in one piece.
    text = [line for line in narrow if not line.startswith(("    ", "$ ", "git ", "cluster-remote "))]
    assert [line for line in text if len(line) > columns and not re.search(r"\S{30,}", line)] == []
