"""Commands that a message tells the user to run: what is in a name is no command of its own."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from cluster_remote.access.identity import named_repository
from cluster_remote.access.settings import Settings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.diagnosis.request import check_legible
from cluster_remote.lifecycle.gateway import unknown_server
from cluster_remote.lifecycle.setting_up import _listed
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.transport.address import parse_address

ONE = UUID("11111111-2222-4333-8444-555555555555")
EVIL = "x$(touch pwned)"


def _encrypted() -> None:
    values = {"encryption": "shared", "url": "/x"}
    check_legible(Settings.read(lambda name: values.get(name, ""), ONE.text, EVIL), Key("WORM--x"))


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
