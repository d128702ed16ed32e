"""A cluster's problems, derived from its state, and their remedies."""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest

from cluster_remote.diagnosis.problems import find_problems, many
from cluster_remote.diagnosis.state import ClusterState, Contact, GatewayState, NodeState, Sample
from cluster_remote.p2p.key import UUID

NODE = UUID("00000001-0000-4000-8000-000000000000")
WELL = Contact(True, None, NODE, 4, 0.1, 0.01)
AWAY = Contact(False, "nobody there", None, None, None, None)

STATE = NodeState(
    uuid=NODE,
    name="disk1",
    description="the disk",
    contact=WELL,
    trust="semitrusted",
    groups=(),
    cost=100,
    preferred=None,
    required=None,
    keys=5,
    size=50,
    unsized=0,
    lacking=0,
    lacking_size=0,
    sample=Sample(5, 0, 0),
    free=10**12,
    path="/mnt/disk1",
)
CLUSTER = ClusterState(
    name="all of it",
    uuid=UUID("ac000001-0000-8000-8000-000000000000"),
    description="",
    tracking="nodes",
    keys=5,
    size=50,
    unverifiable=0,
    gateway=GatewayState("/srv/gateway", "the gateway", WELL),
    nodes=(STATE,),
    problems=(),
)


def test_a_healthy_cluster_has_no_problems() -> None:
    assert find_problems(CLUSTER) == []


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"contact": AWAY}, "node-unreachable"),
        ({"sample": Sample(5, 2, 0)}, "content-missing"),
        ({"sample": Sample(5, 0, 3)}, "content-unlogged"),
        ({"lacking": 7}, "lagging"),
        ({"free": 5 * 10**6}, "disk-full"),
        ({"contact": replace(WELL, version=1)}, "old-protocol"),
    ],
)
def test_a_nodes_problem_names_it_and_a_command(change: dict[str, object], kind: str) -> None:
    (problem,) = find_problems(replace(CLUSTER, nodes=(replace(STATE, **change),)))  # type: ignore[arg-type]
    assert (problem.kind, problem.node) == (kind, NODE)
    assert "the disk" in problem.words
    assert problem.commands
    for command in problem.commands:
        # A name with spaces is one word of the command.
        assert "all of it" not in command or "all of it" in shlex.split(command)


def test_a_dead_node_or_one_with_preferred_content_lacking_keys_is_no_problem() -> None:
    dead = replace(STATE, contact=None, trust="dead", lacking=9)
    preferring = replace(STATE, preferred="include=*.jpg", lacking=9)
    assert find_problems(replace(CLUSTER, nodes=(dead, preferring))) == []


def test_a_disk_swapped_before_git_annex_looked_is_named_as_replaced() -> None:
    other = UUID("0de00000-0000-4000-8000-00000000000f")
    contact = replace(AWAY, uuid=other, stranger=True)
    (problem,) = find_problems(replace(CLUSTER, gateway=None, nodes=(replace(STATE, contact=contact),)))
    assert (problem.kind, problem.node, problem.about) == ("node-replaced", NODE, STATE.name)
    assert str(other) in problem.words


def test_a_problem_shown_by_a_sample_is_not_repeated_as_lagging() -> None:
    node = replace(STATE, sample=Sample(5, 1, 0), lacking=3)
    assert [problem.kind for problem in find_problems(replace(CLUSTER, nodes=(node,)))] == ["content-missing"]


def test_an_unavailable_gateway_is_one_problem_and_not_one_per_node() -> None:
    gateway = GatewayState("/srv/gateway", "", AWAY)
    nodes = (replace(STATE, contact=AWAY, sample=None),)
    assert [problem.kind for problem in find_problems(replace(CLUSTER, gateway=gateway, nodes=nodes))] == [
        "gateway-unreachable"
    ]


def test_a_cluster_without_nodes_and_an_unverified_remote_are_named() -> None:
    problems = find_problems(replace(CLUSTER, nodes=()), unverified=3)
    assert [problem.kind for problem in problems] == ["not-verified", "no-nodes"]
    assert problems[0].commands[1] == "git annex verifyremote 'all of it' --safe 3"


@pytest.mark.parametrize(("number", "words"), [(0, "0 keys"), (1, "1 key"), (12345, "12,345 keys")])
def test_counts_agree_in_number_with_their_nouns(number: int, words: str) -> None:
    assert many(number, "key") == words
