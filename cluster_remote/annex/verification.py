"""Read which configurations of special remotes the user has verified.

git-annex stores the verified configurations (see access/configuration.py for the rule). `git annex verifyremote NAME`
shows the pending one with a number; the same with `--safe NUMBER` verifies it. (Observed with git-annex 10.20261026,
whose files are verified-remote.log and verifying-remote.log.)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_remote.annex import logformat
from cluster_remote.annex.errors import BranchUnreadable
from cluster_remote.p2p.key import UUID, decode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["Pending", "pending", "verified"]

_FILE = "verified-remote.log"
_NUMBER = re.compile(r"verifyremote .*--safe ([0-9]+)")


@dataclass(frozen=True, slots=True)
class Pending:
    """A configuration that awaits verification, as git-annex shows it; it may have several lines."""

    number: int
    configuration: str


def verified(repository: Repository) -> Mapping[UUID, Mapping[str, str]] | None:
    """Return the verified parameters by the UUID of the configuration. Raises BranchUnreadable.

    None if there is no such log, because git-annex is too old to verify. Unlike remote.log, it also has the encryption
    of sameas remotes.
    """
    file = repository.annex_dir / _FILE
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise BranchUnreadable(f"{file} cannot be read: {error.strerror}; check its permissions") from error
    newest = logformat.newest(logformat.annotated(content))
    return {uuid: logformat.settings(value) for uuid, value in newest.items()}


async def pending(repository: Repository, name: str) -> Pending | None:
    """Return the configuration of a remote that awaits verification, if any. Raises CommandFailed."""
    argv = ("git", "annex", "verifyremote", "--", name)
    # Without an answer to its question, it exits with 1.
    done = await repository.run(*argv, accept=(0, 1))
    return _parsed(decode(done.stdout))


def _parsed(text: str) -> Pending | None:
    """Parse what git-annex shows: a line, the configuration, a question, and the command with the number.

    A parameter may have line breaks, and look like anything that follows.
    """
    *_, number = [None, *_NUMBER.finditer(text)]
    if number is None:
        return None
    before = text[: text.rfind("\n", 0, number.start())]
    shown = before.partition("\n")[2].rpartition("\n\n")[0]
    return Pending(int(number[1]), shown.strip())
