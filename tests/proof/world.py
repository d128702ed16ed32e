"""A real cluster of three nodes, two clients of it, and what is true of them, read without asking any program of ours.

There are three ways to a cluster: `serverless`, where the nodes are remotes of the client; `served`, through
`cluster-remote serve` on a unix socket; and `native`, through git-annex's own gateway in a directory.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.remote.testbed import initremote
from tests.support.environment import Environment, remove_tree, temporary_environment
from tests.support.processes import Process, descendants, end_group, kill, wait_until
from tests.support.repositories import Cluster, Repository, make_cluster

WAYS = ("serverless", "served", "native")
REMOTE = "mycl"
TIMEOUT = 3
"""Seconds without progress after which a client times out."""

SIZES = (0, 1, 300, 40_000, 1_500_000, 5_000_000)
"""Of the contents with a checksum, in bytes; one more has none."""

# A node beside which lies a file with .slow at the end of its name takes so many bytes a second.
_SHELL = """\
#!/bin/sh
if [ "$1" = p2pstdio ] && [ -e "$2.slow" ]; then
    {python} -S -E {throttle} 4000000 | {real} "$@"
else
    exec {real} "$@"
fi
"""
_THROTTLE = """\
import os, signal, sys, time
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
rate, sent, begun = float(sys.argv[1]), 0, time.monotonic()
while data := os.read(0, 65536):
    while data:
        count = os.write(1, data)
        data, sent = data[count:], sent + count
    time.sleep(max(0, sent / rate - (time.monotonic() - begun)))
"""


@dataclass(frozen=True)
class Place:
    """A repository that can hold copies; its directory may be unplugged."""

    name: str
    uuid: str
    repository: Repository

    @property
    def elsewhere(self) -> Path:
        """The path of the directory while the node is unplugged."""
        return self.repository.path.with_name(f"{self.name}-away")

    @property
    def away(self) -> bool:
        """Whether the node is unplugged."""
        return self.elsewhere.exists()

    @property
    def annex(self) -> Path:
        """Its .git/annex, wherever it is now."""
        return (self.elsewhere if self.away else self.repository.path) / ".git" / "annex"


@dataclass(frozen=True)
class Look:
    """The state at one moment.

    Attributes:
        whole: the copies that are as they should be, as UUID and key.
        damaged: those that are not.
        lines: what the logs say: (whose log, UUID, key).
    """

    whole: frozenset[tuple[str, str]]
    damaged: frozenset[tuple[str, str]]
    lines: frozenset[tuple[str, str, str]]

    @property
    def objects(self) -> frozenset[tuple[str, str]]:
        """All copies, whole or not."""
        return self.whole | self.damaged


@dataclass
class World:
    """A cluster, its clients, and the keys that are stored in it.

    Attributes:
        way: one of WAYS.
        clients: two repositories; the first is the gateway itself where there is no server.
        nodes: the three, in order.
        gateway: has the cluster configured.
        places: by UUID: nodes, clients and the gateway.
        remotes: the names of remotes that both clients have, with the UUIDs of the nodes behind each.
        keys: those that every step may name, largest last, and the one without a checksum.
        descriptions: of the places, by UUID.
        contents: of every key that there has been.
        garbage: contents of keys without a checksum that were damaged on a node: git-annex cannot tell.
    """

    environment: Environment
    way: str
    clients: list[Place]
    nodes: list[Place]
    gateway: Place
    places: dict[str, Place]
    remotes: dict[str, frozenset[str]]
    keys: list[str]
    contents: dict[str, bytes]
    descriptions: dict[str, str]
    garbage: dict[str, set[bytes]] = field(default_factory=dict)
    _serve: subprocess.Popen[bytes] | None = None
    _seen: dict[Path, tuple[tuple[int, int, int], bool]] = field(default_factory=dict)

    @property
    def observers(self) -> list[Place]:
        """The repositories whose location logs are read."""
        return self.clients if self.gateway in self.clients else [*self.clients, self.gateway]

    # Keeping it going

    def start(self) -> None:
        """Start whatever clients need to reach the cluster."""
        if self.way == "served":
            self._serve = serve(self.gateway.repository)

    def stop(self) -> None:
        """Stop it again."""
        if self._serve is not None:
            end_group(self._serve.pid)
            self._serve.wait(30)
            self._serve = None

    def restart_if_killed(self) -> bool:
        """Restart the gateway if it has ended; return whether it had."""
        if self._serve is None or self._serve.poll() is None:
            return False
        end_group(self._serve.pid)
        self.start()
        return True

    def words_of_gateway(self) -> str:
        """Return what the gateway has logged since its start."""
        log = self.environment.directory / "serve.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def serving(self) -> int | None:
        """The process id of the gateway."""
        return None if self._serve is None else self._serve.pid

    def busy(self) -> list[Process]:
        """The processes that are there besides the idle gateway and those by which it reads and writes its logs."""
        found = self.environment.processes()
        gateway = self.serving()
        if gateway is None:
            return found
        kept = {gateway} | {process.pid for process in descendants(gateway) if "p2pstdio" not in process.command}
        return [process for process in found if process.pid not in kept]

    # Truth

    def is_whole(self, key: str, data: bytes) -> bool:
        """Return whether these bytes are the content of a key."""
        if key in self.contents:
            return data == self.contents[key]
        return hashlib.sha256(data).hexdigest() in key

    def object_file(self, place: Place, key: str) -> Path | None:
        """Return the path of a key's content in a place; None if it has none."""
        return next((path for path in (place.annex / "objects").glob(f"*/*/{key}/{key}")), None)

    def look(self) -> Look:
        """Return the current state; unchanged files are not read again."""
        whole: set[tuple[str, str]] = set()
        damaged: set[tuple[str, str]] = set()
        for place in self.places.values():
            for path in (place.annex / "objects").glob("*/*/*/*"):
                if path.name == path.parent.name:
                    (whole if self._good(path) else damaged).add((place.uuid, path.name))
        lines = {
            (observer.uuid, uuid, key)
            for observer in self.observers
            for key, uuids in self._logged(observer).items()
            for uuid in uuids & self.places.keys()
        }
        return Look(frozenset(whole), frozenset(damaged), frozenset(lines))

    def _good(self, path: Path) -> bool:
        status = path.stat()
        mark = (status.st_ino, status.st_mtime_ns, status.st_size)
        seen = self._seen.get(path)
        if seen is None or seen[0] != mark:
            seen = self._seen[path] = (mark, self.is_whole(path.name, path.read_bytes()))
        return seen[1]

    def _logged(self, observer: Place) -> dict[str, set[str]]:
        """Return a repository's location log of each key, from its branch and its journals."""
        paths = {key: _log_path(key) for key in self.contents}
        asked = "".join(f"git-annex:{path}\n" for path in paths.values()).encode()
        answer = self.environment.run("git", "cat-file", "--batch", cwd=observer.repository.path, input=asked).stdout
        found: dict[str, set[str]] = {}
        for key, path in paths.items():
            head, _, answer = answer.partition(b"\n")
            text = ""
            if not head.endswith(b" missing"):
                size = int(head.split()[-1])
                text, answer = os.fsdecode(answer[:size]), answer[size + 1 :]
            name = path.replace("_", "__").replace("/", "_")
            for journal, instead in (("journal", True), ("journal-private", False)):
                with contextlib.suppress(FileNotFoundError):
                    more = (observer.annex / journal / name).read_text("utf-8", "surrogateescape")
                    text = more if instead else text + more
            newest: dict[str, tuple[Decimal, str]] = {}
            for line in text.splitlines():
                stamp, status, uuid = line.split(" ")
                entry = (Decimal(stamp.removesuffix("s")), status)
                newest[uuid] = max(newest.get(uuid, entry), entry)
            found[key] = {uuid for uuid, (_, status) in newest.items() if status == "1"}
        return found


def serve(gateway: Repository) -> subprocess.Popen[bytes]:
    """Run `cluster-remote serve` on a unix socket."""
    environment = gateway.environment
    socket, log = environment.directory / "gw", environment.directory / "serve.log"
    socket.unlink(missing_ok=True)
    with log.open("wb") as err:
        process = environment.popen(
            *("cluster-remote", "serve", "--listen", f"unix:{socket}"),
            cwd=gateway.path,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=err.fileno(),
        )
    assert wait_until(lambda: b": serving " in log.read_bytes(), 30), log.read_text()
    return process


@functools.cache
def _log_path(key: str) -> str:
    digest = hashlib.md5(key.encode()).hexdigest()
    return f"{digest[:3]}/{digest[3:6]}/{key}.log"


def content(size: int, seed: object) -> bytes:
    """Bytes in which no part is like another."""
    return random.Random(f"{seed}").randbytes(size)


@contextlib.contextmanager
def worlds(way: str, mutation: str = "") -> Iterator[Iterator[World]]:
    """Yield one world after another, each in the initial state.

    `mutation` is the name of a fault that the program is given, see mutants.py.
    """
    with temporary_environment(20) as environment:
        if mutation:
            mutate(environment, mutation)
        made = _build(environment, way)
        saved = environment.directory.with_name(environment.directory.name + "-saved")
        environment.run("cp", "-a", environment.directory, saved)
        try:
            yield _restored(made, saved)
        finally:
            made.stop()
            kill(environment.processes())
            remove_tree(saved)


def _restored(made: World, saved: Path) -> Iterator[World]:
    environment, contents = made.environment, dict(made.contents)
    while True:
        made.contents, made.garbage = dict(contents), {}
        made._seen.clear()
        made.start()
        yield made
        made.stop()
        kill(environment.processes())
        for path in environment.directory.iterdir():
            if path.is_dir() and not path.is_symlink():
                remove_tree(path)
            else:
                path.unlink()
        environment.run("cp", "-a", f"{saved}/.", environment.directory, cwd=saved)


def mutate(environment: Environment, mutation: str) -> None:
    """Give the programs of an environment a fault."""
    for name in ("git-annex-remote-cluster", "cluster-remote"):
        environment.program(
            name,
            f"#!{sys.executable}\nimport sys\nsys.path.insert(0, {str(Path(__file__).parents[2])!r})\n"
            f"from tests.proof.mutants import start\nstart({mutation!r}, {name!r})\n",
        )


def _build(environment: Environment, way: str) -> World:
    throttle = environment.directory / "throttle.py"
    throttle.write_text(_THROTTLE)
    environment.program(
        "git-annex-shell",
        _SHELL.format(python=sys.executable, throttle=throttle, real=environment.which("git-annex-shell")),
    )
    cluster = make_cluster(environment, environment.directory)
    gateway = cluster.gateway
    contents: dict[str, bytes] = {}
    for number, size in enumerate(SIZES):
        data = content(size, f"file {number}")
        contents[gateway.add(f"f{number}", data)] = data
    data = content(300_000, "no checksum")
    os.utime(gateway.write("worm", data), (1, 1))
    gateway.annex("add", "--quiet", "--backend=WORM", "worm")
    contents[gateway.key("worm")] = data
    keys = list(contents)
    gateway.git("commit", "-q", "-m", "files")
    if way != "serverless":
        gateway.annex("drop", "--quiet", "--force", ".")
    clients = [gateway] if way == "serverless" else [cluster.clone("alice")]
    clients.append(cluster.clone("bob"))
    for client in clients:
        _connect(cluster, client, way)
        client.git("config", "annex.thin", "true")
        if client is not gateway:
            client.git("config", "remote.origin.annex-ignore", "true")
    for key in keys:
        for client in clients:
            if client is not gateway:
                client.set_key(key, contents[key])
    named = dict(zip(("alice", "bob"), clients, strict=True)) | {"gateway": gateway}
    named |= {node.path.name: node for node in cluster.nodes}
    places = {
        repository.uuid: Place(repository.path.name, repository.uuid, repository) for repository in named.values()
    }
    remotes = {REMOTE: frozenset(node.uuid for node in cluster.nodes)}
    remotes |= {f"node{number}": frozenset({node.uuid}) for number, node in enumerate(cluster.nodes, 1)}
    return World(
        environment,
        way,
        clients=[places[client.uuid] for client in clients],
        nodes=[places[node.uuid] for node in cluster.nodes],
        gateway=places[gateway.uuid],
        places=places,
        remotes=remotes,
        keys=keys,
        contents=contents,
        descriptions=gateway.descriptions(),
    )


def _connect(cluster: Cluster, client: Repository, way: str) -> None:
    """Give a client the remotes."""
    environment = client.environment
    options, variables = [f"timeout={TIMEOUT}"], {}
    if way == "serverless":
        for number, node in enumerate(cluster.nodes, 1):
            if client is not cluster.gateway:
                client.git("remote", "add", f"node{number}", node.path)
                client.git("config", f"remote.node{number}.annex-cluster-node", cluster.name)
            client.git("config", f"remote.node{number}.annex-uuid", node.uuid)
        client.git("config", f"annex.cluster.{cluster.name}", cluster.uuid)
        initremote(client, REMOTE, *options, sameas=cluster.uuid)
        return
    with contextlib.ExitStack() as stack:
        if way == "served":
            token = Tokens(cluster.gateway.path / ".git/cluster-remote/tokens").create(Mode.READ_WRITE, "proof")[1]
            served = stack.enter_context(serve(cluster.gateway))
            stack.callback(end_group, served.pid)
            variables = {"CLUSTER_REMOTE_TOKEN": token}
            options.append(f"url=unix:{environment.directory / 'gw'}")
        else:
            options.append(f"url={cluster.gateway.path}")
        initremote(client, REMOTE, *options, sameas=cluster.uuid, env=variables)
        for number, node in enumerate(cluster.nodes, 1):
            behind = f"?node={node.uuid}" if way == "served" else ""
            initremote(
                client, f"node{number}", f"{options[0]}", f"{options[1]}{behind}", sameas=node.uuid, env=variables
            )
            client.git("config", f"remote.node{number}.annex-cost", "110")
            client.git("config", f"remote.node{number}.annex-sync", "false")
