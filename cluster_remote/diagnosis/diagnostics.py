"""The known problems of cluster remotes: how to recognise each, and how to fix it. Pure.

What git-annex does in each case was observed with git-annex 10.20261026.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace

from cluster_remote.annex.version import NEEDED
from cluster_remote.diagnosis.checkup import Server
from cluster_remote.diagnosis.own_clusters import problems_of_own_clusters
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.problems import remote_of_removed_node
from cluster_remote.diagnosis.snapshot import RemoteFacts, Snapshot
from cluster_remote.diagnosis.state import Status
from cluster_remote.diagnosis.uuid_misuse import made_with_uuid, misused_uuids
from cluster_remote.p2p.text import as_command

__all__ = ["diagnose", "find_notes", "notes_on_contents", "problems_at_nodes", "problems_of_servers"]

# The value that git-annex requires as confirmation.
_CONSENT = "ACKTHPPT"
# The cost that makes a sync prefer the cluster without a server.
_SERVERLESS_COST = 50.0
# The first protocol version in which a server names the nodes that stored content.
_NAMES_NODES = 2


def diagnose(facts: Snapshot) -> Iterator[Problem]:
    """Yield what is wrong: remote by remote, then in the repository as a whole."""
    if facts.everything:
        # First, because these get in the way of fixing the others.
        yield from _left_over(facts)
        yield from made_with_uuid(facts)
    for remote in facts.cluster_remotes:
        yield from _unusable(remote)
        yield from _encrypted(facts, remote)
        yield from _clear_text(facts, remote)
        yield from _not_verified(facts, remote)
        if remote.is_cluster and remote.sameas:
            yield from _cluster_unknown(facts, remote)
            yield from _node_remotes_missing(facts, remote)
            yield from _costs(facts, remote)
    if facts.everything:
        yield from problems_of_own_clusters(facts)
        yield from _not_fetched(facts)
        yield from _aliases_behind(facts)
    for file in facts.exposed_files:
        yield Problem(
            "readable-by-others",
            f"{file} holds a secret, and other users can read or change it",
            "Make it private (and create a new token, if you do not trust all users):",
            (f"chmod go-rwx {shlex.quote(str(file))}",),
            about=str(file),
        )


def _aliases_behind(facts: Snapshot) -> Iterator[Problem]:
    logs = facts.logs
    for alias, cluster in logs.aliases.items():
        if logs.clusters.nodes(alias) != logs.clusters.nodes(cluster):
            name = logs.remotes[alias].get("name", str(alias))
            yield Problem(
                "alias-behind",
                f"the remote {name}, which every clone has, does not list the nodes in cluster.log that the cluster "
                f"{facts.name_of(cluster)} has now",
                "Update it:",
                (as_command("cluster-remote setup", name),),
                about=name,
            )


def _unusable(remote: RemoteFacts) -> Iterator[Problem]:
    if remote.unusable:
        yield Problem(
            "settings-unusable",
            f"the remote {remote.name} has an invalid parameter: {remote.unusable}",
            "Correct it with git annex enableremote; this shows what each parameter means:",
            ("git annex initremote --whatelse type=external externaltype=cluster",),
            about=remote.name,
        )


def _encrypted(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    """Find encryption on a remote that tracks nodes: git-annex then ignores it, or stores what is no copy."""
    if not remote.sameas:
        return
    encryption = (remote.verified or {}).get("encryption", "none")
    inherited = facts.encryption_of(remote.uuid)
    if inherited != "none":
        yield Problem(
            "encrypted",
            f"the remote {remote.name} is the same as {facts.name_of(remote.uuid)}, which is a special remote with "
            f"encryption={inherited}, so git-annex encrypts for both: content that it stores through the gateway has "
            "another key there, and is no copy",
            "Remove it, and use the cluster instead, or enable the special remote itself:",
            (as_command("git remote remove", remote.name),),
            about=remote.name,
        )
    elif encryption != "none":
        yield Problem(
            "encrypted",
            f"the remote {remote.name} has encryption={encryption}, but git-annex does not encrypt for a remote that "
            "is the same as another one: the nodes get everything unencrypted, and their copies are not recorded",
            "Turn encryption off; content already there is counted once it is copied there again. (To make an "
            "encrypted remote that counts as one copy: cluster-remote setup --tracking remote --encryption "
            "shared.)",
            (as_command("git annex enableremote", remote.name, "encryption=none"),),
            about=remote.name,
        )


def _clear_text(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    """Find nodes of an encrypted remote without a server that a sync would send unencrypted content to."""
    settings = remote.settings
    if settings is None or settings.address is not None or settings.encryption == "none":
        return
    clusters = facts.config.clusters()
    wanted = settings.cluster.lower()
    names = {name for name, uuid in clusters.items() if wanted in ("", name, uuid.text)}
    exposed = [
        name
        for name in facts.config.nodes_of_any(names)
        if facts.config.boolean(f"remote.{name}.annex-sync", True)
        and not facts.config.boolean(f"remote.{name}.annex-ignore")
    ]
    if exposed:
        yield Problem(
            "clear-text",
            f"git annex sync --content sends unencrypted content to {', '.join(exposed)}, the nodes of the encrypted "
            f"remote {remote.name}, and the git-annex branch with the encryption key",
            "Exclude the nodes from sync; unencrypted content already there stays until you drop it:",
            tuple(f"git config {shlex.quote(f'remote.{name}.annex-sync')} false" for name in exposed),
            about=remote.name,
        )


def _not_verified(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    if remote.pending is None:
        return
    where = f" ({remote.pending.configuration})" if remote.pending.configuration else ""
    never = remote.verified is None
    yield Problem(
        "not-verified",
        f"git-annex does not use the remote {remote.name}, because you have not confirmed that its configuration is "
        "safe"
        if never
        else f"somebody changed the configuration of the remote {remote.name}; git-annex keeps using the one that "
        "you verified",
        f"If it leads where you expect{where}, confirm it:",
        (as_command("git annex verifyremote", remote.name, options=f"--safe {remote.pending.number}"),),
        about=remote.name,
    )


def _cluster_unknown(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    if facts.logs.clusters.nodes(remote.uuid):
        return
    if remote.settings is not None and remote.settings.address is None:
        remedy, commands = (
            "Write the nodes to it (each has to be reachable):",
            ("git annex updatecluster",),
        )
    else:
        remedy = "Fetch the gateway's git-annex branch, which names them:"
        commands = ("git fetch --all",)
    yield Problem(
        "cluster-unknown",
        f"this repository knows no node of the cluster {facts.name_of(remote.uuid)}, so copies there are not counted",
        remedy,
        commands,
        about=remote.name,
    )


def _node_remotes_missing(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    settings = remote.settings
    assert settings is not None
    if (
        settings.address is None
        or next(each for each in facts.cluster_remotes if each.uuid == remote.uuid) is not remote
    ):
        # Without a server, the nodes are remotes already. Of several remotes for a cluster, only the first is checked.
        return
    missing = [
        uuid
        for uuid in sorted(facts.logs.clusters.nodes(remote.uuid))
        if uuid != facts.uuid
        and not facts.remotes_with(uuid)
        and facts.logs.trust.get(uuid) != "dead"
        # A remote through the gateway cannot be the same as an encrypted one; see the notes.
        and facts.encryption_of(uuid) == "none"
    ]
    if not missing:
        return
    names = ", ".join(map(facts.name_of, missing))
    yield Problem(
        "node-remotes-missing",
        f"there is no remote for {names}, so git-annex cannot verify the copies there and refuses to drop content "
        "here: the cluster itself does not count as a copy",
        "Make one for each node of the cluster:",
        (as_command("cluster-remote setup", remote.name, settings.url),),
        about=remote.name,
    )


def _costs(facts: Snapshot, remote: RemoteFacts) -> Iterator[Problem]:
    settings = remote.settings
    assert settings is not None
    own = facts.cost(remote.name)
    nodes = facts.logs.clusters.nodes(remote.uuid)
    if settings.address is None:
        costs = [facts.cost(name) for name in facts.config.remotes() if facts.config.remote_uuid(name) in nodes]
        if costs and own >= min(costs):
            yield Problem(
                "cost",
                f"the remote {remote.name} costs {own:g} and its cheapest node {min(costs):g}, so git annex sync "
                "uploads to the nodes one by one instead of once to the cluster",
                "Make the cluster cheaper than its nodes:",
                (_set_cost(remote, min(_SERVERLESS_COST, min(costs) - 1)),),
                about=remote.name,
            )
        return
    for node in facts.cluster_remotes:
        behind = node.sameas and node.settings is not None and node.settings.address is not None
        if node.uuid in nodes and behind and facts.cost(node.name) <= own:
            yield Problem(
                "cost",
                f"the remote {node.name} for a node costs {facts.cost(node.name):g}, and the remote {remote.name} "
                f"for the whole cluster {own:g}: git-annex may store to the node before the cluster",
                "Make the node slightly more expensive:",
                (_set_cost(node, own + 1),),
                about=node.name,
            )


def _set_cost(remote: RemoteFacts, cost: float) -> str:
    return f"git config {shlex.quote(f'remote.{remote.name}.annex-cost')} {cost:g}"


def _left_over(facts: Snapshot) -> Iterator[Problem]:
    """Find what a refused or killed initremote leaves: the configuration of a remote that does not exist."""
    for remote in facts.config.remotes():
        keys = ("url", "annex-uuid", "pushurl", "vcs")
        if facts.config.remote(remote, "annex-private") and not any(facts.config.remote(remote, key) for key in keys):
            yield Problem(
                "left-over",
                f"{remote} is left over in git's configuration from a failed initremote",
                "Remove it to free the name:",
                (f"git config --remove-section {shlex.quote(f'remote.{remote}')}",),
                about=remote,
            )


def _not_fetched(facts: Snapshot) -> Iterator[Problem]:
    for branch in facts.branches:
        if branch.fetched is None and branch.there is not None:
            yield Problem(
                "not-fetched",
                f"the git-annex branch of the remote {branch.remote} has never been fetched, so this repository does "
                "not know what is there, nor its clusters",
                "Fetch it; git-annex merges it automatically:",
                (as_command("git fetch", branch.remote, f"+git-annex:refs/remotes/{branch.remote}/git-annex"),),
                about=branch.remote,
            )


def problems_of_servers(facts: Snapshot, servers: Iterable[Server]) -> Iterator[Problem]:
    """Yield the problems that the servers' answers show. Pure."""
    by_name = {remote.name: remote for remote in facts.cluster_remotes}
    members = {uuid for nodes in facts.logs.clusters.members.values() for uuid in nodes}
    removed = {
        remote.uuid for remote in facts.cluster_remotes if remote.sameas and not remote.uuid.is_cluster
    } - members
    for server in servers:
        remote = by_name[server.remote]
        if server.error is not None and remote.uuid in removed:
            yield replace(remote_of_removed_node(facts.name_of(remote.uuid), remote.name), about=server.remote)
        elif server.error is not None and any(remote.uuid in nodes for nodes in facts.logs.clusters.members.values()):
            yield Problem(
                "unreachable",
                f"{facts.name_of(remote.uuid)} cannot be reached through the remote {server.remote}: {server.error}",
                "Bring it back, or fix the connection; then this works:",
                (as_command("cluster-remote ping", remote.name),),
                about=server.remote,
            )
        elif server.error is not None:
            yield Problem(
                "unreachable",
                f"the remote {server.remote} does not work: {server.error}",
                "Bring back its server, or fix the connection; then this works:",
                (as_command("cluster-remote ping", remote.name),),
                about=server.remote,
            )
        elif server.version is not None and server.version < _NAMES_NODES and remote.is_cluster:
            yield Problem(
                "old-protocol",
                f"the server of the remote {server.remote} speaks protocol version {server.version}, which "
                "cannot say on which nodes content is stored",
                f"Install git-annex {NEEDED} or newer there; this shows the version afterwards:",
                (as_command("cluster-remote ping", remote.name),),
                about=server.remote,
            )


def problems_at_nodes(facts: Snapshot, servers: Iterable[Server], seen: Status) -> Iterator[Problem]:
    """Yield the problems that `survey` found at nodes, unless a node's own remote has shown them already. Pure."""
    silent = {
        remote.uuid
        for remote in facts.cluster_remotes
        for server in servers
        if server.remote == remote.name and server.error
    }
    for problem in (problem for cluster in seen.clusters for problem in cluster.problems):
        match problem.kind:
            case "node-replaced" | "node-without-remote" if not facts.everything:
                # With `everything`, `problems_of_own_clusters` has found these.
                yield problem
            case "node-unreachable" | "node-removed" | "content-missing" | "content-unlogged":
                if problem.node is not None and problem.node not in silent:
                    yield replace(problem, about=facts.name_of(problem.node))


def notes_on_contents(facts: Snapshot, seen: Status) -> Iterator[str]:
    """Yield notes on contents that nodes have, but that git-annex refuses to get from a cluster remote. Pure."""
    setting = "annex-security-allow-unverified-downloads"
    everywhere = facts.config.get("annex.security.allow-unverified-downloads")
    for cluster in seen.clusters:
        if cluster.unverifiable and _CONSENT not in (everywhere, facts.config.remote(cluster.name, setting)):
            yield (
                f"{cluster.name} has {cluster.unverifiable} contents without a checksum (WORM or URL keys), which "
                "git-annex refuses to get from a special remote: read docs/explanation/upload-and-drop.md before you "
                "move more of them there, or allow it with git config "
                f"{shlex.quote(f'remote.{cluster.name}.{setting}')} {_CONSENT}"
            )


def find_notes(facts: Snapshot) -> Iterator[str]:
    """Yield notes: things that are worth knowing, but not mistakes."""
    for branch in facts.branches:
        if branch.fetched is not None and branch.there not in (None, branch.fetched):
            yield (
                f"the git-annex branch of {branch.remote} has changed since it was fetched: "
                + as_command("git fetch", branch.remote)
            )
    nodes = {
        uuid for remote in facts.cluster_remotes if remote.is_cluster for uuid in facts.logs.clusters.nodes(remote.uuid)
    }
    for uuid in sorted(nodes):
        if facts.encryption_of(uuid) != "none" and not facts.remotes_with(uuid):
            name = facts.logs.remotes[uuid].get("name", str(uuid))
            yield (
                f"the node {facts.name_of(uuid)} is an encrypted special remote; only a remote of its own can verify "
                f"copies there: {as_command('git annex enableremote', name)}"
            )
    here = set(misused_uuids(facts.config, facts.logs).values())
    for uuid, parameters in facts.logs.remotes.items():
        made_with_uuid = uuid.is_cluster and uuid not in here and uuid not in facts.logs.aliases
        if made_with_uuid and "sameas-uuid" not in parameters:
            yield (
                f"the git-annex branch has a special remote {parameters.get('name', '?')!r}, made with uuid= "
                f"in place of {facts.name_of(uuid)}; nobody should enable it"
            )
