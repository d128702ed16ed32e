"""Compare what the nodes say they have with the location log. Pure.

A node that gave no answer is unknown, never missing: the log is still trusted for it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

from cluster_remote.annex.locations import Located
from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID, Key

__all__ = ["Answers", "Check", "Comparison", "Finding", "NodeCount", "compare", "compare_nodes"]

Answers = Mapping[UUID, bool | None]
"""What each node said about one key; None if it gave no answer."""


@dataclass(frozen=True)
class Finding:
    """Something wrong with one key."""

    key: Key
    file: Annotated[str | None, "a file with this content, if files were selected"]
    missing: Annotated[
        tuple[UUID, ...], "nodes that lack it although the location log lists them; encrypted keys: all that lack it"
    ]
    unlogged: Annotated[tuple[UUID, ...], "nodes that have it although the location log does not list them"]
    damaged: Annotated[tuple[UUID, ...], "nodes whose copy has the wrong checksum; with --content"]
    moved: Annotated[tuple[UUID, ...], "those of them that moved it aside"]
    copies: Annotated[int, "number of copies, by the nodes' answers, and by the location log for all others"]
    few: Annotated[bool, "whether that is fewer than numcopies"]
    recorded: Annotated[bool, "whether the location log has been corrected"]


@dataclass(frozen=True)
class NodeCount:
    """One node's answers."""

    uuid: UUID
    name: Annotated[str, "the gateway's, or this repository's, name for the remote"]
    description: Annotated[str, "the repository's description"]
    present: Annotated[int, "keys that it has"]
    missing: Annotated[int, "keys that it lacks although the location log lists it"]
    unlogged: Annotated[int, "keys that it has although the location log does not list it"]
    unknown: Annotated[int, "keys about which it gave no answer"]
    damaged: Annotated[int, "keys of which it has a damaged copy"]
    unread: Annotated[int, "keys whose copy could not be read"]
    error: Annotated[str | None, "why it gave none: the first reason"]

    @property
    def title(self) -> str:
        """What to call the node in messages."""
        return self.description or self.name


@dataclass(frozen=True)
class Check(Verdict):
    """The result of asking every node about every key."""

    name: Annotated[str, "the remote"]
    findings: Annotated[tuple[Finding, ...], "each key with something wrong"]
    keys: Annotated[int, "number of keys that were checked"]
    numcopies: Annotated[int, "required number of copies"]
    few: Annotated[int, "keys with fewer copies than that"]
    gone: Annotated[int, "keys that are on no node and logged on none: dropped everywhere, or never stored"]
    recorded: Annotated[int, "keys whose locations were corrected in the location log"]
    encrypted: Annotated[
        bool, "whether these are keys of encrypted content, which no log lists and all nodes should have"
    ]
    content: Annotated[bool, "whether the nodes' copies were read"]
    read: Annotated[int, "copies that were read"]
    read_size: Annotated[int, "bytes of these"]
    unverifiable: Annotated[int, "copies whose keys have no checksum"]
    nodes: tuple[NodeCount, ...]
    seconds: Annotated[float, "duration"]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """One key: where the log and the nodes disagree, and how many copies that leaves."""

    missing: frozenset[UUID]
    unlogged: frozenset[UUID]
    copies: int
    gone: bool
    """Whether no repository has it, by the nodes and by the log."""

    @property
    def agrees(self) -> bool:
        return not (self.missing or self.unlogged)


def compare(each: Located, answers: Answers, counts: Callable[[UUID], bool]) -> Comparison:
    """Compare the log with the nodes' answers. `counts` says whether content in a repository counts as a copy."""
    missing = frozenset(uuid for uuid, answer in answers.items() if answer is False and uuid in each.holders)
    unlogged = frozenset(uuid for uuid, answer in answers.items() if answer is True and uuid not in each.holders)
    holders = each.holders - missing | unlogged
    return Comparison(missing, unlogged, sum(map(counts, holders)), not holders and not each.holders)


def compare_nodes(answers: Answers) -> Comparison:
    """Compare the nodes' answers about an encrypted key, which every node should have; a silent node may have it."""
    missing = frozenset(uuid for uuid, answer in answers.items() if answer is False)
    return Comparison(missing, frozenset(), len(answers) - len(missing), False)
