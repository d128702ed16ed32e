"""cluster-remote ping: show who answers, and how fast."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass

import typer

from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json, NameOrUrl, Timeout
from cluster_remote.cli.render import say
from cluster_remote.cli.target import connected
from cluster_remote.diagnosis.probe import round_trips

__all__ = ["Pong", "ping"]


@dataclass(frozen=True)
class Pong:
    """What a server said about itself; `round_trip` and `connecting` are in seconds."""

    target: str
    server: str
    uuid: str
    version: int | None
    connecting: float
    round_trip: float


async def measure(text: str, timeout: float | None) -> Pong:
    """Connect, and time requests that cost the server no work. Raises SessionError, BadSettings, AnnexError."""
    async with connected(text, timeout=timeout) as target:
        session = target.session
        started = time.perf_counter()
        uuid = await session.open()
        opened = time.perf_counter()
        fastest = min([seconds async for seconds in round_trips(session)])
        return Pong(text, session.name, str(uuid), session.version, opened - started, fastest)


def ping(
    target: NameOrUrl,
    timeout: Timeout = None,
    as_json: Json = False,
) -> None:
    """Connect to a cluster's gateway; show who answers, the protocol version and the speed.

    Exit codes: 0 reachable, 2 wrong usage, 3 unreachable, 4 not in a repository, 130 interrupted.

    Example: cluster-remote ping ssh://nas.local/srv/annex
    """

    pong = run(measure, target, timeout)
    if as_json:
        typer.echo(json.dumps(asdict(pong)))
    else:
        say(
            f"{pong.target}: {pong.uuid}, protocol version {pong.version}, connected in "
            f"{pong.connecting * 1000:.0f} ms, round trip {pong.round_trip * 1000:.1f} ms"
        )
