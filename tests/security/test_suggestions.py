"""Commands that a message tells the user to run: what is in a name is no command of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

import pytest

from cluster_remote.access.identity import named_repository
from cluster_remote.access.settings import Settings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.diagnosis.problems import not_verified, unreachable
from cluster_remote.diagnosis.request import check_legible
from cluster_remote.lifecycle.gateway import unknown_server
from cluster_remote.lifecycle.setting_up import _listed
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.text import as_command
from cluster_remote.remote.identity import Commands
from cluster_remote.transport.address import parse_address
from tests.support.environment import Environment
from tests.support.repositories import make_repository

ONE = UUID("11111111-2222-4333-8444-555555555555")
EVIL = "x$(touch pwned)"


def _settings(name: str) -> Settings:
    values = {"encryption": "shared", "url": "/x"}
    return Settings.read(lambda setting: values.get(setting, ""), ONE.text, name)


def _encrypted() -> None:
    check_legible(_settings(EVIL), Key("WORM--x"))


SAID: dict[str, Callable[[], object]] = {
    "the name of a cluster": lambda: named_repository(EVIL, BranchLogs({}), {}),
    "what can be set up": lambda: _listed([EVIL, *map(str, range(10**5))]),
    "an unknown gateway": lambda: unknown_server(ONE, EVIL, parse_address("/x")),
    "an encrypted remote": _encrypted,
}


@pytest.mark.parametrize("name", SAID)
def test_a_name_is_one_word_of_a_command(name: str) -> None:
    try:
        said = str(SAID[name]())
    except ValueError as error:
        said = str(error)
    assert EVIL in said
    assert len(said) < 2000
    *_, after = re.split(r"(?:git annex|git|cluster-remote) (?=[a-z])", said, maxsplit=1)
    assert EVIL not in re.sub(r"'[^']*'", "", after)


OPTION = "--upload-pack=touch pwned"
COMMANDS: dict[str, Callable[[], str]] = {
    "a new token": lambda: _settings(OPTION).new_token_command,
    "initremote": lambda: Commands(_settings(OPTION), private=True).initremote(ONE),
    "enableremote": lambda: Commands(_settings(OPTION), exists=True).again(),
    "an option after it": lambda: as_command("cluster-remote check", OPTION, options="--all --fix"),
    "a word after it": lambda: as_command("git fetch", OPTION, "+git-annex:git-annex"),
    "a word before it": lambda: as_command("git config", "remote.x.annex-cluster-node", OPTION),
    "a problem": lambda: not_verified(OPTION, 1).commands[1],
    "an unreachable node": lambda: unreachable(ONE, "node", None, OPTION).commands[0],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_name_is_no_option_of_a_command(name: str) -> None:
    words = shlex.split(COMMANDS[name]())
    assert OPTION in words[words.index("--") :]
    assert not [word for word in words[words.index("--") + 1 :] if word.startswith("-") and word != OPTION]


def test_commands_work_when_pasted_whatever_the_name_of_a_remote(environment: Environment) -> None:
    here, there = (make_repository(environment, environment.directory / name, name) for name in ("here", "there"))
    here.git("remote", "add", "--", "-x;y", str(there.path))
    for command in (
        as_command("git fetch", "-x;y", "+git-annex:refs/remotes/there/git-annex"),
        as_command("git annex info", "-x;y", options="--fast"),
        as_command("git remote set-url", "-x;y", str(there.path)),
        as_command("git config", "remote.-x;y.annex-cluster-node", "-x;y"),
    ):
        environment.run("sh", "-c", command, cwd=here.path)
    assert here.config("remote.-x;y.annex-cluster-node") == "-x;y"
