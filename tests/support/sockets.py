"""Sockets that lead to real repositories."""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

from .processes import descendants, end_group, wait_until
from .repositories import Repository

NETWORK = "tests"
"""The P2P network that `serve_p2p` pretends to be."""

START_SECONDS = 20.0
CHUNK = 256 * 1024

# git-annex asks for an address with the one argument "address", and to forward the network to a unix socket with
# two. Nothing is forwarded: tests connect to the socket itself, so they only have to be told where it is. The
# sleep is bounded so that a test run which was killed leaves nothing for ever.
LISTENER = """\
#!/bin/sh
if [ "$1" = address ]; then echo here; exit; fi
printf '%s/%s' "$PWD" "$2" > "$HOME/p2p-socket.new"
mv "$HOME/p2p-socket.new" "$HOME/p2p-socket"
exec sleep 900
"""


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is currently free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextlib.contextmanager
def serve_p2p(repository: Repository) -> Iterator[tuple[Path, str]]:
    """Serve a repository by `git annex remotedaemon` on a unix socket: the socket's path, and a token for AUTH.

    The daemon is gone at the end, and the socket with it.

    Raises:
        AssertionError: the daemon ended at once, or did not listen within `START_SECONDS`.
    """
    environment = repository.environment
    environment.program(f"git-annex-p2p-{NETWORK}", LISTENER)
    repository.annex("p2p", "--enable", NETWORK)
    printed = repository.annex("p2p", "--gen-addresses").stdout.decode().split()
    token = next(word.rpartition(":")[2] for word in printed if word.startswith(f"p2p-annex::{NETWORK}:"))
    note = environment.home / "p2p-socket"
    note.unlink(missing_ok=True)
    # In the foreground it ends when its input does, so its input is a pipe that stays open.
    daemon = environment.popen(
        "git-annex", "remotedaemon", "--foreground", cwd=repository.path, stdout=subprocess.DEVNULL
    )
    path: Path | None = None
    try:
        listening = wait_until(
            lambda: daemon.poll() is not None or (note.exists() and accepts(Path(note.read_text()))),
            START_SECONDS,
        )
        assert listening, "git annex remotedaemon does not listen"
        assert daemon.poll() is None, f"git annex remotedaemon exited with {daemon.returncode}"
        path = Path(note.read_text())
        yield path, token
    finally:
        begotten = descendants(daemon.pid)
        end_group(daemon.pid)
        assert daemon.stdin is not None
        daemon.stdin.close()
        daemon.wait(START_SECONDS)
        if path is not None:
            path.unlink(missing_ok=True)
        pids = {process.pid for process in begotten}
        gone = wait_until(lambda: not pids & {process.pid for process in environment.processes()})
        assert gone, f"of git annex remotedaemon are left: {begotten}"


def accepts(path: Path) -> bool:
    """Return whether a unix socket accepts connections."""
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
        return True


@contextlib.contextmanager
def tcp_bridge(unix_path: Path) -> Iterator[tuple[str, int]]:
    """Forward connections to a TCP port on the loopback interface to a unix socket: host and port.

    Half-closed connections stay half-closed, as the P2P protocol's CONNECT needs it. All are cut at the end.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        waker, woken = socket.socketpair()
        ending = threading.Event()
        threads: list[threading.Thread] = []
        pairs: list[tuple[socket.socket, socket.socket]] = []

        def accept() -> None:
            with selectors.DefaultSelector() as selector:
                selector.register(listener, selectors.EVENT_READ)
                selector.register(woken, selectors.EVENT_READ)
                while not ending.is_set():
                    if listener not in [key.fileobj for key, _ in selector.select()]:
                        continue
                    near, _ = listener.accept()
                    near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    far = socket.socket(socket.AF_UNIX)
                    pairs.append((near, far))
                    try:
                        far.connect(str(unix_path))
                    except OSError:
                        near.close()  # as a forwarder does that finds nobody behind it
                        continue
                    for source, target in ((near, far), (far, near)):
                        pump = threading.Thread(target=_pump, args=(source, target), name="bridge")
                        threads.append(pump)
                        pump.start()

        acceptor = threading.Thread(target=accept, name="bridge")
        acceptor.start()
        try:
            host, port = listener.getsockname()
            yield host, port
        finally:
            ending.set()
            waker.close()
            acceptor.join(START_SECONDS)
            for one in (end for pair in pairs for end in pair):
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join(START_SECONDS)
            for one in (end for pair in pairs for end in pair):
                one.close()
            woken.close()
            assert not any(thread.is_alive() for thread in (acceptor, *threads)), "a bridge did not end"


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends, then half-close the target; a lost connection on either side closes the other."""
    try:
        while chunk := source.recv(CHUNK):
            target.sendall(chunk)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        for one in (source, target):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def serve_p2phttp(repository: Repository, *options: str, env: dict[str, str] | None = None) -> Iterator[int]:
    """Serve a repository, its cluster and its nodes by `git annex p2phttp` on 127.0.0.1: the port.

    `options` come in place of `--wideopen`. The server is gone at the end.

    Raises:
        AssertionError: the server ended at once, or did not listen within `START_SECONDS`.
    """
    port = free_port()
    server = repository.environment.popen(
        "git-annex", "p2phttp", "-J4", "--bind=127.0.0.1", f"--port={port}", *(options or ("--wideopen",)),
        cwd=repository.path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=env,
    )  # fmt: skip
    try:
        assert wait_until(lambda: server.poll() is not None or accepts_tcp(port), START_SECONDS), "p2phttp is silent"
        assert server.poll() is None, f"git annex p2phttp exited with {server.returncode}"
        yield port
    finally:
        end_group(server.pid)
        assert server.stdin is not None
        server.stdin.close()
        server.wait(START_SECONDS)


def accepts_tcp(port: int) -> bool:
    """Return whether a TCP port of 127.0.0.1 accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
