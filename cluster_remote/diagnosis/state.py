"""The state of clusters at one moment: the values that a survey comes to, and that people and scripts are shown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster_remote.annex.branchlog import Trust
from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID

__all__ = ["ClusterState", "Contact", "GatewayState", "NodeState", "Sample", "Status"]


@dataclass(frozen=True)
class Contact:
    """What came of talking with somebody."""

    reachable: Annotated[bool, "whether it answered within the time it was given"]
    error: Annotated[str | None, "why it did not"]
    uuid: Annotated[UUID | None, "who answered"]
    version: Annotated[int | None, "of the protocol, as agreed on"]
    connecting: Annotated[float | None, "seconds until it had said who it is"]
    latency: Annotated[float | None, "seconds from a request to its answer, the fastest of three"]
    stranger: Annotated[bool, "whether another repository answered, or the gateway does not lead to this one"] = False


@dataclass(frozen=True)
class GatewayState:
    """What stands before the nodes."""

    address: Annotated[str, "the way to it"]
    description: Annotated[str, "what people call the repository that answered"]
    contact: Contact


@dataclass(frozen=True)
class Sample:
    """What a node said about keys that were picked at random from those that any node of the cluster has by the log."""

    asked: Annotated[int, "how many it was asked about"]
    missing: Annotated[int, "how many of these it does not have although the log says so"]
    unlogged: Annotated[int, "how many of these it has although the log does not say so"]


@dataclass(frozen=True)
class NodeState:
    """One node."""

    uuid: UUID
    name: Annotated[str, "what the gateway, or this repository, calls the remote"]
    description: Annotated[str, "what people call the repository"]
    contact: Annotated[Contact | None, "null for a dead one, which is not asked"]
    trust: Trust
    groups: tuple[str, ...]
    cost: Annotated[float | None, "of this repository's remote for it; null if it has none"]
    preferred: Annotated[str | None, "preferred content expression"]
    required: Annotated[str | None, "required content expression"]
    keys: Annotated[int | None, "contents it has by the location log; null outside of a repository"]
    size: Annotated[int | None, "bytes of these, as far as their keys say"]
    unsized: Annotated[int | None, "how many of these do not say their size"]
    lacking: Annotated[int | None, "contents that other nodes of the cluster have by the location log, and it has not"]
    lacking_size: Annotated[int | None, "bytes of these, as far as their keys say"]
    sample: Annotated[Sample | None, "null where it was not asked"]
    free: Annotated[int | None, "bytes free on its disk, where that can be seen from here"]
    path: Annotated[str | None, "its place on this machine, where it has one"]
    remote: Annotated[bool, "whether this repository has a way to it; without one it is not asked"] = True

    @property
    def title(self) -> str:
        """What to call it before people."""
        return self.description or self.name


@dataclass(frozen=True)
class ClusterState:
    """A cluster remote, or what answers at an address."""

    name: Annotated[str, "the remote, or the address"]
    uuid: UUID
    description: Annotated[str, "what people call the cluster, or the repository"]
    tracking: Annotated[Literal["nodes", "remote"], "whether the nodes are the copies, or the remote as a whole is one"]
    keys: Annotated[int | None, "contents that any node has by the location log; null outside of a repository"]
    size: Annotated[int | None, "bytes of these, as far as their keys say"]
    unverifiable: Annotated[
        int | None,
        "of these, the contents without a checksum (WORM and URL keys), which git-annex gets from a special remote "
        "only with annex-security-allow-unverified-downloads; null outside of a repository",
    ]
    gateway: Annotated[GatewayState | None, "null where the nodes are remotes of this repository"]
    nodes: tuple[NodeState, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Status(Verdict):
    """The state of every cluster that was asked for."""

    clusters: tuple[ClusterState, ...]
