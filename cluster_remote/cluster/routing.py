"""Which nodes a request goes to, and what their answers come to. Pure.

The rules are those of git-annex's clusters: reads trust the location log and prefer low cost, uploads go to every node
that lacks the content, removals to every node whatever the log says. What differs is what a node that is away means: it
is left out and named, where git-annex gives up the whole request.
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

__all__ = [
    "Pick",
    "ReadingOrder",
    "UploadAnswer",
    "absent_where_reachable",
    "away",
    "failure_of_all",
    "gained",
    "in_log",
    "kept",
    "lacking",
    "lost",
    "presence",
    "reading_order",
    "reason",
    "removal_outcome",
    "strangers",
    "upload_outcome",
]

T = TypeVar("T")

# Given how many there are, the number of one of them: which of several equally good ones comes first.
Pick: TypeAlias = Callable[[int], int]

UploadAnswer: TypeAlias = Present | Stored | SessionError


def in_log(key: Key) -> bool:
    """Whether the location log can know of a key: chunks and encrypted content never are in it.

    Nor are chunks under a WORM key, which is what a special remote has to make of them before a repository takes them.
    git-annex's proxies still record them for the nodes that they stand before, and for no others.
    """
    if key.is_chunk or key.is_encrypted:
        return False
    if key.backend != "WORM":
        return True
    try:
        return not Key.parse(key.text.partition("--")[2]).is_chunk
    except ValueError:
        return True


def lacking(nodes: Iterable[Node], holders: Collection[UUID]) -> list[Node]:
    """Where an upload goes: the nodes that the log does not list; a gateway if it lacks one of those behind it."""
    return [node for node in nodes if not node.repositories or not node.repositories <= frozenset(holders)]


@dataclass(frozen=True, slots=True)
class ReadingOrder:
    """Whom to ask for content: first those that have it by the log, then the others, each in order of cost."""

    logged: tuple[Node, ...]
    others: tuple[Node, ...]


def reading_order(nodes: Iterable[Node], holders: Collection[UUID], pick: Pick) -> ReadingOrder:
    """`pick` decides where to begin among nodes of the same cost, so that these share the load.

    Of nodes that cost the same, those that git-annex has to be asked for come last: it fetches a content as a whole
    before it passes on the first byte (observed: some 50 ms for a small one where a repository takes 1 ms).
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
    """Whether the content is there, by the answers of all nodes that may have it: None, unknown, if none says yes and
    one gave no answer."""
    answers = list(answers)
    if True in answers:
        return True
    return None if any(isinstance(answer, SessionError) for answer in answers) else False


def absent_where_reachable(answers: Iterable[bool | SessionError]) -> bool:
    """Return whether some nodes say that the content is not there, and all others are away."""
    answers = list(answers)
    return False in answers and all(answer is False or isinstance(answer, Unreachable) for answer in answers)


def gained(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """The repositories that have the content by this upload, going by a node's answer to it.

    A gateway is only believed what it names, since some of those behind it may have been away, and only about nodes of
    the `cluster`. A repository speaks for itself alone.
    """
    match answer:
        case Stored(stored, uuids):
            return _believed(node, uuids, cluster) | (_itself(node) if stored else frozenset())
        case _:
            return frozenset()


def kept(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """The repositories that had the content before, going by a node's answer to an upload. See `gained`."""
    match answer:
        case Present(uuids):
            return _believed(node, uuids, cluster) | _itself(node)
        case Stored(present=uuids):
            return _believed(node, uuids, cluster)
        case _:
            return frozenset()


def lost(node: Node, answer: Removal | SessionError, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """The repositories that do not have the content any more, going by a node's answer to a removal. See `gained`."""
    match answer:
        case Removal(True, uuids):
            # A gateway that names none speaks a version without names, and says that all of them removed it.
            unnamed = not uuids - _clusters(uuids)
            return _believed(node, uuids, cluster) | _itself(node) | (node.repositories if unnamed else frozenset())
        case Removal(False, uuids):
            return _believed(node, uuids, cluster)
        case _:
            return frozenset()


def strangers(node: Node, answer: UploadAnswer, cluster: frozenset[UUID]) -> frozenset[UUID]:
    """The repositories that a node names in its answer and is not believed about."""
    match answer:
        case Present(uuids) | Stored(_, uuids):
            return uuids - _believed(node, uuids, cluster) - {node.uuid} - _clusters(uuids)
        case _:
            return frozenset()


def _believed(node: Node, named: frozenset[UUID], cluster: frozenset[UUID]) -> frozenset[UUID]:
    return named & (cluster if node.uuid.is_cluster else node.repositories)


def _itself(node: Node) -> frozenset[UUID]:
    # A cluster is no copy.
    return frozenset() if node.uuid.is_cluster else frozenset({node.uuid})


def _clusters(uuids: Iterable[UUID]) -> frozenset[UUID]:
    return frozenset(uuid for uuid in uuids if uuid.is_cluster)


def reason(node: Node, answer: UploadAnswer | Removal) -> str:
    """Why a node did not do it, in words."""
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
            return away(node, answer) or f"{node}: {answer}"
        case _:
            return f"{node}: {answer}"


def away(node: Node, error: SessionError) -> str | None:
    """Say in its owner's words that a disk is away: the same for whatever is asked of it. None if it is not that."""
    where = f" ({node.place})" if node.place else ""
    match error:
        case WrongRepository():
            return f"{node}: there is another repository in its place{where}: left out"
        case NotReached() if node.kind == "local" and node.place:
            return f"{node} is not there{where}: left out"
        case _:
            return None


def upload_outcome(answers: Sequence[tuple[Node, UploadAnswer]], cluster: frozenset[UUID]) -> Present | Stored:
    """What the answers of all nodes that were asked come to: stored if one stored it or has it.

    Nodes that failed are named, save those that got the content some other way (through another gateway).
    """
    new = frozenset().union(*(gained(node, answer, cluster) for node, answer in answers))
    old = frozenset().union(*(kept(node, answer, cluster) for node, answer in answers)) - new
    uuids = new | old
    reasons = [
        f"{node}: names repositories that are no nodes of this cluster, which is not recorded: {_listed(found)}"
        for node, answer in answers
        if (found := strangers(node, answer, cluster))
    ]
    if answers and not reasons and all(isinstance(answer, Present) for _, answer in answers):
        return Present(uuids)
    stored = any(isinstance(answer, Present) or (isinstance(answer, Stored) and answer.stored) for _, answer in answers)
    for node, answer in answers:
        match answer:
            case Present():
                continue
            case Stored(True, _, complaints):
                reasons += [f"{node}: {complaint}" for complaint in complaints]
            case _ if not node.repositories or not node.repositories <= uuids:
                reasons.append(reason(node, answer))
    return Stored(stored, new, tuple(reasons), old)


def _listed(uuids: Iterable[UUID]) -> str:
    return ", ".join(sorted(uuid.text for uuid in uuids))


def removal_outcome(answers: Sequence[tuple[Node, Removal | SessionError]], cluster: frozenset[UUID]) -> Removal:
    """What the answers of all nodes come to: removed if every one of them removed it."""
    uuids = frozenset().union(*(lost(node, answer, cluster) for node, answer in answers))
    failed = [(node, answer) for node, answer in answers if not (isinstance(answer, Removal) and answer.removed)]
    return Removal(not failed, uuids, tuple(reason(node, answer) for node, answer in failed))


def failure_of_all(what: str, failures: Sequence[tuple[Node, SessionError]]) -> SessionError:
    """The error of a request that no node could answer: names each, and says whether trying later may help."""
    text = f"{what}: " + "; ".join(reason(node, error) for node, error in failures)
    errors = [error for _, error in failures]
    if errors and all(isinstance(error, Refused) for error in errors):
        return Refused(text)
    if errors and all(isinstance(error, Unreachable | TimedOut) for error in errors):
        return Unreachable(text)
    return SessionError(text)
