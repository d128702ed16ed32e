"""Comparing nodes' answers with the log, for any log and any answers."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.annex.locations import Located
from cluster_remote.diagnosis.comparison import compare
from cluster_remote.p2p.key import UUID, Key

KEY = Key("WORM-s1--x")
UUIDS = [UUID(f"0000000{number}-0000-4000-8000-000000000000") for number in range(6)]
NODES = UUIDS[:4]

holders = st.frozensets(st.sampled_from(UUIDS))
answers = st.fixed_dictionaries({node: st.sampled_from([True, False, None]) for node in NODES})


def everybody(uuid: UUID) -> bool:
    return True


@given(holders, answers)
def test_content_is_missing_only_if_the_node_itself_says_so(
    log: frozenset[UUID], said: dict[UUID, bool | None]
) -> None:
    found = compare(Located(KEY, log), said, everybody)
    assert found.missing == {node for node in log & said.keys() if said[node] is False}
    assert found.unlogged == {node for node in said.keys() - log if said[node] is True}


@given(holders, answers)
def test_nodes_without_an_answer_change_nothing(log: frozenset[UUID], said: dict[UUID, bool | None]) -> None:
    known = {node: answer for node, answer in said.items() if answer is not None}
    assert compare(Located(KEY, log), said, everybody) == compare(Located(KEY, log), known, everybody)


@given(holders, answers)
def test_recording_the_truth_leaves_no_discrepancy(log: frozenset[UUID], said: dict[UUID, bool | None]) -> None:
    found = compare(Located(KEY, log), said, everybody)
    after = compare(Located(KEY, log - found.missing | found.unlogged), said, everybody)
    assert after.agrees
    assert after.copies == found.copies


@given(holders, answers, st.frozensets(st.sampled_from(UUIDS)))
def test_copies_are_the_counted_locations_not_known_to_be_wrong(
    log: frozenset[UUID], said: dict[UUID, bool | None], trusted: frozenset[UUID]
) -> None:
    found = compare(Located(KEY, log), said, trusted.__contains__)
    there = {uuid for uuid in UUIDS if said.get(uuid) or (uuid in log and said.get(uuid) is None)}
    assert found.copies == len(there & trusted)


@given(holders, answers)
def test_a_key_is_gone_if_nobody_has_it_and_the_log_names_nobody(
    log: frozenset[UUID], said: dict[UUID, bool | None]
) -> None:
    found = compare(Located(KEY, log), said, everybody)
    assert found.gone == (not log and not any(said.values()))
