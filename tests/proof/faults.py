"""`make faults`: each request, broken at each place, by each party; the tables go into docs/reliability.md.

The faulty party acts out a script; everybody else is real. A gateway fails in front of git-annex with our special
remote; a node fails among the three of a cluster without a server, behind `cluster-remote serve` and behind git-annex's
own gateway; a client fails in front of `cluster-remote serve` with three nodes. A script goes well up to a place, and
then the fault comes. What a cell says is what is true afterwards, read from objects and logs; a cell that is no
truthful outcome begins with FAULT.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import random
import re
import socket
import struct
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import serve
from tests.remote.testbed import initremote
from tests.support.environment import Environment, temporary_environment
from tests.support.peers import Close, Drain, Expect, Read, Reset, ScriptedPeer, Send, Stall, Step, opening
from tests.support.processes import end_group, wait_until
from tests.support.repositories import Cluster, Repository, make_cluster
from tests.support.sockets import free_port

SIZE = 300_000
TIMEOUT = 1
DEADLINE = 20.0
"""Seconds after which a command counts as hung; several deadlines of a second may add up."""
SECRET = "Sesame4711open"
STRANGER = "12345678-1234-4234-8234-123456789abc"

FAULTS: dict[str, list[Step]] = {
    "closes": [Close()],
    "resets": [Reset()],
    "stalls": [Stall()],
    "sends garbage": [Send(b"\x00\xff{}\n"), Drain()],
    "sends an endless line": [Send(b"x" * 70_000), Drain()],
    "says something else": [Send(b"CHANGED refs/heads/main\n"), Drain()],
}
REQUESTS = ("CHECKPRESENT", "PUT", "GET", "REMOVE")
NODES = {"node": "serverless", "node behind serve": "served", "node behind git-annex": "native"}
"""A faulty node, by the way that leads to it."""
PARTIES = ("gateway", *NODES, "client")


_WORD = re.compile(rb"\A(?:ERROR|AUTH-FAILURE|SUCCESS|SUCCESS-PLUS|FAILURE|FAILURE-PLUS|VALID|INVALID|DATA)(?=[ \n])")
"""The answers listed in the table."""


@dataclass(frozen=True)
class Content:
    """A content and its key."""

    key: str
    data: bytes


@dataclass(frozen=True)
class Cell:
    """The outcome of a request."""

    party: str
    request: str
    place: str
    fault: str
    outcome: str
    seconds: float

    @property
    def name(self) -> str:
        """The name of the cell."""
        return f"{self.party}, {self.request}, {self.place}, {self.fault}"


def new_content(name: str) -> Content:
    """Return a content that no other cell has."""
    data = random.Random(name).randbytes(SIZE)
    return Content(f"SHA256-s{SIZE}--{hashlib.sha256(data).hexdigest()}", data)


def _line(pattern: bytes) -> Expect:
    return Expect(re.compile(pattern))


def conversations(content: Content) -> dict[str, dict[str, list[Step]]]:
    """For each request and each place in it, what a server does before."""
    data, half = content.data, SIZE // 2
    put: list[Step] = [_line(b"PUT .*"), Send(b"PUT-FROM 0\n"), Expect(b"DATA %d" % SIZE)]
    get: list[Step] = [_line(b"GET .*")]
    announced = b"DATA %d\n" % SIZE
    return {
        "CHECKPRESENT": {"before the answer": [_line(b"CHECKPRESENT .*")]},
        "PUT": {
            "before PUT-FROM": put[:1],
            "inside DATA": [*put, Read(half)],
            "before the outcome": [*put, Read(SIZE), Expect(b"VALID")],
        },
        "GET": {
            "before DATA": get,
            "inside DATA": [*get, Send(announced + data[:half])],
            "before VALID": [*get, Send(announced + data)],
        },
        "REMOVE": {"before the answer": [_line(b"REMOVE .*")]},
    }


def lies(content: Content, names: bytes) -> dict[str, dict[str, list[Step]]]:
    """For each request, what a server may answer that is wrong, or no success; `names` are the UUIDs it should name."""
    data = content.data
    wrong = bytes(SIZE)
    received: list[Step] = [
        _line(b"PUT .*"),
        Send(b"PUT-FROM 0\n"),
        Expect(b"DATA %d" % SIZE),
        Read(SIZE),
        Expect(b"VALID"),
    ]
    get, put, remove = _line(b"GET .*"), _line(b"PUT .*"), _line(b"REMOVE .*")
    stranger = STRANGER.encode()
    return {
        "CHECKPRESENT": {
            "ERROR": [_line(b"CHECKPRESENT .*"), Send(b"ERROR not today\n"), Drain()],
            "FAILURE": [_line(b"CHECKPRESENT .*"), Send(b"FAILURE\n"), Drain()],
        },
        "PUT": {
            "PUT-FROM beyond the end": [put, Send(b"PUT-FROM %d\n" % (SIZE + 1)), Drain()],
            "PUT-FROM -1": [put, Send(b"PUT-FROM -1\n"), Drain()],
            "ERROR": [put, Send(b"ERROR disk full\n"), Drain()],
            "FAILURE after the content": [*received, Send(b"FAILURE\n"), Drain()],
            "SUCCESS-PLUS with a stranger's UUID": [*received, Send(b"SUCCESS-PLUS %b\n" % stranger), Drain()],
            "ALREADY-HAVE-PLUS with a stranger's UUID": [put, Send(b"ALREADY-HAVE-PLUS %b\n" % stranger), Drain()],
            "SUCCESS-PLUS with words that are no UUIDs": [*received, Send(b"SUCCESS-PLUS here there\n"), Drain()],
        },
        "GET": {
            "ERROR": [get, Send(b"ERROR not yours\n"), Drain()],
            "DATA 0 and INVALID": [get, Send(b"DATA 0\nINVALID\n"), Drain()],
            "more than there is": [get, Send(b"DATA %d\n" % (SIZE + 5) + data + b"more!VALID\n"), Drain()],
            "less than there is, and VALID": [get, Send(b"DATA %d\n" % (SIZE - 5) + data[:-5] + b"VALID\n"), Drain()],
            "other bytes, and VALID": [get, Send(b"DATA %d\n" % SIZE + wrong + b"VALID\n"), Drain()],
            "the right bytes, and INVALID": [get, Send(b"DATA %d\n" % SIZE + data + b"INVALID\n"), Drain()],
            "DATA with a number of 30 digits": [get, Send(b"DATA " + b"9" * 30 + b"\n"), Drain()],
        },
        "REMOVE": {
            "ERROR": [remove, Send(b"ERROR it is locked\n"), Drain()],
            "FAILURE": [remove, Send(b"FAILURE\n"), Drain()],
            "SUCCESS-PLUS with a stranger's UUID": [remove, Send(b"SUCCESS-PLUS %b %b\n" % (names, stranger)), Drain()],
        },
    }


COMMANDS: dict[str, Sequence[str]] = {
    "CHECKPRESENT": ["checkpresentkey", "KEY", "REMOTE"],
    "PUT": ["copy", "--json", "--json-error-messages", "--fast", "--key", "KEY", "--to", "REMOTE"],
    "GET": ["get", "--json", "--json-error-messages", "--key", "KEY", "--from", "REMOTE"],
    "REMOVE": ["drop", "--json", "--json-error-messages", "--force", "--key", "KEY", "--from", "REMOTE"],
}


class Stage:
    """A place where one party can be faulty in front of git-annex with our special remote."""

    party: str
    remote: str
    client: Repository
    cluster: Cluster

    def plus(self) -> bytes:
        """The UUIDs an honest party would name in a -PLUS answer."""
        raise NotImplementedError

    def prepare(self, request: str, content: Content) -> None:
        """Prepare the request."""
        raise NotImplementedError

    def peer(self, script: Sequence[Step]) -> contextlib.AbstractContextManager[object]:
        """Run the faulty party, which authenticates everybody and then follows the script once."""
        raise NotImplementedError

    def describe(self, request: str, content: Content, before: set[str]) -> tuple[str, list[str]]:
        """Describe the present state in words, and what is wrong in the log."""
        raise NotImplementedError

    def idle(self) -> bool:
        """Return whether nothing is running any more."""
        return not self.client.environment.processes()

    def close(self) -> None:
        """Stop what was started."""

    def run(self, request: str, place: str, fault: str, script: Callable[[Content], Sequence[Step]]) -> Cell:
        """Make the request and return its outcome."""
        name = f"{self.party} {request} {place} {fault}"
        content = new_content(name)
        self.prepare(request, content)
        before = self.client.locations(content.key)
        argv = [{"KEY": content.key, "REMOTE": self.remote}.get(word, word) for word in COMMANDS[request]]
        begun = time.monotonic()
        with self.peer(script(content)):
            try:
                done = self.client.environment.run(
                    "git-annex", *argv, cwd=self.client.path, check=False, timeout=DEADLINE
                )
            except AssertionError:
                return Cell(self.party, request, place, fault, "FAULT: it hangs", DEADLINE)
            seconds = time.monotonic() - begun
            idle = wait_until(self.idle, 5)
        words = os.fsdecode(done.stdout + done.stderr)
        success, said = _said(request, done.returncode, words)
        faults = [word for word in ("Traceback", "internal error", SECRET) if word in words]
        if not idle:
            faults.append("something is left running")
        absent = request == "CHECKPRESENT" and done.returncode == 1
        if not success and not said and not absent:
            faults.append("no words")
        state, untrue = self.describe(request, content, before)
        faults += untrue
        if request == "GET" and success and self.client.object_bytes(content.key) != content.data:
            faults.append("wrong bytes")
        outcome = f"{_verdict(request, success, done.returncode)}{state}"
        if faults:
            outcome = f"FAULT ({', '.join(faults)}): {outcome}; {said[:300]}"
        return Cell(self.party, request, place, fault, outcome, seconds)


def _said(request: str, code: int, words: str) -> tuple[bool, str]:
    """Return whether git-annex reports success, and its reason if not."""
    if request == "CHECKPRESENT":
        return code == 0, words.strip()
    success, said = False, ""
    for line in words.splitlines():
        with contextlib.suppress(ValueError):
            found = json.loads(line)
            if "success" in found:
                success = found["success"]
                said = "; ".join([*found.get("error-messages", []), found.get("note", "")])
    return success, said


def _verdict(request: str, success: bool, code: int) -> str:
    if request == "CHECKPRESENT":
        return {0: "present", 1: "absent"}.get(code, "unknown, an error")
    return "succeeds" if success else "fails"


class FaultyGateway(Stage):
    """A gateway on a TCP port; the client has no other remote."""

    party = "gateway"
    remote = "odd"

    def __init__(self, environment: Environment) -> None:
        self.cluster = make_cluster(environment, environment.directory)
        self.client = self.cluster.clone()
        self._port = free_port()
        with ScriptedPeer(opening(self.cluster.uuid, token=SECRET), tcp=True, port=self._port):
            initremote(
                self.client,
                self.remote,
                f"url=tcp://127.0.0.1:{self._port}",
                f"timeout={TIMEOUT}",
                sameas=self.cluster.uuid,
                env={"CLUSTER_REMOTE_TOKEN": SECRET},
            )

    def plus(self) -> bytes:
        return " ".join(node.uuid for node in self.cluster.nodes).encode()

    def prepare(self, request: str, content: Content) -> None:
        if request == "PUT":
            self.client.set_key(content.key, content.data)
            return
        for node in self.cluster.nodes:
            self.client.annex("setpresentkey", content.key, node.uuid, "1")

    @contextlib.contextmanager
    def peer(self, script: Sequence[Step]) -> Iterator[object]:
        whole = [*opening(self.cluster.uuid, token=SECRET), *script]
        acted = ScriptedPeer(lambda n: whole if n == 0 else [Close()], tcp=True, port=self._port)
        with _forgiving(acted) as peer:
            yield peer

    def describe(self, request: str, content: Content, before: set[str]) -> tuple[str, list[str]]:
        now = self.client.locations(content.key)
        nodes = {node.uuid for node in self.cluster.nodes}
        untrue = ["the log names what is no node"] if now - nodes - {self.client.uuid} else []
        if request == "PUT":
            return f", {len(now & nodes)} nodes recorded", untrue
        if request == "REMOVE":
            return f", {len(now & nodes)} of 3 lines stay", untrue
        if now & nodes != before & nodes:
            untrue.append("the log has changed")
        return "", untrue


class FaultyNode(Stage):
    """The second of three nodes, and the first that is asked."""

    remote = "mycl"

    def __init__(self, environment: Environment, party: str) -> None:
        self.party = party
        self._way = NODES[party]
        self.cluster = make_cluster(environment, environment.directory)
        self._faulty = self.cluster.nodes[1]
        gateway = self.cluster.gateway
        gateway.git("config", "remote.node2.annex-cost", "50")
        for number, node in enumerate(self.cluster.nodes, 1):
            gateway.git("config", f"remote.node{number}.annex-uuid", node.uuid)
        self.client = gateway if self._way == "serverless" else self.cluster.clone()
        options, variables = [f"timeout={TIMEOUT}"], {}
        if self._way == "served":
            # Of the gateway's time a node gets half.
            self._serving = Serving(gateway, 2 * TIMEOUT)
            options = [f"url={self._serving.url}", f"timeout={4 * TIMEOUT}"]
            variables = {"CLUSTER_REMOTE_TOKEN": self._serving.token}
        elif self._way == "native":
            options = [f"url={gateway.path}", f"timeout={2 * TIMEOUT}"]
        initremote(self.client, self.remote, *options, sameas=self.cluster.uuid, env=variables)
        self._path = environment.directory / "socket"
        pump = environment.directory / "pump.py"
        pump.write_text(_PUMP.format(path=str(self._path)))
        run = f"exec {sys.executable} -ISs {pump}"
        real = environment.which("git-annex-shell")
        environment.program(
            "git-annex-shell",
            f'#!/bin/sh\nif [ "$1" = p2pstdio ] && [ "$2" = {self._faulty.path} ]; then\n{run}\nfi\nexec {real} "$@"\n',
        )
        if self._way == "native":
            # git-annex itself speaks the protocol only with a node that is elsewhere.
            environment.program("ssh", f'#!/bin/sh\ncase "$*" in *p2pstdio*) {run};; esac\nexit 1\n')
            gateway.git("config", "remote.node2.url", f"ssh://elsewhere{self._faulty.path}")

    def close(self) -> None:
        """End the gateway."""
        if self._way == "served":
            self._serving.close()

    def idle(self) -> bool:
        """Return whether nothing is running."""
        found = self.client.environment.processes()
        if self._way == "served":
            found = [process for process in found if "p2pstdio" in process.command or "pump.py" in process.command]
        return not found

    def plus(self) -> bytes:
        return self._faulty.uuid.encode()

    def prepare(self, request: str, content: Content) -> None:
        if request == "PUT":
            self.client.set_key(content.key, content.data)
            return
        for node in self.cluster.nodes:
            node.set_key(content.key, content.data)
            for repository in {self.client.path: self.client, self.cluster.gateway.path: self.cluster.gateway}.values():
                repository.annex("setpresentkey", content.key, node.uuid, "1")

    @contextlib.contextmanager
    def peer(self, script: Sequence[Step]) -> Iterator[object]:
        # git-annex names itself to its nodes as a gateway not to be gone through again.
        bypass = [_line(b"BYPASS .*")] if self._way == "native" else []
        whole = [*opening(self._faulty.uuid), *bypass, *script]
        with _forgiving(ScriptedPeer(lambda n: whole if n == 0 else [Close()], unix=self._path)) as peer:
            yield peer

    def describe(self, request: str, content: Content, before: set[str]) -> tuple[str, list[str]]:
        now = self.client.locations(content.key)
        # What the faulty node has, nobody knows.
        honest = [node for node in self.cluster.nodes if node is not self._faulty]
        untrue = [
            f"the log is wrong about {node.path.name}"
            for node in honest
            if (node.uuid in now) != node.has_object(content.key)
            # Who stored what, git-annex's gateway does not say when one node fails.
            and not (self._way == "native" and request == "PUT" and node.uuid not in now)
        ]
        if self._way == "served":
            logged = self.cluster.gateway.locations(content.key)
            untrue += [
                f"the gateway's log is wrong about {node.path.name}"
                for node in honest
                if (node.uuid in logged) != node.has_object(content.key)
            ]
        if now - {node.uuid for node in self.cluster.nodes} - {self.client.uuid}:
            untrue.append("the log names what is no node")
        have = sum(node.has_object(content.key) for node in honest)
        recorded = "recorded" if self._faulty.uuid in now else "not recorded"
        line = "stays" if self._faulty.uuid in now else "goes"
        if request == "PUT":
            return f", stored on {have} of the 2 others; the faulty one {recorded}", untrue
        if request == "REMOVE":
            return f", removed from {2 - have} of the 2 others; the line of the faulty one {line}", untrue
        return "", untrue


_PUMP = """\
import os, socket, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect({path!r})

def forward():
    try:
        while chunk := os.read(0, 1 << 18):
            peer.sendall(chunk)
        peer.shutdown(socket.SHUT_WR)
    except OSError:
        pass

threading.Thread(target=forward, daemon=True).start()
try:
    while chunk := peer.recv(1 << 18):
        while chunk:
            chunk = chunk[os.write(1, chunk):]
except OSError:
    pass
os._exit(0)
"""


@contextlib.contextmanager
def _forgiving(peer: ScriptedPeer) -> Iterator[ScriptedPeer]:
    """A peer for which it is no failure that the other side gives up in the middle of its script."""
    with peer:
        yield peer
        peer.failures.clear()


class Serving:
    """`cluster-remote serve` on a unix socket and on TCP."""

    def __init__(self, gateway: Repository, timeout: float) -> None:
        path, self.log, self.port = (
            gateway.environment.directory / "gw",
            gateway.environment.directory / "serve.log",
            free_port(),
        )
        self.url = f"unix:{path}"
        self.token = Tokens(gateway.path / ".git/cluster-remote/tokens").create(Mode.READ_WRITE, "faults")[1]
        listen = ("--listen", self.url, "--listen", f"tcp://127.0.0.1:{self.port}")
        with self.log.open("wb") as err:
            self.process = serve(gateway, *listen, "--timeout", str(timeout), stderr=err.fileno())
        assert wait_until(lambda: self.log.read_bytes().count(b": serving ") == 2, 30), self.log.read_text()

    def close(self) -> None:
        """End it."""
        end_group(self.process.pid)
        self.process.communicate()

    @property
    def broken(self) -> bool:
        """Whether it has ended or had an unexpected error."""
        return self.process.poll() is not None or b"Traceback" in self.log.read_bytes()


class FaultyClient:
    """Clients of `cluster-remote serve`, with three real nodes behind it."""

    party = "client"

    def __init__(self, environment: Environment) -> None:
        self.environment = environment
        self.cluster = make_cluster(environment, environment.directory)
        self._serving = Serving(self.cluster.gateway, TIMEOUT)
        self._token = self._serving.token

    def close(self) -> None:
        """End the gateway."""
        self._serving.close()

    def _connect(self, *, tcp: bool = False) -> socket.socket:
        client = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        client.settimeout(DEADLINE)
        client.connect(("127.0.0.1", self._serving.port) if tcp else self._serving.url.removeprefix("unix:"))
        return client

    def begun(self, request: str, content: Content) -> dict[str, list[bytes | None]]:
        """Return what a client sends before each place of a request; None means waiting for a line."""
        key = content.key.encode()
        hello: list[bytes | None] = [
            b"AUTH %b %b\n" % (STRANGER.encode(), self._token.encode()),
            None,
            b"VERSION 4\n",
            None,
        ]
        match request:
            case "AUTH":
                return {"before AUTH": [], "inside AUTH": [b"AUTH " + STRANGER.encode()], "before VERSION": hello[:2]}
            case "PUT":
                put: list[bytes | None] = [*hello, b"PUT  %b\n" % key, None]
                data = b"DATA %d\n" % SIZE
                return {
                    "inside PUT": [*hello, b"PUT  " + key[:20]],
                    "before DATA": put,
                    "inside DATA": [*put, data + content.data[: SIZE // 2]],
                    "before VALID": [*put, data + content.data],
                    "before the outcome": [*put, data + content.data + b"VALID\n"],
                }
            case "GET":
                return {"inside DATA": [*hello, b"GET 0  %b\n" % key, None]}
            case _:
                return {"before the answer": [*hello, b"%b %b\n" % (request.encode(), key)]}

    def lies(self, content: Content) -> dict[str, dict[str, list[bytes | None]]]:
        """Return wrong messages of a client."""
        hello = self.begun("AUTH", content)["before VERSION"]
        put = self.begun("PUT", content)["before DATA"]
        data, wrong = content.data, bytes(SIZE)
        beyond = b"GET 999999999  %b\n" % content.key.encode()
        return {
            "AUTH": {
                "a wrong token": [b"AUTH %b wrong\n" % STRANGER.encode()],
                "VERSION -1": [*hello, b"VERSION -1\n"],
            },
            "PUT": {
                "a malformed key": [*hello, b"PUT  not/a key\n"],
                "DATA longer than the key says": [*put, b"DATA %d\n" % (SIZE + 5) + data + b"more!VALID\n"],
                "DATA shorter than the key says": [*put, b"DATA %d\n" % (SIZE - 5) + data[:-5] + b"VALID\n"],
                "other bytes, and VALID": [*put, b"DATA %d\n" % SIZE + wrong + b"VALID\n"],
                "the right bytes, and INVALID": [*put, b"DATA %d\n" % SIZE + data + b"INVALID\n"],
                "DATA-PRESENT, which it is not": [*put, b"DATA-PRESENT\n"],
            },
            "GET": {
                "an offset beyond the end": [
                    *hello,
                    b"VERSION 4\n",
                    None,
                    beyond,
                ],
            },
        }

    def run(self, request: str, place: str, fault: str, said: Sequence[bytes | None], end: str) -> Cell:
        """Send this, then commit the fault; return the gateway's reaction."""
        content = new_content(f"client {request} {place} {fault}")
        if request in ("GET", "REMOVE", "CHECKPRESENT", "LOCKCONTENT"):
            for node in self.cluster.nodes:
                node.set_key(content.key, content.data)
                self.cluster.gateway.annex("setpresentkey", content.key, node.uuid, "1")
        begun = time.monotonic()
        heard = self._act(said, end)
        faults: list[str] = []
        if heard is None:
            return Cell("client", request, place, fault, "FAULT: the gateway neither answers nor hangs up", DEADLINE)
        seconds = time.monotonic() - begun
        # What it had begun for this client comes to an end, and others are served.
        if not wait_until(self._idle, DEADLINE):
            faults.append("sessions with nodes are left")
        if not wait_until(lambda: self._log_is_true(content), 5):
            faults.append("the log says what is not so")
        holders = self.cluster.holders(content.key)
        logged = self.cluster.gateway.locations(content.key)
        recorded = sum(node.uuid in logged for node in self.cluster.nodes)
        if self._present(content) != bool(recorded):
            faults.append("the next client is told what is not so")
        if self._serving.broken:
            faults.append("the gateway broke")
        outcome = f"{heard}; {sum(holders)} of 3 nodes have it"
        if recorded != sum(holders):
            outcome += f", {recorded} recorded"
        if faults:
            outcome = f"FAULT ({', '.join(faults)}): {outcome}"
        return Cell("client", request, place, fault, outcome, seconds)

    def _act(self, said: Sequence[bytes | None], end: str) -> str | None:
        """Return the gateway's last word or that it disconnects; None if it does neither in time."""
        # Only TCP can be reset; and what a client that stalls has not read, it must not have in its buffers.
        client = self._connect(tcp=end == "resets")
        with client, client.makefile("rb") as lines:
            for each in said:
                if each is None:
                    lines.readline()
                else:
                    client.sendall(each)
            match end:
                case "closes":
                    return "nobody to tell"
                case "resets":
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    return "nobody to tell"
                case "stalls":
                    # Neither reading nor writing, for longer than the gateway waits.
                    time.sleep(3 * TIMEOUT)
                case "sends garbage":
                    client.sendall(b"\x00\xff{}\n")
                case "sends an endless line":
                    client.sendall(b"x" * 70_000)
                case "says something else":
                    client.sendall(b"CHANGED refs/heads/main\n")
            heard: list[bytes] = []
            try:
                while line := lines.readline():
                    heard += _WORD.findall(line)[:1]
                    if not end:
                        return heard[0].decode()
            except TimeoutError:
                return None
            except ConnectionResetError:
                pass
            return b", ".join([*heard, b"hangs up"]).decode()

    def _log_is_true(self, content: Content) -> bool:
        logged = self.cluster.gateway.locations(content.key)
        return all(node.has_object(content.key) for node in self.cluster.nodes if node.uuid in logged)

    def _idle(self) -> bool:
        return not any("p2pstdio" in process.command for process in self.environment.processes())

    def _present(self, content: Content) -> bool:
        with self._connect() as client, client.makefile("rb") as lines:
            hello = self.begun("AUTH", content)["before VERSION"]
            for each in [*hello, b"VERSION 4\n", None, b"CHECKPRESENT %b\n" % content.key.encode()]:
                if each is None:
                    lines.readline()
                else:
                    client.sendall(each)
            return lines.readline() == b"SUCCESS\n"


def cells(party: str, wanted: Callable[[str], bool] = lambda name: True) -> Iterator[Cell]:
    """Compute the cells of one party, optionally only those with a wanted name."""

    def named(*words: str) -> bool:
        return wanted(", ".join((party, *words)))

    with temporary_environment(20) as environment:
        if party == "client":
            stage = FaultyClient(environment)
            try:
                yield from _client_cells(stage, named)
            finally:
                stage.close()
            return
        made: Stage = FaultyGateway(environment) if party == "gateway" else FaultyNode(environment, party)
        try:
            yield from _server_cells(made, named)
        finally:
            made.close()


def _server_cells(made: Stage, named: Callable[..., bool]) -> Iterator[Cell]:
    names = made.plus()
    sample = new_content("")
    for request in REQUESTS:
        for place, fault in itertools.product(conversations(sample)[request], FAULTS):
            if request == "GET" and place == "inside DATA" and fault not in ("closes", "resets", "stalls"):
                # Whatever comes there is content.
                continue
            if fault == "resets" and made.party != "gateway":
                # A node is at the other end of a pipe, which can only close.
                continue
            if named(request, place, fault):
                yield made.run(request, place, fault, partial(_broken, request, place, fault))
        for lie in lies(sample, names)[request]:
            if named(request, "answers", lie):
                yield made.run(request, "answers", lie, partial(_false, request, lie, names))


def _broken(request: str, place: str, fault: str, content: Content) -> list[Step]:
    return [*conversations(content)[request][place], *FAULTS[fault]]


def _false(request: str, lie: str, names: bytes, content: Content) -> list[Step]:
    return lies(content, names)[request][lie]


def _client_cells(stage: FaultyClient, named: Callable[..., bool]) -> Iterator[Cell]:
    sample = new_content("")
    for request in ("AUTH", "CHECKPRESENT", "PUT", "GET", "REMOVE", "LOCKCONTENT"):
        for place in stage.begun(request, sample):
            for fault in FAULTS:
                if place in ("before VALID", "inside DATA") and request == "PUT" and fault.startswith("say"):
                    continue
                if fault == "stalls" and place in (
                    "before the answer",
                    "before the outcome",
                    "before VERSION",
                    "inside PUT",
                ):
                    # Between two requests a client may take its time.
                    continue
                if named(request, place, fault):
                    content = new_content(f"client {request} {place} {fault}")
                    yield stage.run(request, place, fault, stage.begun(request, content)[place], fault)
        for lie in stage.lies(sample).get(request, {}):
            if named(request, "says", lie):
                content = new_content(f"client {request} says {lie}")
                yield stage.run(request, "says", lie, stage.lies(content)[request][lie], "")


def document(found: Sequence[Cell]) -> str:
    """Return the tables in Markdown."""
    parts: list[str] = []
    for party in PARTIES:
        mine = [cell for cell in found if cell.party == party]
        broken = [cell for cell in mine if cell.fault in FAULTS]
        who = party.split()[0]
        parts.append(f"### The {party} breaks\n\n| request | where | the {who} | outcome |\n| --- | --- | --- | --- |")
        for request, place in dict.fromkeys((cell.request, cell.place) for cell in broken):
            row = [cell for cell in broken if (cell.request, cell.place) == (request, place)]
            for outcome in dict.fromkeys(cell.outcome for cell in row):
                how = ", ".join(cell.fault for cell in row if cell.outcome == outcome)
                parts.append(f"| {request} | {place} | {how} | {outcome} |")
        verb = "says" if party == "client" else "answers"
        parts.append(
            f"\n### The {party} says what is wrong\n\n| request | the {who} {verb} | outcome |\n| --- | --- | --- |"
        )
        parts += [f"| {cell.request} | {cell.fault} | {cell.outcome} |" for cell in mine if cell.fault not in FAULTS]
        parts.append("")
    return "\n".join(parts)


PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
_BEGIN, _END = "<!-- made by make faults -->\n", "<!-- end of what make faults made -->\n"


def tables() -> str:
    """Return the tables in the page."""
    return PAGE.read_text("utf-8").partition(_BEGIN)[2].partition(_END)[0]


def write(found: Sequence[Cell]) -> None:
    """Write the tables into the page."""
    before, _, rest = PAGE.read_text("utf-8").partition(_BEGIN)
    PAGE.write_text(before + _BEGIN + "\n" + document(found) + "\n" + _END + rest.partition(_END)[2], "utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return 1 if any outcome is not truthful."""
    parser = argparse.ArgumentParser(prog="python -m tests.proof.faults", description=__doc__)
    parser.add_argument("--party", choices=PARTIES, action="append")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/reliability.md")
    given = parser.parse_args(arguments)
    found: list[Cell] = []
    for party in given.party or PARTIES:
        for cell in cells(party, lambda name: given.only in name):
            found.append(cell)
            print(f"{cell.name}: {cell.outcome} ({cell.seconds:.1f} s)", flush=True)
    if given.write:
        write(found)
    return 1 if any(cell.outcome.startswith("FAULT") for cell in found) else 0


if __name__ == "__main__":
    sys.exit(main())
