"""Fixtures for the tests of the special remote."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.remote.testbed import Testbed, make_testbed
from tests.support.environment import Environment, temporary_environment


@pytest.fixture(scope="session")
def shared_testbed() -> Iterator[Testbed]:
    """One testbed per test process; tests use it through `testbed`."""
    with temporary_environment() as environment:
        yield make_testbed(environment, node_remotes=True)


@pytest.fixture
def testbed(shared_testbed: Testbed) -> Iterator[Testbed]:
    """A cluster and a client with remotes for it and its nodes; many tests share it, each with its own contents.

    After every test no process may be left.
    """
    yield shared_testbed
    shared_testbed.environment.assert_no_process_left()


@pytest.fixture
def own_testbed(environment: Environment) -> Testbed:
    """A cluster and a client with a remote for it, for one test that changes more than its own contents."""
    return make_testbed(environment)
