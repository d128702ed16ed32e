"""Fixtures for the tests of the special remote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.remote.sites import Site, make_site
from tests.support.environment import Environment, temporary_environment


@pytest.fixture(scope="session")
def shared_site() -> Iterator[Site]:
    """A site for all tests of a process of tests; `site` is what they ask for."""
    with temporary_environment() as environment:
        yield make_site(environment, node_remotes=True)


@pytest.fixture
def site(shared_site: Site) -> Iterator[Site]:
    """A cluster and a client with remotes for it and its nodes, shared by many tests: each has contents of its own.

    After every test no process may be left.
    """
    yield shared_site
    shared_site.environment.assert_no_process_left()


@pytest.fixture
def own_site(environment: Environment) -> Site:
    """A cluster and a client with a remote for it, for one test that changes more than contents of its own."""
    return make_site(environment)
