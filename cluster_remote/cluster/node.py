"""A node of a cluster as seen from here: its identity, its cost, and how to open a session with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session

__all__ = ["NETWORK_COST", "Kind", "Node"]

NETWORK_COST = 200.0
"""git-annex's default cost of a repository on the network."""

# A git repository on this machine or over ssh; anything reached through git-annex; another gateway of the cluster.
Kind = Literal["local", "ssh", "proxied", "gateway"]


@dataclass(frozen=True)
class Node:
    """One node, or another gateway with the nodes behind it.

    `uuid` is that of the node, or of the cluster if this is another gateway. `name` is the remote's, and unique;
    `description` is for people. Costs compare as in git-annex: lower is better. `session` creates a new
    session without connecting.
    """

    uuid: UUID
    name: str
    description: str
    cost: float
    session: Callable[[], Session] = field(repr=False, compare=False)
    kind: Kind = "local"
    members: frozenset[UUID] = frozenset()
    """The nodes behind another gateway, as far as known."""
    writable: bool = True
    """Whether the user allows storing and removing content there (`annex-readonly` is not set)."""
    location: str = ""
    """The directory or host, for people; empty if only git-annex knows."""

    @property
    def repositories(self) -> frozenset[UUID]:
        """The repositories that hold content and are reached here. Never a cluster."""
        return self.members if self.uuid.is_cluster else frozenset({self.uuid})

    def __str__(self) -> str:
        """Format like git-annex does for a repository that is a remote."""
        if self.description in ("", self.name):
            return self.name
        return f"{self.description} [{self.name}]"
