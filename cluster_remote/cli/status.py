"""cluster-remote status: show the state of clusters, and their problems."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cluster_remote.access.local import looks_like_address
from cluster_remote.cli.completion import remotes
from cluster_remote.cli.exitcodes import FAILED, UNREACHABLE
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json
from cluster_remote.cli.render import duration, emit, show_problems, size, table
from cluster_remote.cli.target import every_cluster, one_cluster, views_at
from cluster_remote.diagnosis.state import ClusterState, NodeState, Status, Unusable
from cluster_remote.diagnosis.survey import survey
from cluster_remote.p2p.text import printable

__all__ = ["status"]


def status(
    target: Annotated[
        str,
        typer.Argument(
            metavar="[NAME|URL]",
            help="A remote of this repository or an address (default: all cluster remotes of this repository).",
            autocompletion=remotes,
            show_default=False,
        ),
    ] = "",
    sample: Annotated[int, typer.Option(min=0, help="Number of random keys to ask each node about.")] = 100,
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each node.")] = 10,
    as_json: Json = False,
) -> None:
    """Show a cluster's state: who answers and how fast, what each node holds, what is wrong and how to fix it.

    Asks all nodes at once. Key counts come from the location log; each node is asked about a random sample of keys, to
    see whether the log is right. cluster-remote check asks about all keys.

    Exit codes: 0 all is well, 1 problems found, 2 wrong usage, 3 nobody answers, 4 not in a repository,
    130 interrupted.

    Example: cluster-remote status mycluster
    """

    outcome = run(_status, target, sample, timeout)
    emit(outcome, as_json, _show)
    if not outcome.healthy:
        raise typer.Exit(UNREACHABLE if _all_down(outcome) else FAILED)


async def _status(target: str, sample: int, timeout: float) -> Status:
    broken: list[Unusable] = []
    if not target:
        views, broken = await every_cluster(timeout)
    elif looks_like_address(target):
        views = await views_at(target, timeout)
    else:
        views, broken = await one_cluster(target, timeout)
    return await survey(views, broken, timeout=timeout, sample=sample)


def _all_down(outcome: Status) -> bool:
    """Return whether nobody answered."""
    contacts = [node.contact for cluster in outcome.clusters for node in cluster.nodes]
    contacts += [cluster.gateway.contact for cluster in outcome.clusters if cluster.gateway is not None]
    asked = [contact for contact in contacts if contact is not None]
    return bool(asked) and not any(contact.reachable for contact in asked)


def _show(outcome: Status, console: Console) -> None:
    for number, cluster in enumerate(outcome.clusters):
        if number:
            console.print()
        _show_cluster(cluster, console)


def _show_cluster(cluster: ClusterState, console: Console) -> None:
    title = Text(printable(cluster.name), style="bold")
    title.append(f"  {printable(cluster.description)}  {cluster.uuid}", style="not bold")
    console.print(title)
    if cluster.nodes or cluster.gateway:
        for line in _way(cluster):
            console.print(line)
    if cluster.keys is not None and cluster.size is not None:
        console.print(f"{cluster.keys:,} contents, {size(cluster.size)}")
    if cluster.nodes:
        console.print()
        console.print(_nodes_table(cluster))
    console.print()
    if cluster.problems:
        show_problems(cluster.problems, console)
    else:
        console.print(Text("All is well.", style="green"))


def _way(cluster: ClusterState) -> Iterator[str]:
    gateway = cluster.gateway
    if gateway is None:
        yield "without a server: the nodes are remotes of this repository"
        return
    contact = gateway.contact
    yield f"through {printable(gateway.address)}" + (
        f": {printable(gateway.description or str(contact.uuid))}, protocol {contact.version}, "
        f"connected in {duration(contact.connecting)}"
        if contact.reachable
        else ", which does not answer"
    )
    if cluster.tracking == "remote":
        yield "counts as one copy (tracking=remote), however many nodes it has"


def _nodes_table(cluster: ClusterState) -> object:
    columns = ["node", "state", "latency", "version", "keys", "size", "free", "cost"]
    # Columns without information are left out, so that the table fits a terminal of 80 columns.
    graded = any(node.trust != "semitrusted" for node in cluster.nodes)
    preferring = any(node.preferred or node.required for node in cluster.nodes)
    rows: list[list[object]] = []
    for node in cluster.nodes:
        contact = node.contact
        row: list[object] = [
            f"{node.title} ({node.name})" if node.name not in (node.title, str(node.uuid)) else node.title,
            _state(node),
            duration(contact.latency) if contact and contact.latency is not None else "",
            contact.version if contact and contact.version is not None else "",
            f"{node.keys:,}" if node.keys is not None else "",
            ("" if node.size is None else size(node.size)) + ("+" if node.unsized else ""),
            size(node.free) if node.free is not None else "",
            f"{node.cost:g}" if node.cost is not None else "",
        ]
        if graded:
            row.append(node.trust)
        if preferring:
            wanted = [f"wants {node.preferred}"] if node.preferred else []
            row.append("; ".join([*wanted, *([f"requires {node.required}"] if node.required else [])]))
        rows.append(row)
    columns += [*(["trust"] if graded else []), *(["preferred content"] if preferring else [])]
    return table(columns, rows, right=("latency", "version", "keys", "size", "free", "cost"))


def _state(node: NodeState) -> Text:
    if node.contact is None:
        return Text("dead", style="dim")
    return Text("reachable", style="green") if node.contact.reachable else Text("unreachable", style="bold red")
