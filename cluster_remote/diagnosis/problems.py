"""What is wrong with a cluster, going by its state, and what mends it. Pure."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import replace

from cluster_remote.diagnosis.nodes import Unusable
from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.state import ClusterState, NodeState
from cluster_remote.p2p.key import UUID

__all__ = [
    "find_problems",
    "many",
    "node_replaced",
    "node_without_remote",
    "not_verified",
    "remote_of_removed_node",
    "unreachable",
    "unusable",
]

# git-annex's own default of annex.diskreserve, in bytes: with less than that it stores nothing more.
_RESERVE = 100 * 10**6


def unusable(remote: Unusable) -> ClusterState:
    """The state of a remote that cannot be looked at."""
    problem = (
        not_verified(remote.label, remote.pending)
        if remote.pending is not None
        else Problem(
            "unusable",
            remote.reason,
            "This looks for the mistakes that are known to be made, and names what mends each:",
            (f"cluster-remote doctor {shlex.quote(remote.label)}",),
        )
    )
    return ClusterState(remote.label, remote.uuid, remote.description, "nodes", None, None, None, None, (), (problem,))


def find_problems(state: ClusterState, unverified: int | None = None) -> list[Problem]:
    """What is wrong with a cluster, the worst first. Pure.

    `unverified` is the number of a configuration of the remote that waits for the user's word, see
    annex/verification.py.
    """
    name = shlex.quote(state.name)
    problems: list[Problem] = []
    if unverified is not None:
        problems.append(not_verified(state.name, unverified))
    down = state.gateway is not None and not state.gateway.contact.reachable
    if state.gateway is not None and down:
        problems.append(
            Problem(
                "gateway-unreachable",
                f"the gateway cannot be reached: {state.gateway.contact.error}",
                "See that it runs and that the address is right, then try:",
                (f"cluster-remote ping {name}",),
            )
        )
    if not state.nodes:
        problems.append(
            Problem(
                "no-nodes",
                "this repository knows no node of the cluster",
                "Fetch the git-annex branch of the gateway, where the nodes are named:",
                ("git fetch --all", "git annex merge"),
            )
        )
    for node in state.nodes:
        problems += _node_problems(state, node, name, gateway_down=down)
    return problems


def many(number: int, one: str, more: str | None = None) -> str:
    """So many of something: `1 key`, `2,000 keys`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def not_verified(remote: str, number: int) -> Problem:
    """A remote whose configuration `number` waits for the user's word."""
    name = shlex.quote(remote)
    return Problem(
        "not-verified",
        f"git-annex does not use the remote {remote} as it is, because that has not been verified",
        "See that its address is the right one (the first command shows it), then say so:",
        (f"git annex verifyremote {name}", f"git annex verifyremote {name} --safe {number}"),
    )


def unreachable(uuid: UUID, title: str, error: str | None, name: str, path: str | None = None) -> Problem:
    """A node that gave no answer; `name` is the cluster remote, quoted for a shell.

    The remedy is never to declare it dead: from here nobody can tell a lost disk from one in a drawer, and the
    declaration goes to everybody who shares the git-annex branch.
    """
    return Problem(
        "node-unreachable",
        f"{title} cannot be reached: {error}",
        f"Bring it back{f' at {path}' if path else ''}, then let it catch up:",
        (f"cluster-remote repair {name}",),
        node=uuid,
    )


def node_removed(node: NodeState, remote: str | None) -> Problem:
    """A node that its gateway does not lead to any more; `remote` is the one that is left over, if the logs say so."""
    if remote is not None:
        return replace(remote_of_removed_node(node.title, remote), node=node.uuid)
    return Problem(
        "node-removed",
        f"the gateway does not lead to {node.title} any more: {node.contact.error if node.contact else None}",
        "It may have been taken out of the cluster. Fetch the gateway's git-annex branch, which says so:",
        ("git fetch --all", "git annex merge"),
        node=node.uuid,
    )


def remote_of_removed_node(title: str, remote: str) -> Problem:
    """A remote that leads to what is no node any more."""
    return Problem(
        "node-removed",
        f"{title} is no node of a cluster any more, but the remote {remote} still leads to it through the gateway",
        "Remove that remote; the repository itself is not touched:",
        (f"git remote remove -- {shlex.quote(remote)}",),
    )


def node_replaced(remote: str, now: str, titles: str, name: str, node: UUID | None) -> Problem:
    """Say that a remote leads to the repository `now` instead of a node. `name` is the cluster remote."""
    return Problem(
        "node-replaced",
        f"the remote {remote} leads to another repository than before: {now}, which is no node of the cluster, so "
        f"nothing is stored there; {titles} is missing",
        "Put back what was there. To have the new one take its place, make it a node and fill it:",
        ("git annex updatecluster", f"cluster-remote repair {shlex.quote(name)}"),
        node=node,
        about=remote,
    )


def node_without_remote(uuid: UUID, title: str) -> Problem:
    """A node of cluster.log that no remote of this repository leads to."""
    return Problem(
        "node-without-remote",
        f"no remote of this repository leads to the node {title}, so nothing is stored there from here, and no drop is "
        "complete",
        "Add a remote for it (git remote add), and configure it as a node (remote.REMOTE.annex-cluster-node). If it "
        "has left the cluster, run git annex updatecluster in a repository that has a remote for each other node.",
        (),
        node=uuid,
    )


def _node_problems(state: ClusterState, node: NodeState, name: str, *, gateway_down: bool) -> Iterable[Problem]:
    contact = node.contact
    if contact is None:
        return
    if not node.remote:
        yield node_without_remote(node.uuid, node.title)
        return
    if contact.stranger and state.gateway is not None:
        yield node_removed(node, state.name if state.uuid == node.uuid else None)
    elif contact.stranger:
        # git-annex still takes the remote for the node, as it was when it last looked.
        now = str(contact.uuid or contact.error)
        yield node_replaced(node.name, now, node.title, state.name, node.uuid)
    elif not contact.reachable and not gateway_down:
        problem = unreachable(node.uuid, node.title, contact.error, name, node.path)
        if state.tracking == "remote":
            # Nobody but git-annex can tell what it lacks.
            where = f" at {node.path}" if node.path else ""
            problem = replace(
                problem,
                remedy=f"Bring it back{where}; this shows it then:",
                commands=(f"cluster-remote status {name}",),
            )
        yield problem
    sample = node.sample
    if sample is not None and sample.missing:
        yield Problem(
            "content-missing",
            f"{node.title} has lost content: of {many(sample.asked, 'key')} that it was asked about, it does not have "
            f"{sample.missing} although the location log says so",
            "Ask about all of them and record what is true, then bring back what is missing:",
            (f"cluster-remote check {name} --all --fix", f"cluster-remote repair {name}"),
            node=node.uuid,
        )
    if sample is not None and sample.unlogged:
        yield Problem(
            "content-unlogged",
            f"the location log does not know all that {node.title} has: of {many(sample.asked, 'key')} that it was "
            f"asked about, it has {sample.unlogged} although the log does not say so",
            "Ask about all of them and record what is true:",
            (f"cluster-remote check {name} --all --fix",),
            node=node.uuid,
        )
    choosy = node.preferred is not None or node.required is not None
    if node.lacking and not choosy and not (sample and (sample.missing or sample.unlogged)) and contact.reachable:
        yield Problem(
            "lagging",
            f"{node.title} lacks {many(node.lacking, 'content')} that other nodes have",
            "Bring there what is lacking:",
            (f"cluster-remote repair {name}",),
            node=node.uuid,
        )
    if node.free is not None and node.free < _RESERVE:
        yield Problem(
            "disk-full",
            f"{node.title} is full: {node.free // 10**6} MB are left, and git-annex keeps "
            f"{_RESERVE // 10**6} MB free (annex.diskreserve)",
            "Make room on its disk; this shows contents that no file needs any more:",
            ("git annex unused",),
            node=node.uuid,
        )
    if contact.version is not None and contact.version < 2:
        yield Problem(
            "old-protocol",
            f"{node.title} speaks version {contact.version} of the protocol, which cannot say where content was stored",
            "Install a newer git-annex there. This shows what it speaks:",
            (f"cluster-remote ping {name}",),
            node=node.uuid,
        )
