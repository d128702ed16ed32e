"""Fixtures for the tests of the special remote."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.remote.sites import Site, make_site
from tests.support.environment import Environment


@pytest.fixture(scope="module")
def _site(make_environment: Callable[[], Environment]) -> Site:
    return make_site(make_environment())


@pytest.fixture
def site(_site: Site) -> Iterator[Site]:
    """A cluster and a client with remotes, shared by the tests of a file: each uses keys of its own.

    After every test no process may be left.
    """
    yield _site
    _site.cluster.gateway.environment.assert_no_process_left()


@pytest.fixture
def own_site(environment: Environment) -> Site:
    """As `site`, but for one test that changes more than keys of its own."""
    return make_site(environment)
