"""The result of checking an installation and its cluster remotes: the values shown to people and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID

__all__ = ["Checkup", "Program", "Server"]


@dataclass(frozen=True)
class Program:
    """A required program or library."""

    name: str
    path: Annotated[str | None, "where it was found on PATH; null for a library, or if not found"]
    version: Annotated[str | None, "null if unknown or not found"]


@dataclass(frozen=True)
class Server:
    """What answered for a cluster remote."""

    remote: Annotated[str, "the remote of this repository"]
    address: Annotated[str | None, "its address; null without a server"]
    uuid: Annotated[UUID | None, "who answered"]
    version: Annotated[int | None, "the negotiated protocol version"]
    git_annex: Annotated[str | None, "the version of git-annex there, if it can be determined"]
    error: Annotated[str | None, "why there was no answer"]


@dataclass(frozen=True)
class Checkup(Verdict):
    """What was checked, and what was found."""

    repository: Annotated[str | None, "the repository; null if only the programs were checked"]
    programs: tuple[Program, ...]
    servers: tuple[Server, ...]
    findings: tuple[Problem, ...]
    notes: Annotated[tuple[str, ...], "not mistakes, but worth knowing"]
