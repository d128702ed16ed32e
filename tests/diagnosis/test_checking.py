"""Comparing nodes and log while content is stored and dropped: concurrent changes are no discrepancy."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from cluster_remote.access.view import View
from cluster_remote.access.ways import Way
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.locations import Selection
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.node import Node
from cluster_remote.diagnosis.checking import check, numcopies
from cluster_remote.diagnosis.comparison import Check, Finding
from cluster_remote.diagnosis.content import Options
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.stream import Trace
from cluster_remote.transport.opening import Caller
from tests.annex.conftest import here, real
from tests.diagnosis.places import Place
from tests.support.repositories import Repository as RealRepository

pytestmark = pytest.mark.anyio

__all__ = ["here", "real"]

KEY = Key("WORM-s3--contended")
CLUSTER = UUID("ac000001-0000-8000-8000-000000000000")


@dataclass(frozen=True)
class OneNode(Way):
    """A scripted cluster of a single node."""

    the: Node
    caller: Caller

    def session(self, server: UUID | None = None, trace: Trace | None = None) -> Session:
        return self.the.session()

    def node(self, uuid: UUID, trace: Trace | None = None) -> Session:
        return self.the.session()

    def nodes(self, cluster: UUID) -> tuple[Node, ...]:
        return (self.the,)


async def checked(repository: Repository, place: Place, *, fix: bool = True) -> tuple[Check, list[Finding]]:
    findings: list[Finding] = []
    view = View(
        label="all",
        repository=repository,
        config=repository.config(),
        logs=BranchLogs({}),
        settings=None,
        known_uuid=CLUSTER,
        server=None,
        way=OneNode(place.node, Caller(CLUSTER, 10)),
    )
    outcome = await check(
        view,
        Selection(keys=(KEY,)),
        Options(fix=fix, jobs=1),
        tell=findings.append,
        advance=lambda _node, _count, _answers: None,
    )
    return outcome, findings


def setpresentkey(real: RealRepository, uuid: UUID, value: str) -> None:
    real.annex("setpresentkey", KEY.text, uuid.text, value)


async def test_an_upload_finishing_while_its_node_is_asked_is_not_recorded_as_missing(
    real: RealRepository, here: Repository
) -> None:
    place = Place(0, lambda asked, _key: asked > 1)
    setpresentkey(real, place.node.uuid, "1")
    outcome, findings = await checked(here, place)
    assert findings == []
    assert outcome.nodes[0].missing == 0
    assert real.locations(KEY.text) == {place.node.uuid.text}


async def test_content_dropped_while_its_node_is_asked_is_no_finding(real: RealRepository, here: Repository) -> None:
    def drop(_asked: int, _key: Key) -> SessionError | bool | None:
        # The dropping client records that after the log was read here and before the node answers.
        setpresentkey(real, place.node.uuid, "0")
        return False

    place = Place(0, drop)
    setpresentkey(real, place.node.uuid, "1")
    setpresentkey(real, UUID("00000009-0000-4000-8000-000000000000"), "1")
    outcome, findings = await checked(here, place)
    assert findings == []
    assert outcome.recorded == 0


async def test_a_lasting_discrepancy_is_found_and_recorded(real: RealRepository, here: Repository) -> None:
    place = Place(0, lambda _asked, _key: True)
    outcome, findings = await checked(here, place)
    assert [finding.unlogged for finding in findings] == [(place.node.uuid,)]
    assert outcome.recorded == 1
    assert real.locations(KEY.text) == {place.node.uuid.text}
    # Once with all others, once before the line is written, and once after.
    assert place.asked == 3


async def test_content_dropped_before_its_line_is_written_is_recorded_as_gone(
    real: RealRepository, here: Repository
) -> None:
    def has(asked: int, _key: Key) -> bool:
        if asked == 3:
            # It was dropped, and that was recorded, before the line that says that it is there.
            assert place.node.uuid.text in real.locations(KEY.text)
        return asked < 3

    place = Place(0, has)
    other = UUID("00000009-0000-4000-8000-000000000000")
    setpresentkey(real, other, "1")
    outcome, findings = await checked(here, place)
    assert real.locations(KEY.text) == {other.text}
    assert place.asked == 4
    assert (findings, outcome.healthy) == ([], True)


async def test_content_that_keeps_changing_is_not_claimed_to_be_recorded(
    real: RealRepository, here: Repository
) -> None:
    place = Place(0, lambda asked, _key: asked % 2 == 0)
    outcome, findings = await checked(here, place)
    assert [finding.recorded for finding in findings] == [False]
    assert not outcome.healthy


async def test_numcopies_matches_git_annexs(real: RealRepository, here: Repository) -> None:
    assert await numcopies(here) == 1
    real.git("config", "annex.numcopies", "2")
    assert await numcopies(here) == 2
    real.annex("numcopies", "4")
    assert await numcopies(here) == 4
    real.annex("numcopies", "3")
    assert await numcopies(here) == 3
