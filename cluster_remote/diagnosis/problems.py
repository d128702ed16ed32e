"""Find what is wrong with a cluster, judging by its state, and how to fix it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cluster_remote.diagnosis.problem import Problem
from cluster_remote.diagnosis.state import ClusterState, Contact, NodeState, Unusable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command

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

# git-annex's default for annex.diskreserve, in bytes: with less free space it stores nothing.
_RESERVE = 100 * 10**6


def unusable(remote: Unusable) -> ClusterState:
    """Return the state of a remote that cannot be examined."""
    problem = (
        not_verified(remote.label, remote.pending)
        if remote.pending is not None
        else Problem(
            "unusable",
            remote.reason,
            "This finds common mistakes and how to fix them:",
            (as_command("cluster-remote doctor", remote.label),),
        )
    )
    return ClusterState(remote.label, remote.uuid, remote.description, "nodes", None, None, None, None, (), (problem,))


def find_problems(state: ClusterState, unverified: int | None = None) -> list[Problem]:
    """Return what is wrong with a cluster, worst first. Pure.

    `unverified` is the number of the configuration that the user has to verify; see annex/verification.py.
    """
    name = state.name
    problems: list[Problem] = []
    if unverified is not None:
        problems.append(not_verified(state.name, unverified))
    down = state.gateway is not None and not state.gateway.contact.reachable
    if state.gateway is not None and down:
        problems.append(
            Problem(
                "gateway-unreachable",
                f"the gateway cannot be reached: {state.gateway.contact.error}",
                "Make sure that it is running and that the address is right, then try:",
                (as_command("cluster-remote ping", name),),
            )
        )
    if not state.nodes:
        problems.append(
            Problem(
                "no-nodes",
                "this repository knows no node of the cluster",
                "Fetch the gateway's git-annex branch, which lists the nodes:",
                ("git fetch --all", "git annex merge"),
            )
        )
    for node in state.nodes:
        problems += _node_problems(state, node, name, gateway_down=down)
    return problems


def many(number: int, one: str, more: str | None = None) -> str:
    """Format a count with its noun: `1 key`, `2,000 keys`."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def not_verified(remote: str, number: int) -> Problem:
    """Describe a remote whose configuration `number` the user has to verify."""
    return Problem(
        "not-verified",
        f"git-annex does not use the remote {remote}, because its configuration has not been verified",
        "Check its address (the first command shows it), then confirm it:",
        (
            as_command("git annex verifyremote", remote),
            as_command("git annex verifyremote", remote, options=f"--safe {number}"),
        ),
    )


def unreachable(uuid: UUID, title: str, error: str | None, name: str, path: str | None = None) -> Problem:
    """Describe a node that gave no answer; `name` is the cluster remote.

    The remedy is never to declare the node dead: from here, a lost disk looks like one in a drawer, and the declaration
    reaches everybody who shares the git-annex branch.
    """
    return Problem(
        "node-unreachable",
        f"{title} cannot be reached: {error}",
        f"Bring it back{f' at {path}' if path else ''}, then let it catch up:",
        (as_command("cluster-remote repair", name),),
        node=uuid,
    )


def node_removed(node: NodeState, remote: str | None) -> Problem:
    """Describe a node that its gateway no longer serves; `remote` is this repository's remote for it, if any."""
    if remote is not None:
        return replace(remote_of_removed_node(node.title, remote), node=node.uuid)
    return Problem(
        "node-removed",
        f"the gateway no longer leads to {node.title}: {node.contact.error if node.contact else None}",
        "It may have been removed from the cluster. Fetch the gateway's git-annex branch to find out:",
        ("git fetch --all", "git annex merge"),
        node=node.uuid,
    )


def remote_of_removed_node(title: str, remote: str) -> Problem:
    """Describe a remote that leads to a former node."""
    return Problem(
        "node-removed",
        f"{title} is no longer a node of a cluster, but the remote {remote} still leads to it through the gateway",
        "Remove that remote; the repository itself is not touched:",
        (as_command("git remote remove", remote),),
    )


def node_replaced(remote: str, now: str, titles: str, name: str, node: UUID | None) -> Problem:
    """Describe a remote that leads to the repository `now` instead of a node. `name` is the cluster remote."""
    return Problem(
        "node-replaced",
        f"the remote {remote} now leads to another repository, {now}, which is not a node of the cluster, so "
        f"nothing is stored there; {titles} is missing",
        "Put back what was there. To replace it by the new one, make that a node and fill it:",
        ("git annex updatecluster", as_command("cluster-remote repair", name)),
        node=node,
        about=remote,
    )


def node_without_remote(uuid: UUID, title: str, name: str) -> Problem:
    """Describe a node in cluster.log that no remote here leads to. `name` is the cluster or its remote."""
    add, remove = (
        as_command(f"cluster-remote node {change}", name, what)
        for change, what in (("add", "NAME"), ("remove", uuid.text))
    )
    return Problem(
        "node-without-remote",
        f"no remote of this repository leads to the node {title}, so nothing is stored there from here, and no drop is "
        "complete",
        # Removing the node affects everybody, so this is not a command to copy without thinking.
        f"Make a remote for it (git remote add NAME PATH, then {add}); if it has left "
        f"the cluster for good, take it out ({remove}).",
        (),
        node=uuid,
    )


def _node_problems(state: ClusterState, node: NodeState, name: str, *, gateway_down: bool) -> Iterator[Problem]:
    """Yield what is wrong with one node; `name` is the cluster remote."""
    # Nodes without a remote are left to problems_of_missing.
    if node.contact is not None and node.remote:
        yield from _contact_problems(state, node, node.contact, name, gateway_down=gateway_down)
        yield from _state_problems(node, node.contact, name)


def _contact_problems(
    state: ClusterState, node: NodeState, contact: Contact, name: str, *, gateway_down: bool
) -> Iterator[Problem]:
    if contact.stranger and state.gateway is not None:
        yield node_removed(node, state.name if state.uuid == node.uuid else None)
    elif contact.stranger:
        # git-annex has not noticed yet that the remote's UUID has changed.
        now = str(contact.uuid or contact.error)
        yield node_replaced(node.name, now, node.title, state.name, node.uuid)
    elif not contact.reachable and not gateway_down:
        problem = unreachable(node.uuid, node.title, contact.error, name, node.path)
        if state.gateway is None and node.path and state.tracking == "nodes":
            moved = as_command("git remote set-url", node.name, "DIRECTORY")
            problem = replace(
                problem,
                remedy=f"Bring it back at {node.path}, or set its new directory ({moved}); then let it catch up:",
            )
        if state.tracking == "remote":
            # Only git-annex can tell what the node lacks.
            where = f" at {node.path}" if node.path else ""
            problem = replace(
                problem,
                remedy=f"Bring it back{where}; this shows the result:",
                commands=(as_command("cluster-remote status", name),),
            )
        yield problem


def _state_problems(node: NodeState, contact: Contact, name: str) -> Iterator[Problem]:
    sample = node.sample
    if sample is not None and sample.missing:
        yield Problem(
            "content-missing",
            f"{node.title} has lost content: asked about {many(sample.asked, 'key')}, it lacks "
            f"{sample.missing} that the location log says it has",
            "Check all keys and correct the log, then restore the missing content:",
            (
                as_command("cluster-remote check", name, options="--all --fix"),
                as_command("cluster-remote repair", name),
            ),
            node=node.uuid,
        )
    if sample is not None and sample.unlogged:
        yield Problem(
            "content-unlogged",
            f"{node.title} has content that the location log does not list: asked about {many(sample.asked, 'key')}, "
            f"it has {sample.unlogged} that the log does not list",
            "Check all keys and correct the log:",
            (as_command("cluster-remote check", name, options="--all --fix"),),
            node=node.uuid,
        )
    preferring = node.preferred is not None or node.required is not None
    if node.lacking and not preferring and not (sample and (sample.missing or sample.unlogged)) and contact.reachable:
        yield Problem(
            "lagging",
            f"{node.title} lacks {many(node.lacking, 'content')} that other nodes have",
            "Copy it there:",
            (as_command("cluster-remote repair", name),),
            node=node.uuid,
        )
    if node.free is not None and node.free < _RESERVE:
        yield Problem(
            "disk-full",
            f"{node.title} is full: {node.free // 10**6} MB are left, and git-annex keeps "
            f"{_RESERVE // 10**6} MB free (annex.diskreserve)",
            "Free up space on its disk; this shows content that no file uses:",
            ("git annex unused",),
            node=node.uuid,
        )
    if contact.version is not None and contact.version < 2:
        yield Problem(
            "old-protocol",
            f"{node.title} speaks protocol version {contact.version}, which cannot say where content was stored",
            "Install a newer git-annex there. This shows its version:",
            (as_command("cluster-remote ping", name),),
            node=node.uuid,
        )
