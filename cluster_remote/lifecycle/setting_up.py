"""Plan a setup: from the user's request, and from what the repository knows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from cluster_remote.access.settings import BadSettings
from cluster_remote.lifecycle.alias import refreshed
from cluster_remote.lifecycle.facts import Facts, Stored
from cluster_remote.lifecycle.gateway import (
    address_of,
    fetch_logs,
    gateways,
    is_known,
    plan_gateway,
    plan_nodes,
    server_at,
    unknown_server,
)
from cluster_remote.lifecycle.names import checked_remote, cluster_name
from cluster_remote.lifecycle.nodes import contacted, uninitialised
from cluster_remote.lifecycle.remotes import Wanted, plan_remote
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.serverless import Request, plan_serverless
from cluster_remote.lifecycle.steps import Command, Plan
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, few, printable

__all__ = ["plan_setup", "prepare"]


def prepare(facts: Facts, request: Request) -> Plan:
    """Plan the steps that come before planning: initialise nodes on this machine, so that they have UUIDs."""
    return Plan(
        tuple(
            step
            for remote, path in uninitialised(facts, request.nodes)
            for step in (
                Command(("git", "-C", str(path), "annex", "init")),
                Command(("git", "fetch", "--quiet", "--", remote)),
            )
        )
    )


async def plan_setup(facts: Facts, request: Request, runner: Runner) -> Plan:
    """Plan a setup. Contacts the gateway, and may fetch its git-annex branch; changes nothing else.

    Raises BadSettings, SessionError, AnnexError.
    """
    await facts.check_version()
    if not request.name:
        request = _only_candidate(facts, request)
    checked_remote(request.name)
    if not request.url and not request.nodes:
        request = _completed(facts, request)
        if not request.url and not request.nodes and (shared := _shared(facts, request)) is not None:
            return shared
    if not request.url:
        return plan_serverless(await contacted(facts, request.nodes), request)
    address = address_of(facts, request.url)
    if request.counts_as_one:
        parameters = {**request.parameters, "url": str(address)}
        if request.cluster:
            parameters["cluster"] = request.cluster
        return Plan((facts.restore_logs(),)) + plan_remote(facts, Wanted(request.name, None, parameters, False))
    server = await server_at(facts, request.name, address, request.cluster)
    if not is_known(facts, server):
        if await fetch_logs(facts, server, address, runner):
            facts = await Facts.read(facts.repository)
        if not is_known(facts, server):
            raise unknown_server(server, request.name, address)
    return plan_gateway(facts, request, address, server)


def _completed(facts: Facts, request: Request) -> Request:
    """Complete a request that is only a name, from what this repository knows under that name."""
    stored = facts.stored_of(request.name) if facts.ours(request.name) else None
    accepted = stored is not None and facts.accepted(stored) and "cluster" not in stored.parameters
    if stored is not None and accepted and stored.parameters.get("url"):
        given = {key: value for key, value in stored.given.items() if key not in {"encryption", "url"}}
        parameters = {**given, **request.parameters}
        if stored.sameas is None and stored.parameters.get("encryption", "none") != "none":
            return request
        share = request.share or not stored.private
        return replace(request, url=stored.parameters["url"], parameters=parameters, share=share)
    if stored is not None or any(not each.private for each in facts.stored_named(request.name)):
        return request
    try:
        name = cluster_name(request.cluster or request.name)
    except BadSettings:
        return request
    if name in facts.config.clusters():
        return request
    wanted = facts.clusters_named(name)
    if request.cluster:
        try:
            wanted = frozenset({UUID(request.cluster)})
        except ValueError:
            pass
    here = {facts.remote_uuid(each) for each in facts.config.remotes() if not facts.ours(each)}
    for cluster in sorted(wanted):
        if facts.logs.clusters.nodes(cluster) & here:
            return request
        for remote in gateways(facts, cluster):
            return replace(request, url=remote, cluster=cluster.text)
    found = list(gateways(facts))
    if len(found) == 1 and not wanted:
        return replace(request, url=found[0])
    return request


def _shared(facts: Facts, request: Request) -> Plan | None:
    """Plan a remote that is shared under this name; None if there is none."""
    stored = next(iter(facts.stored_named(request.name)), None)
    if stored is None or (stored.private and request.name not in facts.config.remotes()):
        return None
    if not stored.parameters.get("url") and _cluster_of(stored) is not None:
        # A cluster without a server must be set up in this repository.
        return None
    parameters = {"encryption": "none", **request.parameters} if stored.sameas is not None else request.parameters
    parameters = {key: value for key, value in parameters.items() if key in {"encryption", "timeout"}}
    wanted = Wanted(request.name, stored.sameas, parameters, stored.private)
    plan = Plan((facts.restore_logs(),)) + plan_remote(facts, wanted) + Plan(tuple(refreshed(facts)))
    cluster = _cluster_of(stored)
    if cluster is not None and stored.parameters.get("url") and request.node_remotes:
        # The user's consent to the cluster's configuration covers the nodes' remotes.
        url = stored.parameters["url"]
        given = {key: value for key, value in stored.given.items() if key == "timeout"}
        nodes = replace(request, parameters={"encryption": "none", **given, **parameters}, share=False)
        plan += plan_nodes(facts, nodes, address_of(facts, url), cluster)
    return plan


def _cluster_of(stored: Stored) -> UUID | None:
    """Return the cluster whose nodes a shared remote counts; None if it counts as a copy itself."""
    if stored.parameters.get("encryption", "none") != "none" or stored.parameters.get("tracking") == "remote":
        return None
    if stored.sameas is not None:
        return stored.sameas if stored.sameas.is_cluster else None
    try:
        return UUID(stored.parameters.get("cluster", ""))
    except ValueError:
        return None


def _only_candidate(facts: Facts, request: Request) -> Request:
    """Return a request for the only shared cluster that is not set up here. Raises BadSettings."""
    here = facts.config.remotes()
    waiting = [each for each in facts.stored if not each.private and _not_set_up(facts, each)]
    if len(waiting) == 1:
        return replace(request, name=waiting[0].name)
    if waiting:
        raise BadSettings(f"there are several; choose one: {_listed(each.name for each in waiting)}")
    names = {name: uuid for each in facts.logs.proxied.values() for name, uuid in each.items() if uuid.is_cluster}
    reachable = {
        name: uuid for name, uuid in names.items() if name not in here and next(gateways(facts, uuid), None) is not None
    }
    if len(set(reachable.values())) == 1:
        name, uuid = next(iter(reachable.items()))
        return replace(request, name=name, cluster=uuid.text, url=next(gateways(facts, uuid)))
    if reachable:
        raise BadSettings(f"there are several clusters; choose one: {_listed(reachable)}")
    done = [each for each in here if facts.ours(each)]
    raise BadSettings(
        "the git-annex branch has nothing to set up"
        + (f" (there is {printable(', '.join(done))})" if done else "")
        + "; give a NAME, and the URL of a gateway or --node REMOTE for each node"
    )


def _not_set_up(facts: Facts, stored: Stored) -> bool:
    if stored.name not in facts.config.remotes():
        # Remotes for single nodes are set up with their cluster's remote.
        return stored.sameas is None or stored.sameas.is_cluster
    return facts.ours(stored.name) and facts.config.remote(stored.name, "annex-verified") != "verified"


def _listed(names: Iterable[str]) -> str:
    return few(sorted(as_command("cluster-remote setup", name) for name in names))
