"""Our gateway in front of a real cluster, and git-annex's own clients of it."""

from __future__ import annotations

import contextlib
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster, Repository
from tests.support.sockets import free_port

START_SECONDS = 30.0


@dataclass
class Gateway:
    """`cluster-remote serve` of a cluster, listening on a unix socket and on TCP.

    Attributes:
        tokens: one of each mode.
        log: what it writes on standard error.
    """

    cluster: Cluster
    path: Path
    port: int
    log: Path
    process: subprocess.Popen[bytes]
    tokens: dict[Mode, str] = field(default_factory=dict)

    @property
    def unix(self) -> str:
        """The address of its unix socket."""
        return f"unix:{self.path}"

    @property
    def tcp(self) -> str:
        """Its TCP address."""
        return f"tcp://127.0.0.1:{self.port}"

    def stop(self, signum: int = signal.SIGTERM, within: float = 30.0) -> int:
        """Send a signal and return the exit code."""
        self.process.send_signal(signum)
        return self.process.wait(within)

    def connect(self) -> socket.socket:
        """Open a raw connection to the unix socket."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(START_SECONDS)
        client.connect(str(self.path))
        return client


def serve(
    gateway: Repository, *options: str | Path, stderr: int = subprocess.DEVNULL, forked: bool = True
) -> subprocess.Popen[bytes]:
    """Start `cluster-remote serve` in a gateway's repository; the caller ends it.

    Args:
        forked: whether it may share the memory of this process, which has imported it already.
    """
    start = popen_forked if forked else Environment.popen
    nothing = subprocess.DEVNULL
    return start(
        gateway.environment, "cluster-remote", "serve", *options,
        cwd=gateway.path, stdin=nothing, stdout=nothing, stderr=stderr,
    )  # fmt: skip


@contextlib.contextmanager
def gateway_of(cluster: Cluster, *options: str, name: str = "gw") -> Iterator[Gateway]:
    """Run `cluster-remote serve` with these options besides; at the end it is killed if it has not ended yet."""
    environment = cluster.gateway.environment
    path, log, port = environment.directory / name, environment.directory / f"{name}.log", free_port()
    with log.open("wb") as err:
        listen = ("--listen", f"unix:{path}", "--listen", f"tcp://127.0.0.1:{port}")
        process = serve(cluster.gateway, *listen, *options, stderr=err.fileno())
    try:
        serving = b": serving " + cluster.uuid.encode()
        wait_until(
            lambda: process.poll() is not None or log.read_bytes().count(serving) >= 2 + options.count("--listen"),
            START_SECONDS,
        )
        assert process.poll() is None, log.read_text()
        gateway = Gateway(cluster, path, port, log, process)
        tokens = Tokens(cluster.gateway.path / ".git" / "cluster-remote" / "tokens")
        gateway.tokens.update((mode, tokens.create(mode, f"test {mode.value}", own=True)[1]) for mode in Mode)
        yield gateway
    finally:
        end_group(process.pid)
        process.wait(START_SECONDS)


def native_client(gateway: Gateway, name: str = "client", *, mode: Mode = Mode.READ_WRITE) -> Repository:
    """Return a clone with the cluster as the remote `gw`, by git-annex's own P2P transport and our pipe."""
    client = gateway.cluster.clone(name)
    client.git("remote", "remove", "origin")
    add_native_remote(client, "gw", gateway.unix, gateway.cluster.uuid, gateway.tokens[mode])
    return client


def add_native_remote(client: Repository, name: str, address: str, uuid: str, token: str) -> None:
    """Add a remote of git-annex's P2P transport, and store its token where git-annex does."""
    client.git("remote", "add", name, f"p2p-annex::cluster:{address}")
    client.git("config", f"remote.{name}.annex-uuid", uuid)
    name = "".join(c if c.isalnum() else f"%{ord(c):02X}" for c in f"cluster:{address}")
    kept = client.path / ".git/annex/creds" / name
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(token)
    kept.chmod(0o600)
