"""Remove content from every node, from those that an upload reached, or from the one that sent damaged content.

Records each node's outcome, and checks nodes whose outcome no answer reports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from cluster_remote.cluster.session import ClusterSession
from cluster_remote.p2p.errors import ConnectionLost, ProtocolError, SessionError, TimedOut
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.session import Removal, Session
from cluster_remote.p2p.text import as_command
from cluster_remote.remote.causes import Cause, Fetched, Uploaded
from cluster_remote.remote.chunks import stored_as

if TYPE_CHECKING:
    from cluster_remote.remote.context import Context

__all__ = ["NotRemoved", "remove", "undo"]

# Seconds for checking the outcome of a removal; the second applies after git-annex has exited.
_CHECKING, _CHECKING_AT_EXIT = 20.0, 6.0


class NotRemoved(SessionError):
    """The content is still on a node, or may be; the message says on which, and why."""


async def remove(context: Context, session: Session, key: Key, cause: Cause | None) -> None:
    """Remove content from the nodes that `cause` implies. Raises NotRemoved, SessionError, LocationLogError."""
    context.expect_to_record()
    if not context.is_cluster:
        await _remove_from_single_repository(context, session, key, cause)
        return
    match cause:
        case Uploaded(added):
            outcome = await undo(context, session, key, added)
            if not outcome.removed:
                raise NotRemoved(f"{'; '.join(outcome.reasons)}; drop it again to remove it from every node")
        case Fetched(origin):
            await _remove_damaged(context, session, key, origin)
        case None:
            await _remove_everywhere(context, session, key)


async def undo(context: Context, session: Session, key: Key, added: frozenset[UUID]) -> Removal:
    """Remove content from the nodes that received it in the last upload. Complete if no other node may have it.

    The reasons also say what was removed. Raises SessionError, LocationLogError.
    """
    outcome = await _remove_from(context, session, key, added)
    others = context.living_nodes - added
    done = f"removed again from {context.names_of(outcome.uuids)}" if outcome.uuids else "removed from no node"
    not_reached = (f"the upload did not go to {context.names_of(others)}",) if others else ()
    complete = outcome.removed and not others and bool(context.living_nodes)
    return Removal(complete, outcome.uuids, (done, *outcome.reasons, *not_reached))


async def _remove_from_single_repository(context: Context, session: Session, key: Key, cause: Cause | None) -> None:
    if isinstance(cause, Uploaded) and not cause.added:
        raise NotRemoved(f"{session.name} had it before the upload and keeps it; drop it again to remove it")
    await session.open()
    try:
        outcome = await session.remove(stored_as(key))
    except (ConnectionLost, TimedOut, ProtocolError):
        with anyio.move_on_after(min(_CHECKING, context.settings.timeout)):
            if not await session.check_present(stored_as(key)):
                return
        raise
    if not outcome.removed:
        raise NotRemoved("; ".join(outcome.reasons) or f"{session.name} did not remove it")


async def _remove_damaged(context: Context, session: Session, key: Key, origin: UUID | None) -> None:
    name = context.settings.name
    if origin is None:
        raise NotRemoved(
            "nothing was removed, because it is unknown which node sent the damaged content; find it with "
            + as_command("cluster-remote check", name, options="--content")
        )
    outcome = await _remove_from(context, session, key, frozenset({origin}))
    if not outcome.removed:
        raise NotRemoved("; ".join(outcome.reasons))
    others = await context.nodes_with(key) if context.counts_nodes else context.living_nodes - {origin}
    raise NotRemoved(
        f"the damaged copy on {context.names_of({origin})} was removed, and no other"
        + (
            f" (not from {context.names_of(others)}); {as_command('cluster-remote repair', name)} replaces it"
            if others
            else ""
        )
    )


async def _remove_from(context: Context, session: Session, key: Key, nodes: frozenset[UUID]) -> Removal:
    """Remove content from these nodes of a cluster only, and record that."""
    if isinstance(session, ClusterSession):
        return await session.remove_from(stored_as(key), nodes)
    answers = await context.gateway_nodes.each(nodes, lambda single: single.remove(stored_as(key)))
    gone = frozenset(node for node, answer in answers.items() if isinstance(answer, Removal) and answer.removed)
    with anyio.CancelScope(shield=True):
        await context.record(key, absent=gone)
    reasons = tuple(
        f"{context.name_of(node)}: {answer if isinstance(answer, SessionError) else 'did not remove it'}"
        for node, answer in answers.items()
        if node not in gone
    )
    return Removal(gone == nodes, gone, reasons)


async def _remove_everywhere(context: Context, session: Session, key: Key) -> None:
    if context.is_serverless or not context.counts_nodes:
        # A serverless session records by itself; for a remote that counts as one copy, no log tracks its nodes.
        outcome = await session.remove(stored_as(key))
        error, remaining = "", "; ".join(outcome.reasons) or f"{session.name} did not remove it"
    else:
        outcome, error, remaining = await _remove_through_gateway(context, session, key)
    if not outcome.removed:
        # Without an answer, a node may have lost content that this log did not list.
        names = context.names_of(outcome.uuids) or ("" if error else "no node")
        where = f"removed from {names}" if context.counts_nodes and names else ""
        raise NotRemoved("; ".join(filter(None, [error, where, remaining])))


async def _remove_through_gateway(context: Context, session: Session, key: Key) -> tuple[Removal, str, str]:
    """Return the outcome, the error if there was no answer, and a message about the nodes that still have content."""
    outcome, error_text = Removal(False), ""
    # Without a connection, nothing has happened on any node.
    await session.open()
    try:
        outcome = await session.remove(stored_as(key))
    except (ConnectionLost, TimedOut, ProtocolError) as error:
        # git-annex's own gateway hangs up if a node is unreachable, even after removing from others.
        error_text = str(error)
    except anyio.get_cancelled_exc_class():
        with anyio.move_on_after(_CHECKING_AT_EXIT, shield=True):
            await _check_remaining(context, key, outcome)
        raise
    with anyio.CancelScope(shield=True):
        # Answers below version 2 name no nodes, but there a removal succeeds on every node or not at all.
        named, _others = await context.believed(outcome.uuids)
        gone = named if outcome.uuids or not outcome.removed else await context.nodes_with(key)
        await context.record(key, absent=gone)
    if outcome.removed and not outcome.uuids:
        return Removal(True, gone), "", ""
    outcome, remaining = await _check_remaining(context, key, Removal(outcome.removed, gone))
    return outcome, error_text, remaining


async def _check_remaining(context: Context, key: Key, outcome: Removal) -> tuple[Removal, str]:
    """Check the nodes that a gateway's answer does not name, each through the gateway.

    Returns the updated outcome, and a message about which nodes still have the content, and why.
    """
    left = context.living_nodes - outcome.uuids
    if not left:
        return Removal(True, outcome.uuids), ""
    known = await context.nodes_with(key)

    async def check(single: Session) -> bool:
        try:
            with anyio.fail_after(min(_CHECKING, context.settings.timeout)):
                return await single.check_present(stored_as(key))
        except TimeoutError:
            raise TimedOut("no answer in time") from None

    answers = await context.gateway_nodes.each(sorted(left, key=lambda node: (node not in known, node)), check)
    absent = frozenset(node for node, answer in answers.items() if answer is False)
    present = frozenset(node for node, answer in answers.items() if answer is True)
    with anyio.CancelScope(shield=True):
        # Record nothing about nodes that never had the content.
        await context.record(key, present - known, absent & known)
    messages = [
        f"{context.name_of(node)} could not be asked ({answer})"
        if isinstance(answer, SessionError)
        else f"{context.name_of(node)} still has it: it is reachable, but did not remove it (the content is "
        "locked, or the node is read-only)"
        for node, answer in answers.items()
        if answer is not False
    ]
    if absent - known:
        messages.append(f"not on {context.names_of(absent - known)}")
    return Removal(left == absent, outcome.uuids | absent & known), "; ".join(sorted(messages))
