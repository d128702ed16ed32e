"""Retrieve content that only git-annex can verify, again: chunks and encrypted content.

If git-annex asks for such content again, the last copy was wrong, and there is no telling which node's copy is right.
So it gets a copy that two nodes agree on; every second time, and if no two agree, it gets one node's copy, from a
different node each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Progress
from cluster_remote.remote.gateway_nodes import GatewayNodes
from cluster_remote.remote.retrieval import retrieve_apart

__all__ = ["retrieve_agreed"]


async def retrieve_agreed(
    gateway_nodes: GatewayNodes, nodes: Collection[UUID], key: Key, attempt: int, path: bytes, progress: Progress
) -> bool:
    """Download a copy that two nodes agree on, or, every second time, one node's copy; return False if none has it.

    `attempt` counts from 0, and selects the node. Raises CannotWrite.
    """
    copies: dict[UUID, bytes] = {}

    async def from_node(node: UUID, *, agreed: bool) -> bool:
        def is_wanted(file: Path) -> bool:
            digest = _digest(file)
            known = digest in copies.values()
            copies[node] = digest
            return known or not agreed

        try:
            async with gateway_nodes.session(node) as session:
                return await retrieve_apart(session, key, path, progress, is_wanted)
        except SessionError:
            return False

    if attempt % 2 == 0:
        for node in sorted(nodes):
            if await from_node(node, agreed=True):
                return True
    # Every second time anyway, because two copies may have the same damage.
    have = sorted(copies or nodes)
    for number in range(len(have)):
        if await from_node(have[(attempt + number) % len(have)], agreed=False):
            return True
    return False


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.blake2b()
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
        return digest.digest()
