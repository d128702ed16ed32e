"""Content that only git-annex can verify: chunks, and encrypted content.

If it asks for one again, what it got was wrong, and nothing tells which node's copy is right. So it gets what two nodes
agree on, or, every second time and if no two agree, the copy of one node, another one each time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path

from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Progress
from cluster_remote.remote.behind import NodesBehind
from cluster_remote.remote.retrieval import retrieve_apart

__all__ = ["retrieve_agreed"]


async def retrieve_agreed(
    behind: NodesBehind, nodes: Collection[UUID], key: Key, attempt: int, path: bytes, progress: Progress
) -> bool:
    """Download content that two nodes have alike, or, every second time, from one node; return False if none has it.

    `attempt` counts from 0, and says which node. Raises CannotWrite.
    """
    copies: dict[UUID, bytes] = {}

    async def from_node(node: UUID, *, alike: bool) -> bool:
        def is_wanted(file: Path) -> bool:
            digest = _digest(file)
            known = digest in copies.values()
            copies[node] = digest
            return known or not alike

        try:
            async with behind.session(node) as session:
                return await retrieve_apart(session, key, path, progress, is_wanted)
        except SessionError:
            return False

    if attempt % 2 == 0:
        for node in sorted(nodes):
            if await from_node(node, alike=True):
                return True
    # Also because two copies may be damaged alike.
    have = sorted(copies or nodes)
    for number in range(len(have)):
        if await from_node(have[(attempt + number) % len(have)], alike=False):
            return True
    return False


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        digest = hashlib.blake2b()
        while chunk := file.read(1024 * 1024):
            digest.update(chunk)
        return digest.digest()
