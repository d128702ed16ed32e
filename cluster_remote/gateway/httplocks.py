"""Locks taken over HTTP, which outlast the request that took them: another request keeps or releases them."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup
from starlette.requests import ClientDisconnect, Request

from cluster_remote.gateway.httpaccess import connection_of, note
from cluster_remote.gateway.sessions import VERSION_AGE, SessionPool
from cluster_remote.gateway.slots import OrphanedLocks
from cluster_remote.p2p.errors import SessionError
from cluster_remote.p2p.key import UUID, Key
from cluster_remote.p2p.server import Endpoint

__all__ = ["HttpLocks"]

# Maximum bytes of a line in keeplocked's body.
_LONGEST_LINE = 1024


@dataclass
class _Lock:
    """Content locked against removal, until it is released or the lock times out.

    `keepers` is the number of requests that keep it; without any, it counts as orphaned by its `owner`.
    """

    owner: str
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)
    keepers: int = 0
    forget: Callable[[], None] = field(default=lambda: None)


class HttpLocks:
    """The locks of one server, by ID; each is a task of `tasks`. An orphaned lock lasts `retention` seconds."""

    def __init__(
        self, tasks: TaskGroup, sessions: SessionPool, orphaned_locks: OrphanedLocks, retention: float
    ) -> None:
        self._tasks = tasks
        self._sessions = sessions
        self._orphaned_locks = orphaned_locks
        self._retention = retention
        self._locks: dict[str, _Lock] = {}

    async def lock(self, request: Request, served: Endpoint, key: Key, bypass: frozenset[UUID]) -> str | None:
        """Lock content; return the lock's ID, or None if the content cannot be locked. Raises SessionError."""
        owner = connection_of(request).token
        assert owner is not None, "anonymous clients cannot lock"
        lock, lockid = _Lock(owner.id), secrets.token_hex(16)
        if (refusal := self._orphaned_locks.refusal(lock.owner)) is not None:
            note(request, refusal)
            return None
        answer: list[bool | SessionError] = []
        answered = anyio.Event()

        async def hold() -> None:
            with lock.scope:
                try:
                    session = await self._sessions.session(served, lock.owner, bypass, VERSION_AGE)
                    async with session.lock(key) as locked:
                        answer.append(locked)
                        if locked:
                            self._locks[lockid] = lock
                            self._orphan(lockid)
                            answered.set()
                            await anyio.sleep_forever()
                except SessionError as error:
                    answer.append(error)
                finally:
                    self._locks.pop(lockid, None)
                    lock.forget()
                    answered.set()

        self._tasks.start_soon(hold)
        try:
            await answered.wait()
        except BaseException:
            lock.scope.cancel()
            raise
        match answer[0] if answer else False:
            case SessionError() as error:
                raise error
            case locked:
                return lockid if locked else None

    async def keep(self, request: Request, lockid: str) -> None:
        """Hold a lock until the end of the body, where the client says whether to release it."""
        lock = self._locks.get(lockid)
        if lock is None:
            return
        lock.forget()
        lock.keepers += 1
        lock.scope.deadline = math.inf
        released = False
        try:
            released = await _says_unlock(request)
        except ClientDisconnect:
            # The client may rely on the lock.
            pass
        finally:
            lock.keepers -= 1
            if released:
                lock.scope.cancel()
            elif not lock.keepers and lockid in self._locks:
                self._orphan(lockid)

    def _orphan(self, lockid: str) -> None:
        """Hold a lock for as long as a client that went silent may rely on it."""
        lock = self._locks[lockid]
        lock.scope.deadline = anyio.current_time() + self._retention
        lock.forget = self._orphaned_locks.add(lock.owner, lockid, lock.scope.cancel)


async def _says_unlock(request: Request) -> bool:
    """Read JSON objects, one per line, until one says to unlock. Return False if the body ends without that."""
    line = b""
    async for chunk in request.stream():
        line += chunk
        *lines, line = line.split(b"\n")
        if len(line) > _LONGEST_LINE:
            return False
        for complete in lines:
            try:
                said = json.loads(complete or b"{}")
            except (ValueError, RecursionError):
                return False
            if isinstance(said, dict) and said.get("unlock") is True:
                return True
    return False
