"""Plan a remote for a cluster behind a gateway, and a remote for each of its nodes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster_remote.access.identity import candidates, display_name
from cluster_remote.access.settings import BadSettings
from cluster_remote.access.tokens import given_token, stored_token
from cluster_remote.cluster.membership import way_to
from cluster_remote.lifecycle.alias import plan_alias, refreshed
from cluster_remote.lifecycle.facts import Facts
from cluster_remote.lifecycle.names import checked_remote, node_remote
from cluster_remote.lifecycle.remote_steps import RemoveRemote
from cluster_remote.lifecycle.remotes import Wanted, plan_remote, recreated
from cluster_remote.lifecycle.runner import Runner
from cluster_remote.lifecycle.serverless import Request
from cluster_remote.lifecycle.steps import BestEffort, Plan, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, few, printable
from cluster_remote.transport.address import Address, BadAddress, Directory, Http, Ssh, at_node, parse_address
from cluster_remote.transport.opening import Caller, session_at

__all__ = [
    "address_of",
    "fetch_logs",
    "gateways",
    "is_known",
    "plan_gateway",
    "plan_nodes",
    "server_at",
    "unknown_server",
]


def address_of(facts: Facts, text: str) -> Address:
    """Parse a gateway's address: a url, a path relative to the working directory, or the name of a git remote.

    Raises BadSettings.
    """
    config = facts.config
    base = facts.repository.directory
    if text in config.remotes() and not facts.ours(text):
        way = way_to(config, text, base)
        address = getattr(way, "address", None)
        if address is None:
            raise BadSettings(f"no gateway can be reached through the url of the remote {text}")
        return _outside(facts, address)
    path = (facts.repository.cwd or Path.cwd()) / text
    if not text.startswith("/") and (text.startswith(("./", "../")) or path.is_dir()):
        return _outside(facts, Directory(os.path.normpath(path)))
    try:
        return _outside(facts, parse_address(text))
    except BadAddress as error:
        raise BadSettings(str(error)) from None


def _outside(facts: Facts, address: Address) -> Address:
    top = facts.repository.work_tree
    if not isinstance(address, Directory) or top is None or top == Path(address.path):
        return address
    if Path(address.path).resolve().is_relative_to(top.resolve()):
        raise BadSettings(
            f"{printable(address.path)} is inside the work tree of this repository, where anyone who commits to it "
            "can put programs; choose a gateway elsewhere"
        )
    return address


def gateways(facts: Facts, cluster: UUID | None = None) -> Iterator[str]:
    """Yield the git remotes of this repository that are gateways of a cluster, or of any if None, by proxy.log."""
    for remote in facts.config.remotes():
        uuid = facts.remote_uuid(remote)
        if uuid is None or facts.ours(remote):
            continue
        behind = facts.logs.proxied.get(uuid, {}).values()
        if any(each.is_cluster and cluster in (None, each) for each in behind):
            yield remote


async def server_at(facts: Facts, name: str, address: Address, cluster: str | None = None) -> UUID:
    """Return the repository that answers at an address. Raises BadSettings, SessionError, AnnexError.

    Over HTTP a server does not identify itself; the `cluster` is requested from it, if one is named.
    """
    caller = Caller.of(facts.repository, facts.config)
    token = given_token() or _existing_token(facts, name, address)
    try:
        session = session_at(address, caller, server=_asked_for(facts, address, cluster), token=token)
    except BadAddress as error:
        raise BadSettings(str(error)) from None
    try:
        return await session.open()
    finally:
        await session.aclose()


def _asked_for(facts: Facts, address: Address, cluster: str | None) -> UUID | None:
    if cluster is None or not isinstance(address, Http):
        return None
    if (uuid := UUID.if_valid(cluster)) is not None:
        return uuid
    found = facts.clusters_named(cluster.lower())
    return next(iter(found)) if len(found) == 1 else None


def _existing_token(facts: Facts, name: str, address: Address) -> str | None:
    """Return the token that git-annex stores for an existing remote, if the remote has this address."""
    uuid = facts.remote_uuid(name)
    if not facts.ours(name) or uuid is None or not address.wants_token:
        return None
    return stored_token(facts.repository, uuid, address)


def is_known(facts: Facts, server: UUID) -> bool:
    """Return whether this repository knows a gateway or a cluster."""
    return bool(facts.logs.clusters.nodes(server)) if server.is_cluster else server in facts.logs.descriptions


async def fetch_logs(facts: Facts, server: UUID, address: Address, runner: Runner) -> bool:
    """Fetch the git-annex branch that describes a server, which a clone with --depth or --single-branch lacks.

    Fetch it from a remote that is the server, or has its address; otherwise from a remote whose branch was never
    fetched. Return whether anything was fetched. Raises CommandFailed.
    """
    config = facts.config
    base = facts.repository.directory
    likely: list[str] = []
    for remote in config.remotes():
        if facts.ours(remote) or not config.remote(remote, "url") or remote.startswith("-"):
            continue
        same = getattr(way_to(config, remote, base), "address", None) == address
        if same or facts.remote_uuid(remote) == server:
            likely.insert(0, remote)
        elif not await _fetched(facts, remote):
            likely.append(remote)
    for remote in likely[:1]:
        refspec = f"+refs/heads/git-annex:refs/remotes/{remote}/git-annex"
        await runner.run("git", "fetch", "--", remote, refspec)
    return bool(likely)


async def _fetched(facts: Facts, remote: str) -> bool:
    ref = f"refs/remotes/{remote}/git-annex"
    done = await facts.repository.run("git", "rev-parse", "--quiet", "--verify", ref, accept=range(256))
    return done.returncode == 0


def unknown_server(server: UUID, name: str, address: Address) -> BadSettings:
    """Return the error for a server that this repository's logs do not know, even after fetching."""
    url = str(address)
    again = as_command("cluster-remote setup", name, url)
    if isinstance(address, Directory | Ssh):
        fetched = f"+refs/heads/git-annex:refs/remotes/{name}-gateway/git-annex"
        how = f"{as_command('git fetch', url, fetched)}; then {again}"
    else:
        how = f"fetch it from where you cloned this repository (git fetch --all); then {again}"
    return BadSettings(
        f"this repository does not know {server}, which answers at {url}. Fetch the gateway's git-annex branch, so "
        f"that the copies on the nodes can be counted: {how}. Or count the cluster as one copy of its own: "
        + as_command("cluster-remote setup", name, url, options="--tracking remote")
    )


def plan_gateway(facts: Facts, request: Request, address: Address, server: UUID) -> Plan:
    """Plan a remote for a gateway; `server` is what answered there. Raises BadSettings."""
    checked_remote(request.name)
    parameters = {**request.parameters, "url": str(address)}
    sameas, notes = _choose_sameas(facts, request, server)
    wanted = Wanted(request.name, sameas, parameters, not request.share)
    plan = Plan((facts.restore_logs(),), notes)
    plan += plan_alias(facts, wanted) if _for_every_clone(facts, request) else plan_remote(facts, wanted)
    plan += Plan(tuple(refreshed(facts)))
    if sameas.is_cluster and request.node_remotes:
        plan += _plan_nodes(_Gateway(facts, request, address, server, sameas))
    return plan


def _for_every_clone(facts: Facts, request: Request) -> bool:
    return request.autoenable or facts.remote_uuid(request.name) in facts.logs.aliases


def _choose_sameas(facts: Facts, request: Request, server: UUID) -> tuple[UUID, tuple[str, ...]]:
    """Return the repository or cluster that the remote is for (--sameas), and notes about it."""
    if server.is_cluster:
        return server, ()
    proxied = facts.logs.proxied.get(server, {})
    if request.cluster:
        for name, uuid in proxied.items():
            if request.cluster.lower() in (name.lower(), uuid.text):
                return uuid, ()
        if request.cluster == server.text:
            return server, ()
        there = printable(", ".join(sorted(proxied)))
        raise BadSettings(
            f"--cluster {request.cluster}: the gateway has no such cluster; it has "
            f"{there or 'none (git annex updatecluster on the gateway records them)'}"
        )
    found = candidates(server, facts.logs)
    if len(found) > 1:
        names = {name: uuid for name, uuid in proxied.items() if uuid in found}
        if request.name in names:
            return names[request.name], ()
        current = facts.remote_uuid(request.name)
        if facts.ours(request.name) and current in found:
            return current, ()
        raise BadSettings(f"the gateway has several clusters; choose with --cluster: {printable(few(sorted(names)))}")
    if not found[0].is_cluster:
        title = printable(display_name(server, facts.logs.descriptions))
        return found[0], (
            f"{title} is not the gateway of a cluster known here; the remote will be for that repository alone.",
        )
    return found[0], ()


@dataclass(frozen=True)
class _Gateway:
    facts: Facts
    request: Request
    address: Address
    server: UUID
    cluster: UUID

    @property
    def names(self) -> dict[UUID, str]:
        """The gateways' names for the nodes; this gateway's own take precedence."""
        proxied = self.facts.logs.proxied
        found = {uuid: name for gateway in proxied.values() for name, uuid in gateway.items()}
        return found | {uuid: name for name, uuid in proxied.get(self.server, {}).items()}


def plan_nodes(facts: Facts, request: Request, address: Address, cluster: UUID) -> Plan:
    """Plan remotes for the nodes of a cluster whose own remote exists, or is shared and gets enabled."""
    return _plan_nodes(_Gateway(facts, request, address, cluster, cluster))


def _plan_nodes(gateway: _Gateway) -> Plan:
    """Plan a remote for each node, so that git-annex can verify the copies there."""
    facts, logs, name = gateway.facts, gateway.facts.logs, gateway.request.name
    cost = (100 if gateway.address.local else 200) + 1
    names = gateway.names
    plan = Plan()
    nodes = logs.clusters.nodes(gateway.cluster)
    for uuid in sorted(nodes, key=lambda uuid: names.get(uuid, uuid.text)):
        remote = node_remote(name, names.get(uuid) or logs.descriptions.get(uuid, "") or uuid.text)
        if uuid == facts.uuid or logs.trust.get(uuid) == "dead" or _has_another_way(facts, uuid, remote):
            continue
        if logs.remotes.get(uuid, {}).get("encryption", "none") != "none":
            plan += Plan(
                notes=(
                    f"{printable(names.get(uuid, uuid.text))} is an encrypted special remote, and a remote made for it "
                    "with --sameas would encrypt too. To verify its copies: "
                    + as_command("git annex enableremote", logs.remotes[uuid].get("name", uuid.text)),
                )
            )
            continue
        parameters = {**gateway.request.parameters, "url": str(at_node(gateway.address, uuid))}
        settings = {"annex-sync": "false", "annex-cost": str(cost)}
        made = plan_remote(facts, Wanted(remote, uuid, parameters, not gateway.request.share, settings))
        if made.steps:
            title = printable(logs.descriptions.get(uuid) or names.get(uuid) or uuid.text)
            # An unreachable node must not keep the others from getting their remotes.
            plan += Plan((BestEffort(title, made.steps),), made.notes, made.questions)
    return plan + Plan(tuple(_obsolete_remotes(gateway, nodes)))


def _has_another_way(facts: Facts, uuid: UUID, remote: str) -> bool:
    """Return whether a remote of another type leads to a node; cluster remotes may lead through another gateway."""
    return any(
        facts.remote_uuid(each) == uuid and each != remote and not facts.ours(each) for each in facts.config.remotes()
    )


def _obsolete_remotes(gateway: _Gateway, nodes: frozenset[UUID]) -> Iterator[Step]:
    """Yield the steps that remove remotes for former nodes, which are no longer behind the gateway."""
    facts = gateway.facts
    for remote in facts.config.remotes():
        uuid = facts.remote_uuid(remote)
        if not facts.ours(remote) or not remote.startswith(f"{gateway.request.name}-") or uuid is None:
            continue
        stored = facts.stored_of(remote)
        theirs = stored is not None and stored.parameters.get("url", "") == str(at_node(gateway.address, uuid))
        if theirs and not uuid.is_cluster and uuid not in nodes and uuid not in gateway.names:
            yield RemoveRemote(remote, recreated(facts, remote, stored))
