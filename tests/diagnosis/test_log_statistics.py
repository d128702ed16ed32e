"""Statistics of a location log, per node."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.annex.locations import Located
from cluster_remote.diagnosis.log_statistics import LogStatistics
from cluster_remote.p2p.key import UUID, Key

UUIDS = [UUID(f"0000000{number}-0000-4000-8000-000000000000") for number in range(5)]
NODES, DEAD = UUIDS[:3], UUIDS[2]

logs = st.lists(st.tuples(st.none() | st.integers(0, 1000), st.frozensets(st.sampled_from(UUIDS))), max_size=30).map(
    lambda entries: [
        Located(Key(f"WORM--{number}" if size is None else f"WORM-s{size}--{number}"), holders)
        for number, (size, holders) in enumerate(entries)
    ]
)


@given(logs, st.integers(1, 7))
def test_keys_are_counted_per_node_and_lacking_keys_against_living_nodes(log: list[Located], batch: int) -> None:
    statistics = LogStatistics(NODES, 0, [DEAD])
    for start in range(0, len(log), batch):
        statistics.count(log[start : start + batch])
    within_reach = [each for each in log if each.holders & {NODES[0], NODES[1]}]
    for node in NODES:
        held = [each for each in log if node in each.holders]
        lacking = [each for each in within_reach if node not in each.holders]
        for tally, expected in ((statistics.held[node], held), (statistics.lacking[node], lacking)):
            sizes = [each.key.size for each in expected]
            assert tally.keys == len(expected)
            assert tally.size == sum(size for size in sizes if size is not None)
            assert tally.unsized == sizes.count(None)
    assert statistics.all.keys == len(within_reach)


@given(logs, st.integers(0, 40))
def test_a_sample_is_of_distinct_keys_that_some_node_has(log: list[Located], wanted: int) -> None:
    statistics = LogStatistics(NODES, wanted)
    statistics.count(log)
    candidates = {each.key for each in log if each.holders & frozenset(NODES)}
    keys = [each.key for each in statistics.sample]
    assert len(keys) == len(set(keys)) == min(wanted, len(candidates))
    assert set(keys) <= candidates


def test_every_key_is_equally_likely_to_be_sampled() -> None:
    log = [Located(Key(f"WORM--{number}"), frozenset(NODES)) for number in range(20)]
    seen: Counter[Key] = Counter()
    choose = random.Random(1)
    for _ in range(2000):
        statistics = LogStatistics(NODES, 5, choose=choose)
        statistics.count(log)
        seen.update(each.key for each in statistics.sample)
    # 500 on average, with a standard deviation of 19.
    assert all(400 < seen[each.key] < 600 for each in log)
