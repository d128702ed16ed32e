"""A node of a cluster as this end sees it: who it is, what it costs, and how to come to a session with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session

__all__ = ["Kind", "Node"]

# A git repository on this machine or over ssh; whatever git-annex is asked to reach; another gateway of the cluster.
Kind = Literal["local", "ssh", "proxied", "gateway"]


@dataclass(frozen=True)
class Node:
    """One node, or another gateway with the nodes behind it.

    `uuid` is who answers there: the node itself, or the cluster where it is another gateway. `name` is the remote's,
    and no two nodes share one; `description` is what people call it. Costs compare as in git-annex: lower is nearer.
    `session` makes a new session without opening anything.
    """

    uuid: UUID
    name: str
    description: str
    cost: float
    session: Callable[[], Session] = field(repr=False, compare=False)
    kind: Kind = "local"
    members: frozenset[UUID] = frozenset()
    """The nodes behind another gateway, as far as they are known."""
    writable: bool = True
    """Whether the user lets anything be stored there and removed (`annex-readonly` is not set)."""
    place: str = ""
    """Where it is, for people: a directory, a host; empty where git-annex has to be asked for it."""

    @property
    def repositories(self) -> frozenset[UUID]:
        """Where content lies that is reached here. A cluster is never among them."""
        return self.members if self.uuid.is_cluster else frozenset({self.uuid})

    def __str__(self) -> str:
        """As git-annex writes a repository that is a remote."""
        if self.description in ("", self.name):
            return self.name
        return f"{self.description} [{self.name}]"
