"""Assigning stretches of a content to nodes: whatever they do, every byte is fetched once, in order."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.cluster.stretches import AHEAD, LEAST, Plan, Stretch

MIB = 1024 * 1024


def _continue(plan: Plan[str], content: list[tuple[int, int]]) -> None:
    """Write the contiguous bytes to the file, as the owner of a plan does."""
    while (stretch := plan.first()) is not None:
        content.append((plan.frontier, stretch.position))
        plan.frontier = stretch.position


@given(
    nodes=st.integers(1, 6),
    size=st.integers(1, 3000).map(lambda number: number * 100_000),
    seed=st.integers(0, 2**32),
)
def test_every_byte_arrives_once_and_in_order_whatever_fails_or_stalls(nodes: int, size: int, seed: int) -> None:
    chance = random.Random(seed)
    plan = Plan[str](0, size)
    rates = {f"node{number}": chance.choice([0.0, 1e5, 3e6, 1e7, 3e7]) for number in range(nodes)}
    rates["node0"] = 1e7
    busy: dict[str, Stretch[str]] = {}
    content: list[tuple[int, int]] = []
    now = 0.0
    while plan.frontier < size:
        now += 0.5
        assert now < 10_000
        for node, rate in rates.items():
            if node not in busy:
                taken = plan.take(node, rate, sum(rates.values()), now)
                if taken is not None:
                    assert 0 <= taken.start < taken.end <= min(size, plan.frontier + AHEAD)
                    busy[node] = taken
        for node, stretch in list(busy.items()):
            data = min(int(rates[node] * chance.uniform(0, 1)), stretch.left)
            if data:
                stretch.received(data, now)
            while stretch.start < stretch.position and not stretch.left and data and plan.extend(stretch):
                assert stretch.end <= plan.frontier + AHEAD
                data = min(MIB, stretch.left)
                stretch.received(data, now)
            if not stretch.left or (node != "node0" and chance.random() < 0.02):
                plan.give_back(stretch)
                del busy[node]
        _continue(plan, content)
    assert [start for start, _ in content] == [0, *(end for _, end in content[:-1])]
    assert content[-1][1] == size


def test_equal_nodes_get_equal_stretches_with_few_interruptions() -> None:
    plan = Plan[str](0, 256 * MIB)
    first = [plan.take(node, 1e7, 3e7, 0.0) for node in "abc"]
    lengths = [stretch.left for stretch in first if stretch is not None]
    assert len(lengths) == 3
    assert max(lengths) - min(lengths) < LEAST
    assert lengths[0] > 50 * MIB


def test_a_fast_node_takes_over_the_end_of_a_slow_ones_stretch() -> None:
    plan = Plan[str](0, 16 * MIB)
    slow = plan.take("slow", 1e7, 1e7, 0.0)
    assert slow is not None
    assert slow.end == 16 * MIB
    slow.received(MIB, 1.0)
    taken = plan.take("fast", 1e7, 2e7, 1.0)
    assert taken is not None
    assert (taken.start, taken.end) == (slow.end, 16 * MIB)
    assert slow.left < taken.left


def test_nothing_is_taken_over_from_a_node_near_its_start_or_end() -> None:
    plan = Plan[str](0, 8 * MIB)
    almost = plan.take("almost", 1e7, 1e7, 0.0)
    assert almost is not None
    assert plan.take("idle", 1e7, 2e7, 0.1) is None
    almost.received(4 * MIB, 1.0)
    assert plan.take("idle", 1e7, 2e7, 1.0) is None


@pytest.mark.parametrize("came", [0, MIB])
def test_a_stalled_node_loses_its_whole_stretch(came: int) -> None:
    plan = Plan[str](0, 8 * MIB)
    stuck = plan.take("stuck", 1e7, 1e7, 0.0)
    assert stuck is not None
    if came:
        stuck.received(came, 0.1)
    taken = plan.take("idle", 1e7, 2e7, 5.0)
    assert taken is not None
    assert (taken.start, taken.end, stuck.left) == (came, 8 * MIB, 0)


def test_a_node_continues_past_its_stretch_if_the_next_bytes_are_unassigned() -> None:
    plan = Plan[str](0, 100 * MIB)
    first = plan.take("first", 1e7, 2e7, 0.0)
    assert first is not None
    end = first.end
    first.received(first.left, 1.0)
    assert plan.extend(first)
    assert first.end > end
    second = plan.take("second", 1e7, 2e7, 1.0)
    assert second is not None
    assert second.start == first.end
    first.received(first.left, 1.0)
    assert not plan.extend(first)
