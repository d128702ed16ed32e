"""The cluster remotes of a repository, as the diagnostic commands see them."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_remote.access.view import View
from cluster_remote.access.ways import ThroughGateway as Gateway
from cluster_remote.access.ways import costs_of
from cluster_remote.p2p.key import UUID

__all__ = ["Gateway", "Unusable", "View", "costs_of"]


@dataclass(frozen=True)
class Unusable:
    """A cluster remote that cannot be examined, and why; `pending` is the number for git annex verifyremote."""

    label: str
    uuid: UUID
    description: str
    reason: str
    pending: int | None = None
