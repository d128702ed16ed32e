"""cluster-remote serve: make this repository the gateway of its cluster, on sockets or for one client."""

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
from cluster_remote.gateway.listeners import (
    ListenAddress,
    Listener,
    WebAddress,
    inherited_listeners,
    listen,
    parse_listen,
)
from cluster_remote.gateway.slotfiles import client_slot, owner_from
from cluster_remote.gateway.stdio import StdioLocks, mode_from, serve_stdio
from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable
from cluster_remote.transport.address import Tls
from cluster_remote.transport.tls import ServerCertificate

__all__ = ["serve"]

# Maximum characters in a line of the log.
_LONGEST = 4000


def serve(
    cluster: str = typer.Option(
        None,
        metavar="NAME|UUID",
        help="The cluster to serve; required if the repository is the gateway of several.",
        autocompletion=clusters,
    ),
    listen: list[str] = typer.Option(
        [],
        metavar="ADDRESS",
        help="unix:/path, tcp://host:port, tls://host:port, http://host:port/path or https://… Can be repeated.",
    ),
    stdio: bool = typer.Option(
        False, "--stdio", help="Serve one client on standard input and output: for inetd or an ssh forced command."
    ),
    uuid: str = typer.Option(
        "", metavar="UUID", help="With --stdio: serve a repository behind this gateway instead of the cluster."
    ),
    public_read: bool = typer.Option(False, "--public-read", help="Over HTTP, allow reading without a token."),
    own_repository: bool = typer.Option(
        False, "--own-repository", help="With --public-read: include the contents in the gateway's own repository."
    ),
    certificate: Path = typer.Option(
        None, help="For tls:// and https://: PEM file with the certificate and its chain, reloaded on SIGHUP."
    ),
    key: Path = typer.Option(None, help="For tls:// and https://: PEM file with the certificate's private key."),
    client_ca: Path = typer.Option(
        None,
        help="For tls:// and https://: only accept clients with a certificate from an authority in this PEM file, "
        "reloaded on SIGHUP. They need a token too.",
    ),
    timeout: float = typer.Option(60.0, min=0.1, help="Seconds without progress before a request is aborted."),
    max_clients: int = typer.Option(64, min=1, help="Maximum number of simultaneous clients."),
) -> None:
    """Serve this repository's cluster to others.

    Clients on a socket need a token (cluster-remote token create). A client gets the cluster, or the node or repository
    that it names after its token (TOKEN/UUID). Sockets passed by systemd are served too; FileDescriptorName= can be
    http, https (also with a path: http/data) or tls.

    With --stdio there are no tokens: the program that starts this command controls access. It may set
    GIT_ANNEX_SHELL_READONLY or GIT_ANNEX_SHELL_APPENDONLY, as for git-annex-shell. If standard error goes to the
    client as well, as under inetd, it gets errors as messages of the protocol.

    SIGTERM, SIGINT and, without --certificate, SIGHUP give running requests 10 seconds to finish; a second signal ends
    them.

    Example: cluster-remote serve --listen unix:/run/annex/gateway --listen tcp://127.0.0.1:9419
    """

    try:
        repository = Repository.here()
        if stdio and uuid and not cluster:
            backend = Backend(repository, repository.uuid, _parsed(uuid), timeout)
        else:
            backend = Backend.at(repository, cluster, timeout)
    except NoCluster as error:
        if cluster:
            raise BadSettings(f"--cluster: {error}") from None
        raise
    if stdio:
        if listen:
            raise BadSettings("--stdio does not listen on sockets: leave out --listen")
        run(_serve_one_client, backend, _parsed(uuid) if uuid else None, max_clients)
    elif uuid:
        raise BadSettings("--uuid requires --stdio; clients on a socket choose by themselves (TOKEN/UUID)")
    else:
        addresses = [parse_listen(address) for address in listen]
        passed = inherited_listeners(os.environ)
        tls = any(isinstance(each, Tls) or (isinstance(each, WebAddress) and each.tls) for each in addresses)
        tls_certificate = _certificate(certificate, key, client_ca, tls or any(each.tls for each in passed))
        if own_repository and not public_read:
            raise BadSettings("--own-repository requires --public-read; for tokens: token create --own-repository")
        run(_serve_sockets, backend, passed, addresses, max_clients, public_read, own_repository, tls_certificate)


def _certificate(
    certificate: Path | None, key: Path | None, client_ca: Path | None, wanted: bool
) -> ServerCertificate | None:
    """Return the certificate for tls:// and https://; None if it is not `wanted` for any. Raises BadSettings."""
    if (certificate is None) != (key is None):
        raise BadSettings("--certificate and --key must be given together")
    if not wanted:
        if client_ca is not None:
            raise BadSettings("--client-ca requires an address with TLS: --listen tls://… or https://…")
        return None
    if certificate is None or key is None:
        raise BadSettings("tls:// and https:// require --certificate and --key")
    try:
        return ServerCertificate(str(certificate), str(key), None if client_ca is None else str(client_ca))
    except ValueError as error:
        raise BadSettings(str(error)) from None


def _say(line: str) -> None:
    """Write a line to the log."""
    text = f"{datetime.now().astimezone().isoformat(timespec='seconds')} {printable(line, _LONGEST)}\n"
    try:
        # Bypass Python's buffer: unwritten text would stay in it, and cause an error at exit.
        os.write(2, text.encode())
    except OSError:
        # The log's reader is gone, or the disk is full: no reason to stop serving.
        return


async def _serve_sockets(
    backend: Backend,
    passed: list[Listener],
    addresses: list[ListenAddress],
    clients: int,
    public_read: bool,
    public_own: bool,
    tls_certificate: ServerCertificate | None,
) -> None:
    tokens = Tokens.of(backend.repository)
    if not tokens.all() and not public_read:
        _say("warning: there are no tokens yet, so no client can connect: cluster-remote token create")
    # Handle signals before any socket exists, so that none is left behind.
    ending = [signal.SIGTERM, signal.SIGINT]
    # With a certificate, SIGHUP reloads it; nohup ignores it.
    if tls_certificate is None and signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        ending.append(signal.SIGHUP)
    with anyio.open_signal_receiver(*ending) as signals:
        listeners = _open(passed, addresses)
        for listener in listeners:
            _say(f"{listener.name}: serving {backend.cluster}")
        limits = Limits(clients=clients)
        gateway = Gateway(backend, tokens, backend.timeout, _say, limits, tls_certificate, public_read, public_own)
        try:
            async with anyio.create_task_group() as tasks:
                if tls_certificate is not None:
                    tasks.start_soon(_reload_on_hangup, tls_certificate)
                await gateway.run(listeners, signals)
                tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()


async def _reload_on_hangup(tls_certificate: ServerCertificate) -> None:
    with anyio.open_signal_receiver(signal.SIGHUP) as signals:
        async for _ in signals:
            try:
                tls_certificate.reload()
                _say("SIGHUP: certificate reloaded")
            except ValueError as error:
                _say(f"SIGHUP: keeping the old certificate: {error}")


def _open(passed: list[Listener], addresses: list[ListenAddress]) -> list[Listener]:
    """Open all listeners, or none."""
    listeners = [*passed]
    try:
        for address in addresses:
            listeners += listen(address)
        if not listeners:
            raise BadSettings("nothing to listen on: give --listen unix:/path, tcp://host:port or http://…, or --stdio")
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    for listener in listeners:
        if listener.in_the_clear:
            _say(
                f"warning: {listener.name} is reachable over the network, where others can read tokens and contents: "
                "put it behind ssh, a VPN or a TLS proxy, or listen on 127.0.0.1"
            )
    return listeners


def _parsed(uuid: str) -> UUID:
    try:
        return UUID(uuid)
    except ValueError as error:
        raise BadSettings(f"--uuid: {error}") from None


async def _serve_one_client(backend: Backend, wanted: UUID | None, most: int) -> None:
    def say(line: str) -> None:
        print(f"cluster-remote: {printable(line, _LONGEST)}", file=sys.stderr, flush=True)

    mode = mode_from(os.environ)
    for name in [name for name in os.environ if name.startswith("GIT_ANNEX_SHELL_")]:
        # These are for our client. git-annex-shell, which connects us to the nodes, would apply them to us.
        del os.environ[name]
    endpoint = await backend.endpoint(wanted, None, mode)
    directory, limits = backend.repository.common_dir / "cluster-remote", Limits()
    owner = owner_from(os.environ)
    async with client_slot(directory, most, owner) as slot:
        locks = StdioLocks(directory, limits.orphaned_locks, owner, endpoint.uuid, slot)
        try:
            ended = await serve_stdio(endpoint, backend.timeout, limits.to_finish, say, locks)
        finally:
            with anyio.CancelScope(shield=True):
                await backend.aclose()
    if ended.fault is not None:
        say(ended.fault)
        raise typer.Exit(FAILED)
