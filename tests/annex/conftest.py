"""What the tests of cluster_remote.annex share: a repository that the test process stands in."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from tests.support.environment import Environment
from tests.support.repositories import Repository as RealRepository
from tests.support.repositories import make_repository

UUIDS = [UUID.parse(f"{n:08x}-1111-4111-8111-111111111111") for n in range(1, 10)]
"""UUIDs of repositories that nobody knows anything else about."""


@pytest.fixture
def real(environment: Environment) -> RealRepository:
    """A repository of git-annex."""
    return make_repository(environment, environment.directory / "repo", "the desk")


@pytest.fixture
def here(real: RealRepository) -> Iterator[Repository]:
    """The same, found from inside it, with the environment of the tests in force."""
    with real.environment.applied(real.path):
        yield Repository.here()
