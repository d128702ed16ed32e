"""cluster-remote serve: this repository as the gateway of its cluster, on sockets or for one client."""

from __future__ import annotations

import os
import signal
import sys
from datetime import datetime
from pathlib import Path

import anyio
import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.completion import clusters
from cluster_remote.cli.exitcodes import FAILED
from cluster_remote.cli.interrupts import run
from cluster_remote.cluster.membership import NoCluster
from cluster_remote.gateway.backend import Backend
from cluster_remote.gateway.gateway import Gateway, Limits
from cluster_remote.gateway.listeners import ListenAddress, Listener, WebAddress, handed_over, listen, parse_listen
from cluster_remote.gateway.stdio import a_place, mode_from, serve_stdio, stderr_is_the_client
from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable
from cluster_remote.transport.address import Tls
from cluster_remote.transport.tls import ServerCertificate

__all__ = ["serve"]

# Characters of a line of the log.
_LONGEST = 4000


def serve(
    cluster: str = typer.Option(
        None,
        metavar="NAME|UUID",
        help="The cluster to serve; needed where the repository is the gateway of several.",
        autocompletion=clusters,
    ),
    listen: list[str] = typer.Option(
        [],
        metavar="ADDRESS",
        help="unix:/path, tcp://host:port, tls://host:port, http://host:port/path or https://… May be repeated.",
    ),
    stdio: bool = typer.Option(
        False, "--stdio", help="Serve one client on standard input and output: for inetd or an ssh forced command."
    ),
    uuid: str = typer.Option(
        "", metavar="UUID", help="With --stdio: a repository behind this gateway, in place of the cluster."
    ),
    public_read: bool = typer.Option(False, "--public-read", help="Over HTTP, let anybody read without a token."),
    certificate: Path = typer.Option(
        None, help="For tls:// and https://: certificate and chain, a PEM file, read again on SIGHUP."
    ),
    key: Path = typer.Option(None, help="For tls:// and https://: the certificate's private key, as a PEM file."),
    timeout: float = typer.Option(60.0, min=0.1, help="Seconds without progress before a request is given up."),
    max_clients: int = typer.Option(64, min=1, help="How many clients may be connected at the same time."),
) -> None:
    """Serve the cluster of this repository to others.

    Clients on a socket need a token (cluster-remote token create). A client gets the cluster, or what it names after
    its token (TOKEN/UUID): a node, or this repository itself. Sockets that systemd hands over are listened on too.

    With --stdio there are no tokens: whoever starts the program lets the client in, and may set
    GIT_ANNEX_SHELL_READONLY or GIT_ANNEX_SHELL_APPENDONLY, as for git-annex-shell.

    SIGTERM and SIGINT let requests that are under way finish, for 10 seconds; a second signal ends them.

    Example: cluster-remote serve --listen unix:/run/annex/gateway --listen tcp://127.0.0.1:9419
    """

    try:
        repository = Repository.here()
        if stdio and uuid and not cluster:
            behind = Backend(repository, repository.uuid, _parsed(uuid), timeout)
        else:
            behind = Backend.at(repository, cluster, timeout)
    except NoCluster as error:
        if cluster:
            raise BadSettings(f"--cluster: {error}") from None
        raise
    if stdio:
        if listen:
            raise BadSettings("--stdio serves one client and listens nowhere: leave out --listen")
        run(_one_client, behind, _parsed(uuid) if uuid else None, max_clients)
    elif uuid:
        raise BadSettings("--uuid goes with --stdio; a client on a socket says itself what it wants (TOKEN/UUID)")
    else:
        if (certificate is None) != (key is None):
            raise BadSettings("--certificate and --key go together")
        files = None if certificate is None else (str(certificate), str(key))
        run(_everybody, behind, listen, max_clients, public_read, files)


def _say(line: str) -> None:
    """A line of the log."""
    text = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {printable(line, _LONGEST)}\n"
    try:
        # Past Python's buffer: what could not be written would stay in it, and be complained about at the exit.
        os.write(2, text.encode())
    except OSError:
        # Nobody reads it any more, or the disk is full: no reason to stop serving.
        return


async def _everybody(
    behind: Backend, addresses: list[str], clients: int, public_read: bool, certificate: tuple[str, str] | None
) -> None:
    parsed = [parse_listen(address) for address in addresses]
    shown = None
    if any(isinstance(address, Tls) or (isinstance(address, WebAddress) and address.tls) for address in parsed):
        if certificate is None:
            raise BadSettings("tls:// and https:// need --certificate and --key")
        try:
            shown = ServerCertificate(*certificate)
        except ValueError as error:
            raise BadSettings(str(error)) from None
    tokens = Tokens.of(behind.repository)
    if not tokens.all() and not public_read:
        _say("warning: there are no tokens yet, so nobody can come in: cluster-remote token create")
    # Before there is a socket, which a signal would leave behind.
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        listeners = _open(parsed)
        for listener in listeners:
            _say(f"{listener.name}: serving {behind.cluster}")
        gateway = Gateway(behind, tokens, behind.timeout, _say, Limits(clients=clients), shown, public_read)
        try:
            async with anyio.create_task_group() as tasks:
                if shown is not None:
                    tasks.start_soon(_reload_on_hangup, shown)
                await gateway.run(listeners, signals)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await behind.aclose()


async def _reload_on_hangup(shown: ServerCertificate) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                shown.reload()
                _say("SIGHUP: the certificate was read again")
            except ValueError as error:
                _say(f"SIGHUP: the old certificate stays: {error}")


def _open(addresses: list[ListenAddress]) -> list[Listener]:
    """All of them, or none."""
    listeners = handed_over(os.environ)
    try:
        for address in addresses:
            listeners += listen(address)
        if not listeners:
            raise BadSettings("nothing to listen on: --listen unix:/path, tcp://host:port or http://…, or --stdio")
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    for listener in listeners:
        if listener.in_the_clear:
            _say(
                f"warning: {listener.name} can be reached over the network, where others can read tokens and contents: "
                "put it behind ssh, a VPN or a TLS proxy, or listen on 127.0.0.1"
            )
    return listeners


def _parsed(uuid: str) -> UUID:
    try:
        return UUID.parse(uuid)
    except ValueError as error:
        raise BadSettings(f"--uuid: {error}") from None


async def _one_client(behind: Backend, wanted: UUID | None, most: int) -> None:
    def say(line: str) -> None:
        if not stderr_is_the_client():
            print(f"cluster-remote: {printable(line, _LONGEST)}", file=sys.stderr, flush=True)

    mode = mode_from(os.environ)
    for name in [name for name in os.environ if name.startswith("GIT_ANNEX_SHELL_")]:
        # These are about our client; git-annex-shell, by which we reach the nodes, would take them for its own.
        del os.environ[name]
    endpoint = await behind.served(wanted, None, mode)
    with a_place(behind.repository.common_dir / "cluster-remote", most):
        try:
            ended = await serve_stdio(endpoint, behind.timeout, Limits().to_finish, say)
        finally:
            with anyio.CancelScope(shield=True):
                await behind.aclose()
    if ended.fault is not None:
        say(ended.fault)
        raise typer.Exit(FAILED)
