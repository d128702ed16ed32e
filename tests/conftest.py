"""Fixtures that every test may use; what they are made of is in tests/support."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings

from tests.support.environment import Environment, temporary_environment
from tests.support.repositories import Cluster, Repository, make_cluster, templates
from tests.support.ssh import SshServer

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell starts what runs in the background; the programs under test would inherit it, and are interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("quick", deadline=None, max_examples=40, print_blob=True)
settings.register_profile("here", deadline=None, print_blob=True)
settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)


def pytest_configure(config: pytest.Config) -> None:
    """Try fewer examples of each property in `make test`."""
    if not config.getoption("--hypothesis-profile"):
        settings.load_profile("quick" if config.option.markexpr == "not slow" else "here")


@pytest.fixture
def anyio_backend() -> str:
    """The event loop of asynchronous tests."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
def _templates() -> Iterator[None]:
    """Remove what clusters were copied from when the tests are over."""
    yield
    templates.close()


@pytest.fixture
def environment() -> Iterator[Environment]:
    """An environment for one test; the test fails if a process of it is left."""
    with temporary_environment() as made:
        yield made


@pytest.fixture(scope="module")
def make_environment() -> Iterator[Callable[[], Environment]]:
    """Makes environments that last for a module, for expensive things that its tests only read."""
    with contextlib.ExitStack() as stack:
        yield lambda: stack.enter_context(temporary_environment())


@pytest.fixture
def cluster(environment: Environment) -> Cluster:
    """A cluster of three empty local nodes behind a gateway, for one test."""
    return make_cluster(environment, environment.directory)


@pytest.fixture(scope="module")
def shared(make_environment: Callable[[], Environment]) -> Cluster:
    """The same for all tests of a module, each of which uses contents of its own."""
    environment = make_environment()
    return make_cluster(environment, environment.directory)


@pytest.fixture
def client(cluster: Cluster) -> Repository:
    """A clone of the gateway that knows the cluster, but has no remote save origin."""
    return cluster.clone()


@pytest.fixture
def ssh_server(environment: Environment) -> Iterator[SshServer]:
    """An ssh server that runs commands in the environment, which gets the variables to reach it."""
    with SshServer(environment) as server:
        environment.env |= server.variables
        yield server
