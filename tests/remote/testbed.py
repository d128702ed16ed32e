"""Clients of a cluster with remotes made by initremote."""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster_remote.access.tokens import store_token
from cluster_remote.annex.repository import Repository as Ours
from cluster_remote.p2p.key import UUID
from cluster_remote.transport.address import parse_address
from tests.remote.driver import Driver
from tests.support.environment import Environment, temporary_environment
from tests.support.repositories import Cluster, Repository, copy_repository, key_of, make_cluster, templates


def text(done: subprocess.CompletedProcess[bytes]) -> str:
    """Return everything a command wrote."""
    return os.fsdecode(done.stdout + done.stderr)


def initremote(
    client: Repository,
    name: str,
    *parameters: str,
    sameas: str | None = None,
    private: bool = True,
    check: bool = True,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """`git annex initremote` for a remote of ours, without encryption unless the parameters say otherwise."""
    options = [] if sameas is None else [f"--sameas={sameas}"]
    if private:
        options.append("--private")
    if not any(parameter.startswith("encryption=") for parameter in parameters):
        parameters = (*parameters, "encryption=none")
    return client.annex(
        *("initremote", name, *options, "type=external", "externaltype=cluster", *parameters),
        check=check,
        env=dict(env or {}),
    )


def whereis(client: Repository, file: str) -> set[str]:
    """Return the UUIDs that the text output of `git annex whereis` lists for a file."""
    done = client.annex("whereis", file, check=False)
    return {line.split()[0] for line in os.fsdecode(done.stdout).splitlines() if line.startswith("  \t")}


def messages(done: subprocess.CompletedProcess[bytes]) -> list[str]:
    """Return the P2P messages in the output of a command run with --debug: `> PUT …`, `< PUT-FROM 0`."""
    marker = "(Remote.External) P2P "
    return [line.partition(marker)[2] for line in text(done).splitlines() if marker in line]


def objects(repository: Repository) -> dict[str, Path]:
    """Return the files in a repository's annex/objects by key, without asking git-annex."""
    top = repository.path / ".git/annex/objects"
    return {key_of(path.name): path for path in top.rglob("*") if path.is_file()}


@dataclass(frozen=True)
class Testbed:
    """A cluster, and a client with remotes for it and for its nodes.

    Attributes:
        cluster: of three nodes.
        client: a clone of the gateway; its remote `mycl` is ours and the same as the cluster, and leads to the
            gateway's directory. With `node_remotes` it has `n1`, `n2` and `n3` for the nodes, too.
    """

    __test__ = False  # Its name begins as that of a class of tests.

    cluster: Cluster
    client: Repository

    @property
    def environment(self) -> Environment:
        """The environment of all its repositories."""
        return self.client.environment

    @property
    def nodes(self) -> set[str]:
        """The nodes' UUIDs."""
        return {node.uuid for node in self.cluster.nodes}

    @property
    def url(self) -> str:
        """The url= of the remotes."""
        return str(self.cluster.gateway.path)

    def present(self, key: str) -> set[str]:
        """Return the nodes that the client's location log names for a key."""
        return self.client.locations(key) & self.nodes

    def keep_token(self, uuid: str, url: str, token: str) -> None:
        """Store a token for a remote of the client, as initremote does."""
        store_token(Ours.here(self.client.path), UUID(uuid), parse_address(url), token)

    def driver(self, uuid: str | None = None, env: Mapping[str, str] | None = None, **config: str) -> Driver:
        """Return a driver of the special remote for the cluster, or for the repository `uuid` behind the gateway."""
        wanted = uuid or self.cluster.uuid
        return Driver(
            self.client,
            wanted,
            {"url": self.url, "encryption": "none", "sameas-uuid": wanted, **config},
            env=env or {},
        )


def make_testbed(environment: Environment, directory: Path | None = None, *, node_remotes: bool = False) -> Testbed:
    """Make a testbed in an environment's directory, with a remote for the cluster, and optionally for its nodes.

    It is built once in a process of tests, then copied. With a directory of its own, whose name may be an odd one, it
    is built there.
    """
    if directory is not None:
        return _build_testbed(environment, directory, node_remotes)
    template = _template(node_remotes)
    gateway, client, *nodes = (
        copy_repository(each, environment, environment.directory)
        for each in (template.cluster.gateway, template.client, *template.cluster.nodes)
    )
    return Testbed(Cluster(gateway, nodes, template.cluster.uuid, template.cluster.name), client)


@functools.cache
def _template(node_remotes: bool) -> Testbed:
    environment = templates.enter_context(temporary_environment())
    templates.callback(_template.cache_clear)
    return _build_testbed(environment, environment.directory, node_remotes)


def _build_testbed(environment: Environment, directory: Path, node_remotes: bool) -> Testbed:
    cluster = make_cluster(environment, directory)
    client = cluster.clone()
    initremote(client, "mycl", f"url={cluster.gateway.path}", sameas=cluster.uuid)
    for number, node in enumerate(cluster.nodes if node_remotes else (), 1):
        initremote(client, f"n{number}", f"url={cluster.gateway.path}", sameas=node.uuid)
        client.git("config", f"remote.n{number}.annex-cost", "110")
        client.git("config", f"remote.n{number}.annex-sync", "false")
    return Testbed(cluster, client)
