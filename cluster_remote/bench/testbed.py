"""The repositories to measure: nodes, a gateway, and a client for each way to reach the cluster.

The ways are those of the table in docs/benchmark.md. In addition there is the limit: the same bytes sent directly to
each node's git-annex-shell.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cluster_remote.annex.errors import CommandFailed
from cluster_remote.annex.waiting import run_and_wait

__all__ = ["BARE", "WAYS", "BenchFailed", "Client", "Testbed"]

BARE = "git-annex-remote-benchbare"

WAYS = {
    "native-ssh": "(a) git-annex's client and gateway, over ssh",
    "native-http": "(a) git-annex's client and gateway, over HTTP",
    "remote": "(b) our remote, git-annex's gateway",
    "serverless": "(c) our remote, no server",
    "gateway": "(d) our remote, our gateway on a unix socket",
    "remote-http": "(b) our remote, git-annex's gateway over HTTP",
    "gateway-http": "(d) our remote, our gateway over HTTP",
    "client-http": "(g) git-annex's client, our gateway over HTTP",
    "plain": "(e) git-annex alone: one command for each node",
    "bare": "(f) a special remote that copies one file: git-annex's own share",
}

# Seconds for one command; slower runs are not worth measuring.
_TIMEOUT = 1800
_CLUSTER = "bench"

# Runs the command on this machine, so that no side has to encrypt. Options may come before and after the host; the rest
# is the command.
_SSH = """#!/bin/sh
host=
while [ $# -gt 0 ]; do
  case "$1" in
    -p|-o|-S|-i|-l|-F) shift 2 ;;
    -*) shift ;;
    *) if [ -z "$host" ]; then host=$1; shift; else break; fi ;;
  esac
done
exec sh -c "$*"
"""

# A slow connection: the rate in MB/s is part of the host's name and applies in both directions.
_SLOW_SSH = """#!{python}
import os, subprocess, sys, threading, time
words, plain = sys.argv[1:], []
while words:
    word = words.pop(0)
    if word in ("-p", "-o", "-S", "-i", "-l", "-F"):
        words.pop(0)
    elif not word.startswith("-") or len(plain) > 1:
        plain.append(word)
rate = float(plain[0].removeprefix("slow")) * 1e6
child = subprocess.Popen(["sh", "-c", " ".join(plain[1:])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)

def copy(source, target):
    start, passed = time.monotonic(), 0
    try:
        while data := os.read(source, 65536):
            if start + passed / rate < time.monotonic() - 0.1:
                # The connection was idle. Do not make up for that time.
                start, passed = time.monotonic(), 0
            passed += len(data)
            while data:
                data = data[os.write(target, data):]
            time.sleep(max(0.0, start + passed / rate - time.monotonic()))
    except BrokenPipeError:
        if target == 1:
            child.kill()
    if target != 1:
        child.stdin.close()

threading.Thread(target=copy, args=(0, child.stdin.fileno()), daemon=True).start()
copy(child.stdout.fileno(), 1)
sys.stdout.flush()
os._exit(child.wait())
"""


# The minimum for a special remote: it copies one file, regardless of the number of nodes.
_BARE = """#!{python}
import os
import shutil
from annexremote import Master, RemoteError, SpecialRemote

class Bare(SpecialRemote):
    def listconfigs(self):
        return {{"directory": "where the files are"}}

    def initremote(self):
        os.makedirs(self.annex.getconfig("directory"), exist_ok=True)

    def prepare(self):
        self.directory = self.annex.getconfig("directory")

    def transfer_store(self, key, file):
        self.copy(file, os.path.join(self.directory, key))

    def transfer_retrieve(self, key, file):
        self.copy(os.path.join(self.directory, key), file)

    def copy(self, source, target):
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise RemoteError(str(error))

    def checkpresent(self, key):
        return os.path.exists(os.path.join(self.directory, key))

    def remove(self, key):
        os.unlink(os.path.join(self.directory, key))

master = Master()
master.LinkRemote(Bare(master))
master.Listen()
"""

# Runs our program with a profiler.
_PROFILED = """#!/bin/sh
exec '{python}' -m cProfile -o '{directory}'/$$.profile -m cluster_remote "$@"
"""


class BenchFailed(Exception):
    """A measured command failed, so its figures would be meaningless."""


@dataclass(frozen=True)
class Client:
    """A repository and its remotes for the cluster: one, or one per node for the way `plain`."""

    path: Path
    remotes: tuple[str, ...]


@dataclass
class Testbed:
    """One cluster of `nodes` nodes below `directory`, with its own HOME and git configuration.

    `lines` are the nodes with slow connections, by number, and their rates in MB/s.

    If `profiles` is given, our special remote saves a profile of each of its processes there.
    """

    directory: Path
    nodes: int
    lines: Mapping[int, float] = field(default_factory=dict)
    profiles: Path | None = None
    _servers: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    @property
    def gateway(self) -> Path:
        return self.directory / "gateway"

    def node(self, number: int) -> Path:
        """Return the directory of a node, counted from 1."""
        return self.directory / f"node{number}"

    def environment(self) -> dict[str, str]:
        """Return an environment without the user's configuration, and with the stand-in for ssh."""
        ours = ("GIT_", "XDG_", "PYTHON")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return {
            **inherited,
            "HOME": str(self.directory / "home"),
            "GIT_CONFIG_NOSYSTEM": "1",
            # The stand-in is `ssh` on PATH, because git-annex ignores git's settings for ssh.
            "PATH": f"{self.directory / 'bin'}{os.pathsep}{inherited.get('PATH', os.defpath)}",
        }

    def run(self, where: Path, *argv: str | Path, env: dict[str, str] | None = None) -> str:
        """Run a command and return its output. Raises BenchFailed."""
        line = shlex.join(map(str, argv))
        try:
            done = run_and_wait(argv, cwd=where, env=env or self.environment(), timeout=_TIMEOUT, merged=True)
        except CommandFailed as error:
            raise BenchFailed(str(error)) from None
        output = done.stdout.decode("utf-8", "replace")
        if done.returncode:
            raise BenchFailed(f"{line} exited with code {done.returncode}: {output.strip()[-500:]}")
        return output

    def annex(self, where: Path, *argv: str | Path) -> str:
        """Run `git annex …`. Raises BenchFailed."""
        return self.run(where, "git", "annex", *argv)

    def build(self) -> None:
        """Create the nodes and the gateway."""
        (self.directory / "home").mkdir(parents=True)
        binaries = self.directory / "bin"
        binaries.mkdir()
        ssh = _SLOW_SSH.replace("{python}", sys.executable) if self.lines else _SSH
        programs = {"ssh": ssh, BARE: _BARE.format(python=sys.executable)}
        if self.profiles is not None:
            programs["git-annex-remote-cluster"] = _PROFILED.format(python=sys.executable, directory=self.profiles)
        for name, text in programs.items():
            program = binaries / name
            program.write_text(text)
            program.chmod(0o755)
        for setting in ("user.name=Bench", "user.email=bench@example.com", "init.defaultBranch=main", "gc.auto=0",
                        "annex.security.allowed-ip-addresses=all"):  # fmt: skip
            self.run(self.directory, "git", "config", "--global", *setting.split("=", 1))
        self.run(self.directory, "git", "init", "-q", self.gateway)
        self.annex(self.gateway, "init", "gateway")
        self.run(self.gateway, "git", "commit", "-q", "--allow-empty", "-m", "start")
        for number in range(1, self.nodes + 1):
            node = self.node(number)
            self.run(self.directory, "git", "clone", "-q", self.gateway, node)
            self.annex(node, "init", f"node{number}")
            line = self.lines.get(number)
            url = str(node) if line is None else f"ssh://slow{line:g}{node}"
            self.run(self.gateway, "git", "remote", "add", f"node{number}", url)
            self.run(self.gateway, "git", "fetch", "-q", f"node{number}")
        self.annex(self.gateway, "initcluster", _CLUSTER)
        for number in range(1, self.nodes + 1):
            self.run(self.gateway, "git", "config", f"remote.node{number}.annex-cluster-node", _CLUSTER)
        self.annex(self.gateway, "info", "--fast")
        self.annex(self.gateway, "updatecluster")

    @property
    def cluster_uuid(self) -> str:
        return self.run(self.gateway, "git", "config", f"annex.cluster.{_CLUSTER}").strip()

    def client(self, way: str) -> Client:
        """Create a client that reaches the cluster in one of the WAYS, and start its server if it needs one."""
        if way == "serverless":
            self._initremote(self.gateway)
            return Client(self.gateway, ("bench-remote",))
        path = self.directory / f"client-{way}"
        url = f"ssh://localhost{self.gateway}" if way == "native-ssh" else str(self.gateway)
        self.run(self.directory, "git", "clone", "-q", url, path)
        self.annex(path, "init", way)
        match way:
            case "native-ssh":
                return Client(path, (f"origin-{_CLUSTER}",))
            case "native-http" | "client-http":
                port = self._serve_natively(way) if way == "native-http" else self._serve_http(way)
                self.run(path, "git", "config", "remote.origin.annexUrl", _annex_url(port))
                self.annex(path, "info", "--fast")
                return Client(path, (f"origin-{_CLUSTER}",))
            case "plain":
                names = tuple(f"node{number}" for number in range(1, self.nodes + 1))
                for number, name in enumerate(names, 1):
                    self.run(path, "git", "remote", "add", name, str(self.node(number)))
                self.annex(path, "info", "--fast")
                return Client(path, names)
            case "bare":
                self.init_bare(path, "bench-remote")
            case "remote":
                self._initremote(path, f"url={self.gateway}")
            case "gateway":
                self.serve()
                self._initremote(path, f"url=unix:{self.directory}/gateway.sock", token=self.token())
            case "remote-http":
                self._initremote(path, f"url={_annex_url(self._serve_natively(way))}")
            case "gateway-http":
                self._initremote(path, f"url={_annex_url(self._serve_http(way))}", token=self.token())
            case _:
                raise ValueError(f"there is no way {way!r}")
        return Client(path, ("bench-remote",))

    def init_bare(self, path: Path, name: str) -> None:
        """Create the special remote that only copies one file in a repository."""
        self.annex(
            path, "initremote", name, "type=external", f"externaltype={BARE.removeprefix('git-annex-remote-')}",
            "encryption=none", f"directory={self.directory / 'bare'}",
        )  # fmt: skip

    def _initremote(self, path: Path, *parameters: str, token: str = "") -> None:
        environment = self.environment()
        if token:
            environment["CLUSTER_REMOTE_TOKEN"] = token
        self.run(
            path, "git", "annex", "initremote", "bench-remote", f"--sameas={self.cluster_uuid}", "--private",
            "type=external", "externaltype=cluster", "encryption=none", *parameters, env=environment,
        )  # fmt: skip

    def _start(self, way: str, *argv: str | Path) -> None:
        server = subprocess.Popen(
            argv, cwd=self.gateway, env=self.environment(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self._servers.append((way, server))

    def _serve_natively(self, way: str) -> int:
        port = _free_port()
        self._start(way, "git", "annex", "p2phttp", "-J8", "--wideopen", "--bind", "127.0.0.1", "--port", str(port))
        _wait_for(lambda: _listens(("127.0.0.1", port)), "git annex p2phttp")
        return port

    def _serve_http(self, way: str) -> int:
        """Have `cluster-remote serve` listen over HTTP, and let git know the password."""
        port = _free_port()
        self._serve(way, f"http://localhost:{port}", ("127.0.0.1", port))
        login = f"echo username=bench; echo password={self.token()}"
        self.run(self.gateway, "git", "config", "--global", "credential.helper", f"!f() {{ {login}; }}; f")
        return port

    def token(self) -> str:
        """Create a token for `cluster-remote serve`."""
        return self.run(self.gateway, "cluster-remote", "token", "create").strip().split()[-1]

    def serve(self) -> None:
        """Start `cluster-remote serve`, listening on gateway.sock."""
        path = str(self.directory / "gateway.sock")
        self._serve("gateway", f"unix:{path}", path)

    def _serve(self, way: str, listen: str, address: str | tuple[str, int]) -> None:
        self._start(way, "cluster-remote", "serve", "--cluster", _CLUSTER, "--listen", listen)
        _wait_for(lambda: _listens(address), "cluster-remote serve")

    def server_pids(self, way: str) -> list[int]:
        """Return the PIDs of the server processes for one of the ways."""
        return [server.pid for name, server in self._servers if name == way]

    def forget(self, keys: Sequence[str]) -> None:
        """Delete contents from all repositories, so that the disk does not fill up."""
        gone = frozenset(keys)
        for repository in self.directory.iterdir():
            objects = repository / ".git" / "annex" / "objects"
            if objects.is_dir():
                for folder in [folder for folder in objects.glob("*/*/*") if folder.name in gone]:
                    folder.chmod(0o700)
                    shutil.rmtree(folder)
        for key in keys:
            (self.directory / "bare" / key).unlink(missing_ok=True)

    def close(self) -> None:
        """Stop the servers and delete everything."""
        for _way, server in self._servers:
            os.killpg(server.pid, signal.SIGTERM)
        for _way, server in self._servers:
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait(15)
        for folder, _folders, _files in os.walk(self.directory):
            Path(folder).chmod(0o700)
        shutil.rmtree(self.directory)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port


def _annex_url(port: int) -> str:
    return f"annex+http://localhost:{port}/git-annex/"


def _listens(address: str | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
    with socket.socket(family) as connection:
        return connection.connect_ex(address) == 0


def _wait_for(condition: object, what: str, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise BenchFailed(f"{what} did not start within {seconds:.0f} seconds")
        time.sleep(0.05)
