"""One gateway for all the tests of a module that do not change it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.gateway.gateways import Gateway, gateway_of, native_client
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_cluster


@pytest.fixture(scope="module")
def gateway(make_environment: Callable[[], Environment]) -> Iterator[Gateway]:
    """A gateway of a cluster of three nodes; its tests may store what they like under names of their own."""
    environment = make_environment()
    with gateway_of(make_cluster(environment, environment.directory)) as made:
        yield made


@pytest.fixture(scope="module")
def native(gateway: Gateway) -> Repository:
    """A clone that has the cluster as the remote gw, by git-annex's own client."""
    return native_client(gateway)
