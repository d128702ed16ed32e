"""What one key's fault, or one node's, means for the others."""

from __future__ import annotations

import pytest

from cluster_remote.cluster.asking import NodeSessions
from cluster_remote.cluster.node import Node
from cluster_remote.cluster.reachability import Reachability
from cluster_remote.p2p.errors import (
    ConnectionLost,
    NotReached,
    NotTheProtocol,
    ProtocolError,
    Refused,
    SessionError,
    TimedOut,
    Unreachable,
)
from cluster_remote.p2p.key import UUID

NODE_UUID = UUID("11111111-1111-1111-1111-111111111111")
NODE = Node(NODE_UUID, "node1", "", 100.0, session=lambda: pytest.fail("not asked"))


@pytest.mark.parametrize(
    ("error", "is_away"),
    [
        (Refused, False),
        (ProtocolError, False),
        (ConnectionLost, False),
        (NotReached, True),
        (NotTheProtocol, True),
        (TimedOut, True),
        (Unreachable, True),
    ],
)
def test_only_what_happened_to_the_connection_makes_a_node_count_as_away(
    error: type[SessionError], is_away: bool
) -> None:
    now = [0.0]
    reachability = Reachability(lambda: now[0])
    asking = NodeSessions(5.0, reachability)

    def ask() -> None:
        with asking.observed(NODE):
            now[0] += 1.0
            raise error("it could not")

    with pytest.raises(error):
        ask()
    assert (reachability.resting("node1") is not None) is is_away
