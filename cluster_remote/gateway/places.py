"""Who is connected to a gateway, who gives way when it is full, and locks whose clients are gone.

What a client uses is counted against its token; what a stranger, who has not authenticated yet, uses is counted
against its address. So nobody can keep others out: whoever has most gives way first.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

import anyio

from cluster_remote.gateway.tokens import Token
from cluster_remote.p2p.key import UUID, Key

__all__ = ["Connection", "DeadLocks", "Guesses", "Places"]

# The share of all places that one token may have.
_SHARE = 0.75
# Seconds without a request after which a connection gives way to another one of the same token.
_LONG_IDLE = 60.0
# Seconds for which a wrong token counts against its address, how often the delay doubles, and how many addresses are
# remembered.
_GUESS_MEMORY, _DOUBLINGS, _ADDRESSES = 600.0, 4, 1024


@dataclass(eq=False)
class Connection:
    """A connection from first to last. Times are in seconds of the monotonic clock.

    `address` is what strangers are counted by, `name` is for the log. `idle_since` is None during a request.
    `ended` says why the gateway ended it.
    """

    name: str
    address: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    began: float = field(default_factory=time.monotonic)
    token: Token | None = None
    idle_since: float | None = None
    ended: str | None = None

    def end(self, why: str) -> None:
        """End it at once; its line in the log says why."""
        if self.ended is None:
            self.ended = why
            self.scope.cancel()


class Places:
    """The places of a gateway: for so many clients, and besides for so many strangers."""

    def __init__(self, clients: int, strangers: int) -> None:
        self._most_clients = clients
        self._most_strangers = strangers
        self._share = math.ceil(clients * _SHARE)
        self._clients: dict[Connection, Token] = {}
        # In the order in which they came.
        self._strangers: dict[Connection, None] = {}

    def arrive(self, stranger: Connection) -> None:
        """Take a stranger in. Where there are too many, the oldest one of the address with most of them is ended."""
        if len(self._strangers) >= self._most_strangers:
            count = Counter(each.address for each in self._strangers)
            most = max(count.values())
            oldest = next(each for each in self._strangers if count[each.address] == most)
            del self._strangers[oldest]
            oldest.end("gave way to newer strangers")
        self._strangers[stranger] = None

    def admit(self, connection: Connection, token: Token) -> str | None:
        """Give a stranger that has authenticated the place of a client, or say why there is none for it.

        When all are taken, the longest idle connection of the token that has most of them gives way.
        """
        count = Counter(each.id for each in self._clients.values())
        mine = count[token.id]
        giving_way: Connection | None = None
        if mine >= self._share or (len(self._clients) >= self._most_clients and mine + 1 >= max(count.values())):
            giving_way = self._longest_idle({token.id}, _LONG_IDLE)
            if giving_way is None:
                return f"token {token.id} has {mine} of the {self._most_clients} places of this gateway"
        elif len(self._clients) >= self._most_clients:
            giving_way = self._longest_idle({each for each, number in count.items() if number > mine + 1}, 0)
            if giving_way is None:
                return f"this gateway has {len(self._clients)} clients already, and all are busy"
        if giving_way is not None:
            del self._clients[giving_way]
            giving_way.end("gave way to another client, having been idle")
        self._strangers.pop(connection, None)
        connection.token = token
        self._clients[connection] = token
        return None

    def _longest_idle(self, tokens: Collection[str], at_least: float) -> Connection | None:
        count = Counter(each.id for each in self._clients.values())
        now = time.monotonic()
        candidates = [
            (count[token.id], now - connection.idle_since, connection)
            for connection, token in self._clients.items()
            if token.id in tokens and connection.idle_since is not None and now - connection.idle_since >= at_least
        ]
        return max(candidates, key=lambda each: each[:2])[2] if candidates else None

    def leave(self, connection: Connection) -> None:
        """Give its place back. Harmless for one that has none."""
        self._clients.pop(connection, None)
        self._strangers.pop(connection, None)

    def end_those_without(self, valid: Callable[[Token], bool], why: str) -> None:
        """End the connections of all clients whose token is not valid any more."""
        for connection, token in list(self._clients.items()):
            if not valid(token):
                self.leave(connection)
                connection.end(why)


class DeadLocks:
    """Locks that outlast the connection they were taken on, by token. They take no place, but may only be so many."""

    def __init__(self, for_each_token: int, in_all: int) -> None:
        self._for_each_token = for_each_token
        self._in_all = in_all
        self._locks: dict[tuple[str, UUID, Key], Callable[[], None]] = {}

    def refusal(self, token: str) -> str | None:
        """Say why this token gets no more locks for now, if it has left too many behind."""
        mine = sum(1 for owner, _, _ in self._locks if owner == token)
        if mine >= self._for_each_token or len(self._locks) >= self._in_all:
            return (
                f"{mine} locks are still held for clients of this token whose connections broke off; each ends ten "
                "minutes after that"
            )
        return None

    def add(self, token: str, where: UUID, key: Key, release: Callable[[], None]) -> Callable[[], None]:
        """Keep a lock whose client is gone, in place of an older one on the same content. Gives what forgets it."""
        which = (token, where, key)
        older = self._locks.pop(which, None)
        if older is not None:
            # The new one lasts longer.
            older()
        self._locks[which] = release

        def forget() -> None:
            if self._locks.get(which) is release:
                del self._locks[which]

        return forget


class Guesses:
    """Wrong tokens, by address: each makes the next refusal take longer, on whatever connection it comes."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def wrong(self, address: str) -> float:
        """Count one more. Return how many seconds its refusal has to take."""
        now = time.monotonic()
        before, last = self._wrong.pop(address, (0, now))
        if now - last > _GUESS_MEMORY:
            before = 0
        self._wrong[address] = (before + 1, now)
        if len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        return float(self._delay * 2 ** min(before, _DOUBLINGS))
