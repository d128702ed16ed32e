"""What a checkup of an installation and its cluster remotes comes to: the values that people and scripts are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID

__all__ = ["Checkup", "Program", "Server"]


@dataclass(frozen=True)
class Program:
    """A program, or a library, that is needed."""

    name: str
    path: Annotated[str | None, "where it was found on PATH; null for a library, and for what was not found"]
    version: Annotated[str | None, "null where it does not say, or was not found"]


@dataclass(frozen=True)
class Server:
    """What answered when a cluster remote was tried."""

    remote: Annotated[str, "the remote of this repository"]
    address: Annotated[str | None, "where it leads to; null without a server"]
    uuid: Annotated[UUID | None, "who answered"]
    version: Annotated[int | None, "of the protocol, as agreed on"]
    git_annex: Annotated[str | None, "the version of git-annex there, where it can be asked"]
    error: Annotated[str | None, "why there was no answer"]


@dataclass(frozen=True)
class Checkup(Verdict):
    """What was looked at, and what was found."""

    repository: Annotated[str | None, "the repository; null where only the programs were looked at"]
    programs: tuple[Program, ...]
    servers: tuple[Server, ...]
    findings: tuple[Problem, ...]
    notes: Annotated[tuple[str, ...], "what is no mistake but worth knowing"]
