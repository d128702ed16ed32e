"""The state of clusters: the values shown to people and scripts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from cluster_remote.annex.branchlog import Trust
from cluster_remote.diagnosis.problem import Problem, Verdict
from cluster_remote.p2p.key import UUID

__all__ = ["ClusterState", "Contact", "GatewayState", "NodeState", "Sample", "Status", "Unusable"]


@dataclass(frozen=True)
class Contact:
    """The result of contacting a server or node."""

    reachable: Annotated[bool, "whether it answered in time"]
    error: Annotated[str | None, "why not"]
    uuid: Annotated[UUID | None, "who answered"]
    version: Annotated[int | None, "the negotiated protocol version"]
    connecting: Annotated[float | None, "seconds until it identified itself"]
    latency: Annotated[float | None, "seconds from a request to its answer, the fastest of three"]
    stranger: Annotated[bool, "whether another repository answered, or the gateway does not serve this one"] = False


@dataclass(frozen=True)
class GatewayState:
    """The gateway in front of the nodes."""

    address: Annotated[str, "its address"]
    description: Annotated[str, "the description of the repository that answered"]
    contact: Contact


@dataclass(frozen=True)
class Sample:
    """A node's answers about random keys, out of those that any node of the cluster has according to the log."""

    asked: Annotated[int, "number of keys it was asked about"]
    missing: Annotated[int, "number of these that it lacks although the log lists it"]
    unlogged: Annotated[int, "number of these that it has although the log does not list it"]


@dataclass(frozen=True)
class NodeState:
    """One node."""

    uuid: UUID
    name: Annotated[str, "the gateway's, or this repository's, name for the remote"]
    description: Annotated[str, "the repository's description"]
    contact: Annotated[Contact | None, "null for a dead node, which is not asked"]
    trust: Trust
    groups: tuple[str, ...]
    cost: Annotated[float | None, "of this repository's remote for it; null if it has none"]
    preferred: Annotated[str | None, "preferred content expression"]
    required: Annotated[str | None, "required content expression"]
    keys: Annotated[int | None, "contents that it has by the location log; null outside a repository"]
    size: Annotated[int | None, "bytes of these, as far as their keys say"]
    unsized: Annotated[int | None, "number of these of unknown size"]
    lacking: Annotated[int | None, "contents that it lacks and other nodes have, by the location log"]
    lacking_size: Annotated[int | None, "bytes of these, as far as their keys say"]
    sample: Annotated[Sample | None, "null if it was not asked"]
    free: Annotated[int | None, "bytes free on its disk, if visible from here"]
    path: Annotated[str | None, "its directory on this machine, if any"]
    remote: Annotated[bool, "whether this repository has a remote for it; otherwise it is not asked"] = True

    @property
    def title(self) -> str:
        """What to call the node in messages."""
        return self.description or self.name


@dataclass(frozen=True)
class ClusterState:
    """A cluster remote, or the server at an address."""

    name: Annotated[str, "the remote or the address"]
    uuid: UUID
    description: Annotated[str, "the description of the cluster or the repository"]
    tracking: Annotated[Literal["nodes", "remote"], "whether the nodes are the copies, or the remote as a whole is one"]
    keys: Annotated[int | None, "contents that any node has by the location log; null outside a repository"]
    size: Annotated[int | None, "bytes of these, as far as their keys say"]
    unverifiable: Annotated[
        int | None,
        "of these, the contents without a checksum (WORM and URL keys), which git-annex gets from a special remote "
        "only with annex-security-allow-unverified-downloads; null outside a repository",
    ]
    gateway: Annotated[GatewayState | None, "null if the nodes are remotes of this repository"]
    nodes: tuple[NodeState, ...]
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Status(Verdict):
    """The state of all requested clusters."""

    clusters: tuple[ClusterState, ...]


@dataclass(frozen=True)
class Unusable:
    """A cluster remote that cannot be examined, and why; `pending` is the number for git annex verifyremote."""

    label: str
    uuid: UUID
    description: str
    reason: str
    pending: int | None = None
