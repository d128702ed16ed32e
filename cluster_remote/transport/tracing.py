"""Append the messages of sessions to the file named by CLUSTER_REMOTE_TRACE, for `cluster-remote trace`.

Any number of processes may append to it. Each message is a line of JSON with the fields of `TracedMessage` in
diagnosis/conversation.py, and never contains a token.
"""

from __future__ import annotations

import itertools
import json
import os
import time
from contextvars import ContextVar
from functools import cache
from typing import TYPE_CHECKING

from cluster_remote.p2p.messages import Data, describe, serialise

if TYPE_CHECKING:
    from cluster_remote.p2p.key import UUID
    from cluster_remote.p2p.messages import Message
    from cluster_remote.p2p.stream import Trace

__all__ = ["JOB", "VARIABLE", "recorded"]

VARIABLE = "CLUSTER_REMOTE_TRACE"
JOB: ContextVar[str | None] = ContextVar("job", default=None)
"""The git-annex job that a request belongs to."""

_numbers = itertools.count(1)


def recorded(trace: Trace | None, peer: str, server: UUID | None, token: str | None) -> Trace | None:
    """Extend `trace` to write to the file named by the environment, if any. Called once per session."""
    path = os.environ.get(VARIABLE)
    if not path:
        return trace
    number = next(_numbers)

    def both(outgoing: bool, message: Message) -> None:
        if trace is not None:
            trace(outgoing, message)
        text = describe(message)
        if token:
            # A peer's text may contain the token.
            text = text.replace(token, "[token]")
        _append(
            path,
            {
                "time": time.time(),
                "pid": os.getpid(),
                "session": number,
                "peer": peer,
                "server": None if server is None else server.text,
                "job": JOB.get(),
                "out": outgoing,
                "message": text,
                "size": len(serialise(message)),
                "data": message.length if isinstance(message, Data) else None,
            },
        )

    return both


@cache
def _file(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _append(path: str, entry: dict[str, object]) -> None:
    try:
        os.write(_file(path), json.dumps(entry).encode() + b"\n")
    except OSError:
        # A transfer must not fail because tracing does.
        return
