"""Fixtures for the tests of cluster_remote.annex: a repository and the test process inside it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from textwrap import indent

import pytest

from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from tests.support.environment import Environment
from tests.support.repositories import Repository as RealRepository
from tests.support.repositories import make_repository

UUIDS = [UUID(f"{n:08x}-1111-4111-8111-111111111111") for n in range(1, 10)]
"""UUIDs of otherwise unknown repositories."""


_SPECIAL_REMOTE = """#!{python}
import sys
{first}

def say(line):
    sys.stdout.write(line + "\\n")
    sys.stdout.flush()

say("VERSION 1")
for line in sys.stdin:
    match line.split():
        case ["EXTENSIONS", *_]:
            say("EXTENSIONS")
        case ["INITREMOTE"]:
{initremote}
            say("INITREMOTE-SUCCESS")
        case ["PREPARE"]:
            say("PREPARE-SUCCESS")
        case _:
            say("UNSUPPORTED-REQUEST")
"""


def special_remote(initremote: str = "pass", first: str = "") -> str:
    """Return a special remote that only runs some Python when it starts and when it is initialised."""
    return _SPECIAL_REMOTE.format(python=sys.executable, first=first, initremote=indent(initremote, " " * 12))


# A git that lets git-annex commit its journal after the branch was read, but before the reader hears of it.
LATE = """#!{python}
import os, subprocess, sys
git = "{git}"
if "cat-file" not in sys.argv:
    os.execv(git, sys.argv)
question = os.read(0, 65536)
answer = subprocess.run([git, *sys.argv[1:]], check=True, input=question, stdout=subprocess.PIPE).stdout
subprocess.run([git, "annex", "group", "here"], check=True, stdout=subprocess.DEVNULL)
os.write(1, answer)
os.execv(git, sys.argv)
"""


@pytest.fixture
def commit_while_reading(real: RealRepository) -> None:
    """Have the journal committed at the worst moment whenever the branch is read."""
    source = LATE.format(python=sys.executable, git=real.environment.which("git"))
    real.environment.program("git", source)


@pytest.fixture
def real(environment: Environment) -> RealRepository:
    """A git-annex repository."""
    return make_repository(environment, environment.directory / "repo", "the desk")


@pytest.fixture
def here(real: RealRepository) -> Iterator[Repository]:
    """The same repository, found from inside it within the tests' environment."""
    with real.environment.applied(real.path):
        yield Repository.here()
