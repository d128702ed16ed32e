"""Who is connected to a gateway, who gives way when it is full, and the locks of disconnected clients.

Clients are counted by token, and strangers, which have not authenticated yet, by address. The heaviest user gives way
first, so no client can starve the others.
"""

from __future__ import annotations

import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import anyio

from cluster_remote.gateway.tokens import Token

__all__ = ["Connection", "FailedLogins", "OrphanedLocks", "Slots", "make_room"]

# The largest share of all slots for one token, and for all clients without a token together.
_SHARE, _WITHOUT_TOKEN = 0.75, 0.5
# Seconds between attempts to get a slot.
_INTERVAL = 0.05
# Seconds without a request after which a connection gives way to another one with the same token.
_LONG_IDLE = 60.0
# Seconds for which a wrong token counts against its address, how often the delay doubles, and how many addresses to
# remember.
_FAILURE_MEMORY, _DOUBLINGS, _ADDRESSES = 600.0, 4, 1024


@dataclass(eq=False)
class Connection:
    """A client's connection. Times are in seconds of the monotonic clock.

    Clients without a token are counted by `address`; `name` is for the log. `idle_since` is None during a request;
    after `longest_idle` seconds without one, it gives way to another connection with the same token. `ended` is why the
    gateway ended it. `has_unread` says whether a request may be on its way.
    """

    name: str
    address: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    began: float = field(default_factory=time.monotonic)
    token: Token | None = None
    idle_since: float | None = None
    longest_idle: float = _LONG_IDLE
    ended: str | None = None
    has_unread: Callable[[], bool] = lambda: False

    def end(self, why: str) -> None:
        """End the connection now; its line in the log says why."""
        if self.ended is None:
            self.ended = why
            self.scope.cancel()


class Slots:
    """The connection slots of a gateway: some for clients, and others for strangers."""

    def __init__(self, clients: int, strangers: int) -> None:
        self._most_clients = clients
        self._most_strangers = strangers
        # The values are the owners: see `_owner`.
        self._clients: dict[Connection, str] = {}
        # In order of arrival.
        self._strangers: dict[Connection, None] = {}
        # Connections that wait for a slot, with their owners, in the order in which they get one.
        self._waiting: dict[Connection, str] = {}

    def arrive(self, stranger: Connection) -> None:
        """Add a stranger. If there are too many, end the oldest one from the address with the most strangers."""
        if len(self._strangers) >= self._most_strangers:
            count = Counter(each.address for each in self._strangers)
            most = max(count.values())
            oldest = next(each for each in self._strangers if count[each.address] == most)
            del self._strangers[oldest]
            oldest.end("gave way to newer strangers")
        self._strangers[stranger] = None

    async def wait(self, connection: Connection, token: Token | None, seconds: float) -> str | None:
        """Give a connection a client's slot; wait up to `seconds` for one. Return why there was none in time."""
        refusal = self.admit(connection, token)
        if refusal is None:
            return None
        deadline = time.monotonic() + seconds
        with self.queue(connection, token) as is_next:
            while refusal is not None and time.monotonic() < deadline:
                await anyio.sleep(_INTERVAL)
                if is_next():
                    refusal = self.admit(connection, token)
        return refusal

    def has_any(self, token: Token) -> bool:
        """Return whether another connection with this token has a slot."""
        return any(each.token is not None and each.token.id == token.id for each in self._clients)

    @contextmanager
    def queue(self, connection: Connection, token: Token | None) -> Iterator[Callable[[], bool]]:
        """Have a connection wait for a slot; yield a function that says whether it is its turn to try.

        While it waits, a connection with a token does not give way to strangers, within the share of its token.
        """
        owner = _owner(connection, token)
        queued, most = list(self._waiting.values()), self._most_clients
        if token is not None and len(queued) < most and queued.count(owner) < _share_of(most):
            self._strangers.pop(connection, None)
        self._waiting[connection] = owner
        try:
            yield lambda: next(each for each, whose in self._waiting.items() if whose == owner) is connection
        finally:
            del self._waiting[connection]
            if connection not in self._clients:
                self._strangers[connection] = None

    def admit(self, connection: Connection, token: Token | None) -> str | None:
        """Give a connection a client's slot, or return why there is none.

        Without a token (public reading), it counts by address. When all slots are taken, the longest idle connection of
        the heaviest user gives way. A connection whose next request has another token, as behind a reverse proxy, is
        counted again.
        """
        owner = _owner(connection, token)
        if self._clients.get(connection) == owner:
            return None
        if self._clients.pop(connection, None) is not None:
            connection.token = None
            self._strangers[connection] = None
        giving_way: Connection | None = None
        refusal: str | None = None
        if token is None:
            others = {each: whose for each, whose in self._clients.items() if each.token is None}
            giving_way, refusal = make_room(others, max(1, int(self._most_clients * _WITHOUT_TOKEN)), owner)
        if giving_way is None and refusal is None:
            giving_way, refusal = make_room(self._clients, self._most_clients, owner)
        if refusal is not None:
            return refusal
        if giving_way is not None:
            del self._clients[giving_way]
            giving_way.end("was idle and gave way to another client")
        self._strangers.pop(connection, None)
        connection.token = token
        self._clients[connection] = owner
        return None

    def leave(self, connection: Connection) -> None:
        """Free a connection's slot, if it has one."""
        self._clients.pop(connection, None)
        self._strangers.pop(connection, None)

    def end_invalid(self, valid: Callable[[Token], bool], why: str) -> None:
        """End the connections of all clients whose token is no longer valid."""
        for connection in list(self._clients):
            if connection.token is not None and not valid(connection.token):
                self.leave(connection)
                connection.end(why)


def _share_of(slots: int) -> int:
    """Return how many of `slots` one owner may take."""
    return math.ceil(slots * _SHARE)


def _owner(connection: Connection, token: Token | None) -> str:
    """Return what a connection is counted by: its token, or else its address."""
    return connection.address if token is None else f"token {token.id}"


def make_room(
    clients: Mapping[Connection, str], most: int, owner: str, share: int | None = None
) -> tuple[Connection | None, str | None]:
    """Return which connection must give way to one more of `owner`, if any, or why none can.

    `share` is how many one owner may have, by default three quarters of `most`.
    """
    count = Counter(clients.values())
    mine, full = count[owner], len(clients) >= most
    if mine >= (_share_of(most) if share is None else share):
        candidates = [each for each, whose in clients.items() if whose == owner and _idle(each) >= each.longest_idle]
    elif full:
        candidates = [
            each
            for each, whose in clients.items()
            if (_idle(each) >= 0 and count[whose] > mine + 1)
            or (_idle(each) >= each.longest_idle and (whose == owner or count[whose] > mine))
        ]
    else:
        return None, None
    if candidates:
        return max(candidates, key=lambda each: (count[clients[each]], _idle(each))), None
    if not full or mine + 1 >= max(count.values()):
        return None, f"{owner} uses {mine} of the {most} client slots of this gateway"
    return None, f"all {len(clients)} clients of this gateway are busy"


def _idle(connection: Connection) -> float:
    """Return the seconds since the last request; negative during one, and if the next has just arrived."""
    if connection.idle_since is None or connection.has_unread():
        return -1
    return time.monotonic() - connection.idle_since


class OrphanedLocks:
    """Locks that outlast their connection, by token. They take no slot, but their number is limited."""

    def __init__(self, per_token: int, total: int) -> None:
        self._per_token = per_token
        self._total = total
        self._locks: dict[tuple[str, Hashable], Callable[[], None]] = {}

    def refusal(self, token: str) -> str | None:
        """Return why this token gets no more locks for now, if it has left too many behind."""
        count = Counter(owner for owner, _ in self._locks)
        mine, owners = count[token], len(count.keys() | {token})
        # Where others have taken all of them, a token still gets what would be its share.
        if mine >= self._per_token or (len(self._locks) >= self._total and mine >= self._total // owners):
            return (
                f"{mine} locks are still held for disconnected clients with this token; each ends ten "
                "minutes after the disconnection"
            )
        return None

    def add(self, token: str, content: Hashable, release: Callable[[], None]) -> Callable[[], None]:
        """Add a lock of a disconnected client, replacing an older one on the same content.

        `release` ends it. Return a function that removes it again without ending it.
        """
        which = (token, content)
        older = self._locks.pop(which, None)
        if older is not None:
            # The newer one lasts longer.
            older()
        self._locks[which] = release

        def forget() -> None:
            if self._locks.get(which) is release:
                del self._locks[which]

        return forget


class FailedLogins:
    """Wrong tokens, by address: each delays the next refusal for longer, on any connection."""

    def __init__(self, delay: float) -> None:
        self._delay = delay
        self._wrong: OrderedDict[str, tuple[int, float]] = OrderedDict()

    def add(self, address: str) -> float:
        """Count one more. Return by how many seconds to delay its refusal."""
        now = time.monotonic()
        before, last = self._wrong.pop(address, (0, now))
        if now - last > _FAILURE_MEMORY:
            before = 0
        self._wrong[address] = (before + 1, now)
        if len(self._wrong) > _ADDRESSES:
            self._wrong.popitem(last=False)
        return float(self._delay * 2 ** min(before, _DOUBLINGS))
