"""A few thousand inputs of the fuzz run; `make fuzz` takes a million."""

from __future__ import annotations

import pytest

from tests.proof.fuzz import CLIENTS, SERVERS, feed, feed_client, feed_server

pytestmark = pytest.mark.anyio

INPUTS = 2000


async def test_no_input_crashes_or_deceives_parser_server_or_client() -> None:
    counts, crashes = await feed(7, 0, INPUTS)
    assert not crashes, crashes[0]
    played = sum(counts[what] for what in counts if what.startswith(("server", "client")))
    assert played == INPUTS
    assert min(counts.values()) > INPUTS / 100, f"the inputs are too much alike: {counts}"


async def test_the_unmutated_conversations_succeed() -> None:
    for said in CLIENTS[:8]:
        assert await feed_server(said, 64) == "hung up"
    for request, said in SERVERS[:-1]:
        assert (await feed_client(request, said, 64), said) in {("outcome", said), ("error", SERVERS[7][1])}
