"""Plan a cluster remote that every new clone has at once. Pure.

git-annex enables a remote automatically if remote.log says `autoenable=true`. That requires the encryption parameter,
which git-annex does not store for a remote made with --sameas. So such a remote gets a cluster's UUID of its own, an
alias: it has the same nodes in cluster.log, and `cluster=` names the cluster itself. git-annex never counts a cluster
as a copy, so each copy is counted once. (Observed with git-annex 10.20261026.)
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace

from cluster_remote.lifecycle.cluster_steps import RecordNodes
from cluster_remote.lifecycle.facts import Facts, Stored
from cluster_remote.lifecycle.remote_steps import RemoveRemote
from cluster_remote.lifecycle.remotes import Wanted, initremote, plan_remote, recreated
from cluster_remote.lifecycle.steps import Plan, Setting, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable

__all__ = ["aliases", "plan_alias", "refreshed"]


def aliases(facts: Facts, cluster: UUID) -> Iterator[Stored]:
    """Yield the remotes in the git-annex branch that are aliases of a cluster."""
    for each in facts.stored:
        if facts.logs.aliases.get(each.uuid) == cluster:
            yield each


def refreshed(facts: Facts) -> Iterator[Step]:
    """Yield the steps that update every alias to the current nodes of its cluster."""
    for alias, cluster in facts.logs.aliases.items():
        nodes = facts.logs.clusters.nodes(cluster)
        if facts.logs.clusters.nodes(alias) != nodes:
            name = printable(facts.logs.remotes[alias].get("name", alias.text))
            yield RecordNodes(alias, nodes, f"{name} is the cluster's remote in every clone")


def plan_alias(facts: Facts, wanted: Wanted) -> Plan:
    """Plan a remote that every clone has at once, replacing a private one of this repository. Raises BadSettings."""
    assert isinstance(wanted.sameas, UUID)
    cluster = wanted.sameas
    parameters = {**wanted.parameters, "cluster": cluster.text, "autoenable": "true"}
    known = next((each for each in aliases(facts, cluster) if each.name == wanted.name), None)
    uuid = _new_cluster() if known is None else known.uuid
    alias = replace(wanted, sameas=None, uuid=uuid, parameters=parameters, private=False)
    if known is not None:
        return plan_remote(facts, alias)
    steps: list[Step] = []
    stored = facts.stored_of(wanted.name) if wanted.name in facts.config.remotes() else None
    if stored is not None and facts.remote_uuid(wanted.name) == cluster and stored.private:
        steps.append(RemoveRemote(wanted.name, recreated(facts, wanted.name, stored)))
        made = Plan((initremote(alias),))
        made += Plan(tuple(Setting(f"remote.{alias.name}.{key}", value) for key, value in alias.config.items()))
    else:
        made = plan_remote(facts, alias)
    nodes = facts.logs.clusters.nodes(cluster)
    steps.append(
        RecordNodes(uuid, nodes, f"{alias.name} gets a UUID of its own, which git-annex can enable automatically")
    )
    return Plan(tuple(steps)) + made


def _new_cluster() -> UUID:
    """Return a UUID as git-annex makes them for clusters: version 8, starting with `ac`."""
    digits = secrets.token_hex(16)
    return UUID(f"ac{digits[2:8]}-{digits[8:12]}-8{digits[13:16]}-8{digits[17:20]}-{digits[20:]}")
