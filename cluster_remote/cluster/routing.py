"""Decide which nodes a request goes to, and combine their answers. Pure.

The rules are those of git-annex's clusters: reads trust the location log and prefer low costs, uploads go to every node
that lacks the content, removals to every node regardless of the log. The difference is what happens with an unreachable
node: it is left out and named, where git-annex fails the whole request.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias, TypeVar

from cluster_remote.cluster.node import Node
from cluster_remote.p2p.errors import (
    NotReached,
    NotTried,
    Refused,
    SessionError,
    TimedOut,
    Unreachable,
    WrongRepository,
)
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Present, Removal, Stored
from cluster_remote.p2p.text import few

__all__ = [
    "Pick",
    "ReadingOrder",
    "UploadAnswer",
    "absent_where_reachable",
    "failure_of_all",
    "gained",
    "in_log",
    "kept",
    "lacking",
    "lost",
    "missing_disk",
    "presence",
    "reading_order",
    "reason",
    "removal_outcome",
    "unknown_repositories",
    "upload_outcome",
]

T = TypeVar("T")

# Chooses among equally good candidates: takes their number, returns an index.
Pick: TypeAlias = Callable[[int], int]

UploadAnswer: TypeAlias = Present | Stored | SessionError


def in_log(key: Key) -> bool:
    """Return whether the location log can list a key: it never lists chunks and encrypted content.

    Nor does it list chunks with a WORM key, which a special remote has to use for repositories to accept them.
    git-annex's proxies still record those, but only for the nodes behind them.
    """
    if key.is_chunk or key.is_encrypted:
        return False
    if key.backend != "WORM":
        return True
    try:
        return not Key(key.text.partition("--")[2]).is_chunk
    except ValueError:
        return True


def lacking(nodes: Iterable[Node], holders: Collection[UUID]) -> list[Node]:
    """Return the targets of an upload: nodes that the log does not list, and gateways to such nodes."""
    return [node for node in nodes if not node.repositories or not node.repositories <= frozenset(holders)]


@dataclass(frozen=True, slots=True)
class ReadingOrder:
    """The nodes to ask for content: first those that have it according to the log, then the others, by cost."""

    logged: tuple[Node, ...]
    others: tuple[Node, ...]


def reading_order(nodes: Iterable[Node], holders: Collection[UUID], pick: Pick) -> ReadingOrder:
    """Sort nodes for reading; `pick` chooses the first among nodes with equal costs, so that these share the load.

    Among equal costs, nodes that only git-annex can reach come last: it fetches the whole content before it passes on
    the first byte (observed: some 50 ms for a small file, where a repository takes 1 ms).
    """
    ordered: list[Node] = []
    for _, group in groupby(sorted(nodes, key=_distance), key=_distance):
        ordered += _rotated(list(group), pick)
    return ReadingOrder(
        tuple(node for node in ordered if not node.repositories.isdisjoint(holders)),
        tuple(node for node in ordered if node.repositories.isdisjoint(holders)),
    )


def _distance(node: Node) -> tuple[float, bool]:
    return node.cost, node.kind == "proxied"


def _rotated(nodes: list[Node], pick: Pick) -> list[Node]:
    start = pick(len(nodes)) if len(nodes) > 1 else 0
    return nodes[start:] + nodes[:start]


def presence(answers: Iterable[bool | SessionError]) -> bool | None:
    """Combine the answers of all nodes that may have the content.

    True if one says yes; None (unknown) if none does and one gave no answer; otherwise False.
    """
    answers = list(answers)
    if True in answers:
        return True
    return None if any(isinstance(answer, SessionError) for answer in answers) else False


def absent_where_reachable(answers: Iterable[bool | SessionError]) -> bool:
    """Return whether some nodes say that the content is not there, and all others are unreachable."""
    answers = list(answers)
    return False in answers and all(answer is False or isinstance(answer, Unreachable) for answer in answers)


def gained(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """Return the repositories that received the content in this upload, according to a node's answer.

    A gateway is only trusted about nodes of the `cluster` that it names, since some nodes behind it may have been
    unreachable. A repository speaks only for itself.
    """
    match answer:
        case Stored(stored, uuids):
            return _believed(node, uuids, cluster) | (_itself(node) if stored else frozenset())
        case _:
            return frozenset()


def kept(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """Return the repositories that already had the content, according to a node's answer to an upload. See `gained`."""
    match answer:
        case Present(uuids):
            return _believed(node, uuids, cluster) | _itself(node)
        case Stored(present=uuids):
            return _believed(node, uuids, cluster)
        case _:
            return frozenset()


def lost(node: Node, answer: Removal | SessionError, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """Return the repositories that no longer have the content, by a node's answer to a removal. See `gained`."""
    match answer:
        case Removal(True, uuids):
            # A gateway that names none has an old protocol version, and says that all of them removed it.
            unnamed = not uuids - _clusters(uuids)
            return _believed(node, uuids, cluster) | _itself(node) | (node.repositories if unnamed else frozenset())
        case Removal(False, uuids):
            return _believed(node, uuids, cluster)
        case _:
            return frozenset()


def unknown_repositories(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """Return the repositories that a node names in its answer but is not trusted about."""
    match answer:
        case Present(uuids) | Stored(_, uuids):
            return uuids - _believed(node, uuids, cluster) - {node.uuid} - _clusters(uuids)
        case _:
            return frozenset()


def _believed(node: Node, named: frozenset[UUID], cluster: frozenset[UUID]) -> frozenset[UUID]:
    return named & (cluster if node.uuid.is_cluster else node.repositories)


def _itself(node: Node) -> frozenset[UUID]:
    # A cluster is not a copy.
    return frozenset() if node.uuid.is_cluster else frozenset({node.uuid})


def _clusters(uuids: Iterable[UUID]) -> frozenset[UUID]:
    return frozenset(uuid for uuid in uuids if uuid.is_cluster)


def reason(node: Node, answer: UploadAnswer | Removal) -> str:
    """Return why a node did not do its part, for people."""
    match answer:
        case Stored(reasons=reasons) | Removal(reasons=reasons) if reasons:
            return f"{node}: {', '.join(reasons)}"
        case Stored():
            return f"{node}: did not store it"
        case Removal():
            return f"{node}: did not remove it"
        case NotTried():
            return str(answer)
        case SessionError():
            return missing_disk(node, answer) or f"{node}: {answer}"
        case _:
            return f"{node}: {answer}"


def missing_disk(node: Node, error: SessionError) -> str | None:
    """Return a message about a missing or swapped disk, the same for every request; None for other errors."""
    where = f" ({node.location})" if node.location else ""
    match error:
        case WrongRepository():
            return f"{node}: another repository is in its place{where}: left out"
        case NotReached() if node.kind == "local" and node.location:
            return f"{node} is not there{where}: left out"
        case _:
            return None


def upload_outcome(answers: Sequence[tuple[Node, UploadAnswer]], cluster: frozenset[UUID]) -> Present | Stored:
    """Combine the answers of all nodes that were asked: stored if one stored it or has it.

    Names the nodes that failed, except those that received the content through another gateway.
    """
    new = frozenset().union(*(gained(node, answer, cluster) for node, answer in answers))
    old = frozenset().union(*(kept(node, answer, cluster) for node, answer in answers)) - new
    uuids = new | old
    reasons = [
        f"{node}: claims copies in repositories that are not nodes of this cluster; not recorded: {_listed(found)}"
        for node, answer in answers
        if (found := unknown_repositories(node, answer, cluster))
    ]
    if answers and not reasons and all(isinstance(answer, Present) for _, answer in answers):
        return Present(uuids)
    stored = any(isinstance(answer, Present) or (isinstance(answer, Stored) and answer.stored) for _, answer in answers)
    for node, answer in answers:
        match answer:
            case Present():
                continue
            case Stored(True, _, warnings):
                reasons += [f"{node}: {warning}" for warning in warnings]
            case _ if not node.repositories or not node.repositories <= uuids:
                reasons.append(reason(node, answer))
    return Stored(stored, new, tuple(reasons), old)


def _listed(uuids: Iterable[UUID]) -> str:
    return few(sorted(uuid.text for uuid in uuids))


def removal_outcome(answers: Sequence[tuple[Node, Removal | SessionError]], cluster: frozenset[UUID]) -> Removal:
    """Combine the answers of all nodes: removed if every one of them removed it."""
    uuids = frozenset().union(*(lost(node, answer, cluster) for node, answer in answers))
    failed = [(node, answer) for node, answer in answers if not (isinstance(answer, Removal) and answer.removed)]
    return Removal(not failed, uuids, tuple(reason(node, answer) for node, answer in failed))


def failure_of_all(what: str, failures: Sequence[tuple[Node, SessionError]]) -> SessionError:
    """Return the error for a request that no node could answer: names each, and says whether to try again later."""
    text = f"{what}: " + "; ".join(reason(node, error) for node, error in failures)
    errors = [error for _, error in failures]
    if errors and all(isinstance(error, Refused) for error in errors):
        return Refused(text)
    if errors and all(isinstance(error, Unreachable | TimedOut) for error in errors):
        return Unreachable(text)
    return SessionError(text)
