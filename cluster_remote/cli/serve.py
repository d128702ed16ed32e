"""cluster-remote serve: this repository as the gateway of its cluster, on sockets or for one client."""

from __future__ import annotations

import sys
from datetime import datetime
from typing import TYPE_CHECKING

import typer

from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.remote.settings import BadSettings

if TYPE_CHECKING:
    from cluster_remote.gateway.behind import Behind

__all__ = ["serve"]


def serve(
    cluster: str = typer.Option(
        None, metavar="NAME|UUID", help="The cluster to serve; needed where the repository is the gateway of several."
    ),
    listen: list[str] = typer.Option(
        [], metavar="ADDRESS", help="unix:/path or tcp://host:port. May be given several times."
    ),
    stdio: bool = typer.Option(
        False, "--stdio", help="Serve one client on standard input and output: for inetd or an ssh forced command."
    ),
    timeout: float = typer.Option(60.0, min=0.1, help="Seconds without progress before a request is given up."),
    max_connections: int = typer.Option(64, min=1, help="How many clients may be connected at the same time."),
) -> None:
    """Serve the cluster of this repository to others.

    Clients on a socket need a token (cluster-remote token create). A client gets the cluster, or what it names after
    its token (TOKEN/UUID): a node, or this repository itself. Sockets that systemd hands over are listened on too.

    With --stdio there are no tokens: whoever starts the program lets the client in, and may set
    GIT_ANNEX_SHELL_READONLY or GIT_ANNEX_SHELL_APPENDONLY, as for git-annex-shell.

    SIGTERM and SIGINT let requests that are under way finish, for 10 seconds; a second signal ends them.

    Example: cluster-remote serve --listen unix:/run/annex/gateway --listen tcp://127.0.0.1:9419
    """
    import anyio

    from cluster_remote.annex.repository import Repository
    from cluster_remote.gateway.behind import Behind

    behind = Behind.at(Repository.here(), cluster, timeout)
    if stdio:
        if listen:
            raise BadSettings("--stdio serves one client and listens nowhere: leave out --listen")
        anyio.run(_one_client, behind)
    else:
        anyio.run(_everybody, behind, listen, max_connections)


def _say(line: str) -> None:
    """A line of the log. Without a date where the journal adds its own is not worth the trouble."""
    print(datetime.now().astimezone().isoformat(timespec="seconds"), line, file=sys.stderr, flush=True)


async def _everybody(behind: Behind, addresses: list[str], connections: int) -> None:
    import os

    from cluster_remote.gateway.gateway import Gateway, Limits
    from cluster_remote.gateway.listeners import handed_over, listen, parse_listen
    from cluster_remote.gateway.tokens import Tokens

    parsed = [parse_listen(address) for address in addresses]
    listeners = handed_over(os.environ)
    try:
        for address in parsed:
            listeners += listen(address)
        if not listeners:
            raise BadSettings("nothing to listen on: --listen unix:/path, --listen tcp://host:port, or --stdio")
        tokens = Tokens.of(behind.repository)
        for listener in listeners:
            if listener.in_the_clear:
                _say(
                    f"warning: {listener.name} can be reached over the network, where tokens and contents can be read "
                    "by others: put it behind ssh, a VPN or a TLS proxy, or listen on 127.0.0.1"
                )
            _say(f"{listener.name}: serving {behind.cluster}")
        if not tokens.all():
            _say("warning: there are no tokens yet, so nobody can come in: cluster-remote token create")
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    await Gateway(behind, tokens, behind.timeout, _say, Limits(connections=connections)).run(listeners)


async def _one_client(behind: Behind) -> None:
    import os

    from cluster_remote.gateway.gateway import Limits
    from cluster_remote.gateway.stdio import mode_from, serve_stdio, stderr_is_the_client

    def say(line: str) -> None:
        if not stderr_is_the_client():
            print(f"cluster-remote: {line}", file=sys.stderr, flush=True)

    served = await behind.served(None, behind.own, mode_from(os.environ))
    ended = await serve_stdio(served, behind.timeout, Limits().to_finish, say)
    if ended.fault is not None:
        say(ended.fault)
        raise typer.Exit(FAILED)
