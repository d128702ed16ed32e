"""A problem and its remedy: one value that `status`, `check`, `repair` and `doctor` share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from cluster_remote.p2p.key import UUID

__all__ = ["Kind", "Problem", "Verdict"]

Kind = Literal[
    "gateway-unreachable",
    "node-unreachable",
    "node-removed",
    "node-replaced",
    "node-without-remote",
    "no-nodes",
    "content-missing",
    "content-unlogged",
    "damaged",
    "lagging",
    "few-copies",
    "lost",
    "out-of-reach",
    "disk-full",
    "old-protocol",
    "not-verified",
    "unusable",
    "program-missing",
    "program-elsewhere",
    "program-old",
    "settings-unusable",
    "made-with-uuid",
    "encrypted",
    "clear-text",
    "cluster-unknown",
    "node-remotes-missing",
    "cost",
    "unreachable",
    "left-over",
    "no-such-cluster",
    "node-unknown",
    "node-not-listed",
    "node-not-configured",
    "not-fetched",
    "alias-behind",
    "readable-by-others",
]


@dataclass(frozen=True)
class Problem:
    """Something wrong, where it is, and what to do about it."""

    kind: Annotated[Kind, "for scripts; the wording may change"]
    words: Annotated[str, "what is wrong"]
    remedy: Annotated[str, "what to do"]
    commands: Annotated[tuple[str, ...], "commands to run here, one after the other"]
    node: Annotated[UUID | None, "the node it concerns; null if it is not one node"] = None
    about: Annotated[str | None, "the remote, program or file it concerns"] = None


@dataclass(frozen=True)
class Verdict:
    """The base class of all results that say whether something is wrong."""

    healthy: Annotated[bool, "whether no problems were found"]
    well: Annotated[bool, "the former name of healthy"] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "well", self.healthy)
