"""What the nodes say they have, against what the location log says. Pure.

A node that gave no answer is unknown, never missing: the log goes on being believed for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from cluster_remote.annex.locations import Located
from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID, Key

__all__ = ["Answers", "Check", "Comparison", "Finding", "NodeCount", "compare"]

Answers = Mapping[UUID, bool | None]
"""What each node said of one key; None where it gave no answer."""


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be with one key."""

    key: Key
    file: Annotated[str | None, "a file that has this content, where files were asked about"]
    missing: Annotated[tuple[UUID, ...], "nodes that do not have it although the location log says so"]
    unlogged: Annotated[tuple[UUID, ...], "nodes that have it although the location log does not say so"]
    damaged: Annotated[tuple[UUID, ...], "nodes whose copy has not the checksum of the key; with --content"]
    moved: Annotated[tuple[UUID, ...], "those of them that have moved it aside"]
    copies: Annotated[int, "how many there are: what nodes answered, and for all others what the location log says"]
    few: Annotated[bool, "whether that is less than numcopies"]
    recorded: Annotated[bool, "whether the location log says now what is true"]


@dataclass(frozen=True)
class NodeCount:
    """What one node answered."""

    uuid: UUID
    name: Annotated[str, "what the gateway, or this repository, calls the remote"]
    description: Annotated[str, "what people call the repository"]
    present: Annotated[int, "keys that it has"]
    missing: Annotated[int, "keys that it does not have although the location log says so"]
    unlogged: Annotated[int, "keys that it has although the location log does not say so"]
    unknown: Annotated[int, "keys about which it gave no answer"]
    damaged: Annotated[int, "keys of which it has a damaged copy"]
    unread: Annotated[int, "keys whose copy could not be read"]
    error: Annotated[str | None, "why it gave none; the first reason"]

    @property
    def title(self) -> str:
        """What to call it before people."""
        return self.description or self.name


@dataclass(frozen=True)
class Check(Verdict):
    """What came of asking every node about every key."""

    name: Annotated[str, "the remote"]
    findings: Annotated[tuple[Finding, ...], "each key with which something is not as it should be"]
    keys: Annotated[int, "how many were asked about"]
    numcopies: Annotated[int, "how many copies there are to be"]
    few: Annotated[int, "keys with fewer copies than that"]
    gone: Annotated[int, "keys that nobody has, and nobody is said to have: dropped everywhere, or never stored"]
    recorded: Annotated[int, "keys whose locations were put right in the location log"]
    content: Annotated[bool, "whether what the nodes have was read"]
    read: Annotated[int, "copies that were read"]
    read_size: Annotated[int, "bytes of these"]
    unverifiable: Annotated[int, "copies whose keys have no checksum"]
    nodes: tuple[NodeCount, ...]
    seconds: Annotated[float, "how long it took"]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One key: who the log and the nodes disagree about, and how many copies that leaves."""

    missing: frozenset[UUID]
    unlogged: frozenset[UUID]
    copies: int
    gone: bool
    """Whether nobody has it and nobody was said to have it."""

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.unlogged)


def compare(each: Located, answers: Answers, counts: Callable[[UUID], bool]) -> Comparison:
    """`counts` says whether a repository's having something counts as a copy."""
    missing = frozenset(uuid for uuid, answer in answers.items() if answer is False and uuid in each.holders)
    unlogged = frozenset(uuid for uuid, answer in answers.items() if answer is True and uuid not in each.holders)
    holders = each.holders - missing | unlogged
    return Comparison(missing, unlogged, sum(map(counts, holders)), not holders and not each.holders)
