"""Routing requests to nodes, for any cluster and any log."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.cluster.node import Node
from cluster_remote.cluster.routing import (
    UploadAnswer,
    gained,
    in_log,
    kept,
    lacking,
    lost,
    presence,
    reading_order,
    removal_outcome,
    upload_outcome,
)
from cluster_remote.p2p.errors import SessionError, Unreachable
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Present, Removal, Stored
from tests.cluster.fakes import CLUSTER, Peer, uuid

uuid_sets = st.frozensets(st.integers(0, 8).map(uuid), max_size=5)
answers: st.SearchStrategy[UploadAnswer] = st.one_of(
    st.builds(Present, uuid_sets),
    st.builds(Stored, st.booleans(), uuid_sets, st.just(())),
    st.just(Unreachable("away")),
)
removals: st.SearchStrategy[Removal | SessionError] = st.one_of(
    st.builds(Removal, st.booleans(), uuid_sets, st.just(())), st.just(Unreachable("away"))
)


def all_repositories(nodes: Iterable[Node]) -> frozenset[UUID]:
    """Return every repository of the cluster that these nodes lead to."""
    return frozenset().union(*(node.repositories for node in nodes))


@st.composite
def clusters(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(1, 6))
    costs = draw(st.lists(st.sampled_from([50.0, 100.0, 200.0]), min_size=count, max_size=count))
    behind = draw(st.lists(st.frozensets(st.integers(20, 23).map(uuid), max_size=2), min_size=count, max_size=count))
    return [Peer(n).node(cost, members) for n, (cost, members) in enumerate(zip(costs, behind, strict=True))]


@given(clusters(), st.frozensets(st.integers(0, 23).map(uuid)))
def test_uploads_go_to_exactly_the_unrecorded_nodes(nodes: list[Node], holders: frozenset[UUID]) -> None:
    targets = lacking(nodes, holders)
    assert all((node in targets) == bool(node.repositories - holders) for node in nodes)
    assert all_repositories(nodes) <= holders or targets


@given(clusters(), st.frozensets(st.integers(0, 23).map(uuid)), st.integers(0, 5))
def test_reads_try_every_node_once_recorded_and_cheapest_first(
    nodes: list[Node], holders: frozenset[UUID], turn: int
) -> None:
    order = reading_order(nodes, holders, lambda count: turn % count)
    assert sorted(node.name for node in (*order.logged, *order.others)) == sorted(node.name for node in nodes)
    assert all(node.repositories & holders for node in order.logged)
    assert not any(node.repositories & holders for node in order.others)
    for part in (order.logged, order.others):
        costs = [node.cost for node in part]
        assert costs == sorted(costs)


def test_every_equally_good_node_comes_first_for_some_choice() -> None:
    nodes = [Peer(n).node(100.0) for n in range(4)]
    everywhere = all_repositories(nodes)
    turns = itertools.count()
    firsts = {reading_order(nodes, everywhere, lambda count: next(turns) % count).logged[0] for _ in nodes}
    assert firsts == set(nodes)


@given(st.lists(answers, max_size=5))
def test_an_upload_succeeds_if_any_node_stored_and_names_all_that_did(given: list[UploadAnswer]) -> None:
    asked = [(Peer(n).node(), answer) for n, answer in enumerate(given)]
    outcome = upload_outcome(asked, all_repositories(node for node, _ in asked))
    new = {uuid(n) for n, a in enumerate(given) if isinstance(a, Stored) and a.stored}
    old = {uuid(n) for n, a in enumerate(given) if isinstance(a, Present)}
    if isinstance(outcome, Present):
        assert given
        assert outcome.uuids == old
        assert len(old) == len(given)
    else:
        assert outcome.stored == bool(new or old)
        named_itself = {uuid(n) for n, a in enumerate(given) if isinstance(a, Stored) and uuid(n) in a.uuids}
        assert outcome.uuids == new | named_itself
        assert outcome.present == old
        failed = {node.name for node, a in asked if node.uuid not in outcome.uuids | old}
        lying = {node.name for node, a in asked if isinstance(a, Present | Stored) and a.uuids - {node.uuid}}
        named = {node.name for node, _ in asked if any(str(node) in reason for reason in outcome.reasons)}
        assert named == failed | lying


@given(answers)
def test_a_gateway_is_believed_only_about_nodes_of_the_cluster(answer: UploadAnswer) -> None:
    gateway = Peer(1).node(members=frozenset({uuid(5), uuid(6)}))
    cluster = frozenset({uuid(4), uuid(5), uuid(6)})
    outcome = upload_outcome([(gateway, answer)], cluster)
    said = frozenset[UUID]() if isinstance(answer, SessionError) else answer.uuids
    told = outcome.uuids | (outcome.present if isinstance(outcome, Stored) else frozenset())
    assert told == said & cluster
    complaints = outcome.reasons if isinstance(outcome, Stored) else ()
    assert any("not nodes of this cluster" in reason for reason in complaints) == bool(said - cluster)


@given(st.lists(removals, max_size=5))
def test_a_removal_succeeds_only_if_every_node_removed_and_names_those_that_did_not(
    given: list[Removal | SessionError],
) -> None:
    asked = [(Peer(n).node(), answer) for n, answer in enumerate(given)]
    outcome = removal_outcome(asked, all_repositories(node for node, _ in asked))
    good = [isinstance(a, Removal) and a.removed for a in given]
    assert outcome.removed == all(good)
    assert len(outcome.reasons) == good.count(False)
    assert {uuid(n) for n, ok in enumerate(good) if ok} <= outcome.uuids


@given(answers, removals)
def test_a_cluster_never_counts_as_a_copy(answer: UploadAnswer, removal: Removal | SessionError) -> None:
    gateway = Peer(1).node(members=frozenset({uuid(5)}))
    cluster = frozenset({uuid(5)})
    assert CLUSTER not in gained(gateway, answer, cluster) | kept(gateway, answer, cluster)
    assert CLUSTER not in lost(gateway, removal, cluster)


@given(st.lists(st.sampled_from([True, False, Unreachable("away")]), max_size=5))
def test_unknown_is_never_reported_as_absent(given: list[bool | SessionError]) -> None:
    verdict = presence(given)
    assert (verdict is True) == (True in given)
    assert (verdict is False) == all(answer is False for answer in given)


@pytest.mark.parametrize(
    ("key", "known"),
    [
        ("SHA256E-s5--abc.txt", True),
        ("GPGHMACSHA1--abc", False),
        ("SHA256-s5-S2-C1--abc", False),
        ("WORM-s2--SHA256-s5-S2-C1--abc", False),
        ("WORM-s2-m1--a-file", True),
        ("WORM-s2--SHA256-s5--abc", True),
    ],
)
def test_the_log_is_not_consulted_for_chunks_and_encrypted_content(key: str, known: bool) -> None:
    assert in_log(Key(key)) is known


def test_a_node_is_described_as_git_annex_describes_it() -> None:
    assert str(Peer(1).node()) == "disk 1 (shelf) [node1]"
    assert str(Node(uuid(1), "nas", "nas", 100.0, Peer(1).session)) == "nas"
    assert str(Node(uuid(1), "nas", "", 100.0, Peer(1).session)) == "nas"
