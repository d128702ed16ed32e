"""The same conversations with git-annex's own gateway and ours, word for word; docs/differences.md lists the rest."""

from __future__ import annotations

import hashlib
import os
import re
import select
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.gateways import Gateway, gateway_of
from tests.support.environment import Environment
from tests.support.processes import end_group
from tests.support.repositories import Cluster, make_cluster
from tests.support.slow import only_in_all

CLIENT = "c11e0000-0000-4000-8000-000000000002"
ELSEWHERE = "0e15e000-0000-4000-8000-000000000003"
KEY = "SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"
ABSENT = "SHA256E-s5--0000000000000000000000000000000000000000000000000000000000000000"
PARTIAL = "WORM-s5-m1--only-on-the-first-node"
UNKNOWN = "WORM-s5-m1--on-all-nodes-and-in-no-log"
CONTENT = b"hello"
ANSWER_SECONDS = 30.0
# How long nothing has to come until it counts as no answer.
SILENCE_SECONDS = 2.0
CLOSED, SILENT = "(closed)", "(no answer)"


@dataclass(frozen=True)
class Servers:
    """Two identical copies of one cluster, one of them served by us."""

    native: Cluster
    ours: Gateway

    def uuid(self, who: str) -> str:
        """Of the cluster, or of the `node` that is its first, of `node1` or of `node2`."""
        return self.native.uuid if who == "cluster" else self.native.nodes[int(who.removeprefix("node") or 0)].uuid


@pytest.fixture(scope="module")
def servers(make_environment: Callable[[], Environment]) -> Iterator[Servers]:
    environment = make_environment()
    native = make_cluster(environment, environment.directory / "native")
    with gateway_of(make_cluster(environment, environment.directory / "ours")) as gateway:
        for cluster in (native, gateway.cluster):
            cluster.nodes[0].set_key(PARTIAL, CONTENT)
            for node in cluster.nodes:
                node.set_key(UNKNOWN, CONTENT)
        yield Servers(native, gateway)


# A conversation is what the client says: lines (text), contents (bytes), and where it waits for an answer (None).
Said = str | bytes | None


def put(content: bytes = CONTENT, *after: Said, validity: str | None = "VALID") -> list[Said]:
    """An upload from the start; `after` in place of the word on its validity, if given."""
    words: list[Said] = list(after) if after else [] if validity is None else [validity]
    return [f"PUT  {KEY}", None, f"DATA {len(content)}", content, *words, None]


def get(offset: int, acknowledgement: str = "SUCCESS") -> list[Said]:
    return [f"GET {offset} f {KEY}", None, acknowledgement]


REMOVE: list[Said] = [f"REMOVE {KEY}", None]
CHECK: list[Said] = [f"CHECKPRESENT {KEY}", None]
LOCK: list[Said] = [f"LOCKCONTENT {KEY}", None]


class Peer:
    """A server, message by message."""

    def __init__(self, reading: int, writing: int, version: int) -> None:
        self._reading = reading
        self._writing = writing
        self._version = version

    def _byte(self, deadline: float) -> bytes | None:
        ready, _, _ = select.select([self._reading], [], [], max(0.0, deadline - time.monotonic()))
        return os.read(self._reading, 1) if ready else None

    def answer(self, seconds: float) -> list[str]:
        """The next message, with its content and validity if it is DATA, as text that can be compared."""
        deadline = time.monotonic() + seconds
        line = b""
        while not line.endswith(b"\n"):
            byte = self._byte(deadline)
            if not byte:
                assert not line, line
                return [SILENT if byte is None else CLOSED]
            line += byte
        text = line.decode().rstrip("\n")
        if not text.startswith("DATA "):
            return [_comparable(text)]
        body = b"".join(self._byte(deadline) or b"" for _ in range(int(text[5:])))
        return [text, repr(body), *(self.answer(seconds) if self._version else [])]

    def play(self, said: Iterable[Said], seconds: float) -> list[str]:
        """All that is answered to a conversation, until the server closes or there is nothing more to say."""
        answers: list[str] = []
        try:
            for one in said:
                if one is None:
                    answers += self.answer(seconds)
                    if answers[-1] == CLOSED:
                        break
                else:
                    os.write(self._writing, one if isinstance(one, bytes) else one.encode() + b"\n")
        except (BrokenPipeError, ConnectionResetError):
            answers += self.answer(seconds)
        return answers


def _comparable(line: str) -> str:
    """UUIDs in -PLUS messages are a set, and clocks differ."""
    word, _, rest = line.partition(" ")
    if word.endswith("-PLUS"):
        return " ".join([word, *sorted(rest.split())])
    return re.sub(r"^TIMESTAMP \d+$", "TIMESTAMP n", line)


def native(
    servers: Servers,
    who: str,
    said: Iterable[Said],
    version: int,
    mode: Mode = Mode.READ_WRITE,
    seconds: float = ANSWER_SECONDS,
) -> list[str]:
    """Return git-annex's answers."""
    gateway, uuid = servers.native.gateway, servers.uuid(who)
    variables = {Mode.READ_ONLY: "GIT_ANNEX_SHELL_READONLY", Mode.APPEND_ONLY: "GIT_ANNEX_SHELL_APPENDONLY"}
    process = gateway.environment.popen(
        "git-annex-shell",
        "p2pstdio",
        gateway.path,
        CLIENT,
        "--uuid",
        uuid,
        env={variables[mode]: "1"} if mode in variables else {},
        stderr=subprocess.DEVNULL,
    )
    try:
        with process:
            assert process.stdin is not None
            assert process.stdout is not None
            peer = Peer(process.stdout.fileno(), process.stdin.fileno(), version)
            assert peer.answer(ANSWER_SECONDS) == [f"AUTH-SUCCESS {uuid}"]
            answers = peer.play(said, seconds)
            process.stdin.close()
            if answers[-1:] != [CLOSED]:
                answers += peer.answer(ANSWER_SECONDS)
            process.wait(ANSWER_SECONDS)
            return answers
    finally:
        end_group(process.pid)


def ours(
    servers: Servers,
    who: str,
    said: Iterable[Said],
    version: int,
    mode: Mode = Mode.READ_WRITE,
    seconds: float = ANSWER_SECONDS,
) -> list[str]:
    """Return our answers, after authentication."""
    uuid = servers.uuid(who)
    with servers.ours.connect() as client:
        client.settimeout(None)
        client.sendall(f"AUTH {CLIENT} {servers.ours.tokens[mode]}/{uuid}\n".encode())
        peer = Peer(client.fileno(), client.fileno(), version)
        assert peer.answer(ANSWER_SECONDS) == [f"AUTH-SUCCESS {uuid}"]
        answers = peer.play(said, seconds)
        client.shutdown(socket.SHUT_WR)
        if answers[-1:] != [CLOSED]:
            answers += peer.answer(seconds)
        return answers


def opening(version: int) -> list[Said]:
    return [] if version == 0 else [f"VERSION {version}", None]


def spoken(said: list[Said], version: int) -> list[Said]:
    """A conversation as it is in this version: the word on the validity came with version 1."""
    return [*opening(version), *(one for one in said if version or one not in ("VALID", "INVALID"))]


# One after the other, by one client.
REQUESTS: list[Said] = [
    *CHECK,
    *LOCK,
    "GETTIMESTAMP",
    None,
    # Contents that are none, with and without doubt of the client's.
    *put(b"hellO"),
    *put(b"hellO", validity="INVALID"),
    *put(b"hel"),
    *put(b"hello there"),
    *put(b""),
    *CHECK,
    # The right one, which is stored though the client doubts it.
    *put(validity="INVALID"),
    *CHECK,
    *(one for offset in (0, 2, 5, 9) for one in get(offset)),
    *get(0, "FAILURE"),
    f"PUT  {KEY}",
    None,
    f"PUT a%file {KEY}",
    None,
    f"BYPASS {ELSEWHERE}",
    *CHECK,
    "BYPASS",
    *CHECK,
]

# What ends a conversation.
ENDINGS: dict[str, list[Said]] = {
    "a change notification": ["NOTIFYCHANGE", None],
    "a server's answer": ["SUCCESS", None],
    "an authentication": [f"AUTH {CLIENT} token", None],
    "a version again": ["VERSION 2", None],
    "unlocking what is not locked": ["UNLOCKCONTENT", None],
    "content that nobody asked for": ["DATA 5", CONTENT, None],
    "a request in place of content": [f"PUT  {ABSENT}", None, *CHECK],
    "an error": ["ERROR I am lost", None],
    "hanging up": [],
}


@pytest.mark.parametrize("version", [4, *only_in_all(0, 1, 2, 3)])
@pytest.mark.parametrize("who", ["cluster", "node"])
def test_we_answer_requests_as_git_annex_does(servers: Servers, who: str, version: int) -> None:
    too_late: list[Said] = [f"REMOVE-BEFORE 1 {KEY}", None, *CHECK] if version >= 3 else []
    said = spoken([*REQUESTS, *too_late], version)
    assert ours(servers, who, said, version) == native(servers, who, said, version)
    # As it was, for the next version; what is answered to a removal is another matter, see below.
    for answers in (native(servers, who, REMOVE, 0), ours(servers, who, REMOVE, 0)):
        assert answers == ["SUCCESS", CLOSED]


@pytest.mark.parametrize("version", [4, *only_in_all(0)])
@pytest.mark.parametrize("who", ["cluster", "node"])
def test_we_end_conversations_as_git_annex_does(servers: Servers, who: str, version: int) -> None:
    differences = []
    for name, ending in ENDINGS.items():
        said = spoken([f"CHECKPRESENT {ABSENT}", None, *ending], version)
        answers, theirs = ours(servers, who, said, version), native(servers, who, said, version)
        if answers != theirs:
            differences.append(f"{name}: git-annex answers {theirs}, we answer {answers}")
    assert not differences, "\n".join(differences)


@pytest.mark.parametrize("version", [0, 4, *only_in_all(1, 2, 3)])
def test_we_answer_a_cluster_removal_as_git_annex_does(servers: Servers, version: int) -> None:
    said = spoken([*REMOVE, *put(), *REMOVE, *CHECK, *REMOVE], version)
    assert ours(servers, "cluster", said, version) == native(servers, "cluster", said, version)


# Which of the three nodes have a content.
STATES = {"everywhere": (0, 1, 2), "on the first node": (0,), "on the other nodes": (1, 2), "nowhere": ()}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("version", [4, *only_in_all(0, 1, 2, 3)])
def test_we_answer_every_message_as_git_annex_does_wherever_the_content_is(
    servers: Servers, state: str, version: int
) -> None:
    for who in ("cluster", "node"):
        names = ("kept", "removed", "late", "brought")
        contents = {name: f"{name} {state} {version} {who}".encode() for name in names}
        lay_down(servers, contents, STATES[state])
        said = spoken(about(who, STATES[state], contents, version), version)
        answers, theirs = ours(servers, who, said, version), native(servers, who, said, version)
        if who == "node" and version >= 2:
            # That a node's removal names the node is in docs/differences.md.
            node = servers.uuid("node")
            answers = ["SUCCESS" if answer == f"SUCCESS-PLUS {node}" else answer for answer in answers]
        assert answers == theirs, who


def lay_down(servers: Servers, contents: Mapping[str, bytes], nodes: tuple[int, ...]) -> None:
    """Have the contents on these nodes, with the gateway's knowledge save for the one that was brought."""
    for number in nodes:
        said: list[Said] = []
        for name, content in contents.items():
            if name == "brought":
                for cluster in (servers.native, servers.ours.cluster):
                    cluster.nodes[number].set_key(key_of(content), content)
            else:
                said += [f"PUT  {key_of(content)}", None, f"DATA {len(content)}", content, None]
        for play in (native, ours):
            assert set(play(servers, f"node{number}", said, 0)) == {"PUT-FROM 0", "SUCCESS", CLOSED}


def key_of(content: bytes) -> str:
    return f"SHA256E-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


def about(who: str, nodes: tuple[int, ...], contents: Mapping[str, bytes], version: int) -> list[Said]:
    """Return every request about a content that these nodes have."""
    here = 0 in nodes if who == "node" else len(nodes) == 3
    there = bool(nodes) if who == "cluster" else here
    content = contents["kept"]
    kept, removed, late, brought = (key_of(each) for each in contents.values())
    check: list[Said] = [f"CHECKPRESENT {kept}", None]
    said: list[Said] = [*check, f"LOCKCONTENT {kept}", None, "GETTIMESTAMP", None]
    if who == "node" and there:
        said[-2:] = ["UNLOCKCONTENT"]
    if there or who == "node":
        # What a cluster answers whose nodes all lack it is in docs/differences.md.
        for offset in (0, 2, len(content), len(content) + 4):
            said += [f"GET {offset} a%file {kept}", None, "SUCCESS"]
    if here and version >= 3:
        # The same of one that some lack.
        said += [f"REMOVE-BEFORE 1 {kept}", None, *check]
    upload: list[Said] = [f"PUT  {kept}", None]
    sent: list[Said] = [f"DATA {len(content)}", content, "VALID", None]
    said += [*upload, *check] if here else [*upload, *sent, *check, *upload]
    said += [f"REMOVE {removed}", None, f"CHECKPRESENT {removed}", None, f"REMOVE {removed}", None]
    if version >= 3:
        said += [f"REMOVE-BEFORE 99999999 {late}", None, f"CHECKPRESENT {late}", None]
    if version >= 4:
        said += [f"PUT  {brought}", None, *([] if here else ["DATA-PRESENT", None])]
    return said


@pytest.mark.parametrize("mode", [Mode.READ_ONLY, Mode.APPEND_ONLY])
@pytest.mark.parametrize("who", ["cluster", "node"])
def test_we_refuse_requests_in_git_annexs_words(servers: Servers, who: str, mode: Mode) -> None:
    said = spoken([*CHECK, *REMOVE, f"REMOVE-BEFORE 99999999 {KEY}", None, f"PUT  {KEY}", None], 4)
    assert ours(servers, who, said, 4, mode) == native(servers, who, said, 4, mode)


def test_we_answer_a_nodes_lock_as_git_annex_does(servers: Servers) -> None:
    said = spoken([*put(), *LOCK, "UNLOCKCONTENT", *CHECK, *LOCK, "UNLOCKCONTENT"], 4)
    assert ours(servers, "node", said, 4) == native(servers, "node", said, 4)
    for answers in (native(servers, "node", REMOVE, 0), ours(servers, "node", REMOVE, 0)):
        assert answers == ["SUCCESS", CLOSED]


# Where we differ: each of these is in docs/differences.md, with the reason


@dataclass(frozen=True)
class Difference:
    """`ours` and `theirs` are the answers after that to the opening; an ellipsis stands for some words."""

    who: str
    said: list[Said]
    theirs: list[str]
    ours: list[str]
    version: int = 4


NODE = "{node}"
PROTOCOL_ERROR = ["ERROR protocol error", CLOSED]
GARBAGE = "ERROR protocol error: …"
REMOVED = "SUCCESS-PLUS …"
REASON = "ERROR cluster mycluster: no node sent …"

DIFFERENCES = {
    "a node's removal names the node": Difference(
        "node", REMOVE, ["SUCCESS", CLOSED], [f"SUCCESS-PLUS {NODE}", CLOSED]
    ),
    "a removal whose time is over, of a content that is nowhere": Difference(
        "cluster", [f"REMOVE-BEFORE 1 {ABSENT}", None], [REMOVED, CLOSED], ["FAILURE", CLOSED]
    ),
    "a removal whose time is over, of a content that only some nodes have": Difference(
        "cluster", [f"REMOVE-BEFORE 1 {PARTIAL}", None], ["FAILURE-PLUS …", CLOSED], ["FAILURE", CLOSED]
    ),
    "a removal whose time is over, in a version that has no such thing": Difference(
        "node",
        [*put(), f"REMOVE-BEFORE 1 {KEY}", None, *CHECK, *REMOVE],
        ["PUT-FROM 0", "SUCCESS", "SUCCESS", "FAILURE", "SUCCESS", CLOSED],
        ["PUT-FROM 0", "SUCCESS", "FAILURE", "SUCCESS", "SUCCESS", CLOSED],
        version=1,
    ),
    "a content that no node of the cluster has": Difference(
        "cluster", [f"GET 0  {ABSENT}", None], ["DATA 0", "b''", "INVALID", CLOSED], [REASON, CLOSED]
    ),
    "garbage to a cluster": Difference("cluster", ["BLAH", None], [SILENT, CLOSED], [GARBAGE, CLOSED]),
    "garbage to a node": Difference("node", ["BLAH", None], [CLOSED], [GARBAGE, CLOSED]),
    "a malformed key, of a cluster": Difference(
        "cluster", ["CHECKPRESENT foo", None], [SILENT, CLOSED], [GARBAGE, CLOSED]
    ),
    "a malformed key, of a node": Difference("node", ["CHECKPRESENT foo", None], [CLOSED], [GARBAGE, CLOSED]),
    "a request in place of an acknowledgement": Difference(
        "node",
        [f"GET 0  {ABSENT}", None, f"CHECKPRESENT {ABSENT}", None],
        ["DATA 0", "b''", "INVALID", SILENT, CLOSED],
        ["DATA 0", "b''", "INVALID", *PROTOCOL_ERROR],
    ),
    "an error in place of content": Difference(
        "cluster", [f"PUT  {ABSENT}", None, "ERROR no", None], ["PUT-FROM 0", *PROTOCOL_ERROR], ["PUT-FROM 0", CLOSED]
    ),
    "content without a word on its validity": Difference(
        "cluster", put(b"hellO", "BLAH"), ["PUT-FROM 0", CLOSED], ["PUT-FROM 0", GARBAGE, CLOSED]
    ),
    "content that is there some other way, in version 3": Difference(
        "node",
        [f"PUT  {ABSENT}", None, "DATA-PRESENT", None],
        ["PUT-FROM 0", "ERROR expected DATA", CLOSED],
        ["PUT-FROM 0", "FAILURE", CLOSED],
        version=3,
    ),
    "a content of which the gateway learns by an upload": Difference(
        "cluster",
        [f"PUT  {UNKNOWN}", None, f"CHECKPRESENT {UNKNOWN}", None],
        ["ALREADY-HAVE-PLUS …", "FAILURE", CLOSED],
        ["ALREADY-HAVE-PLUS …", "SUCCESS", CLOSED],
    ),
    "a version below zero": Difference("cluster", ["VERSION -1", None], ["VERSION -1", CLOSED], [GARBAGE, CLOSED], 0),
}


@pytest.mark.parametrize("difference", DIFFERENCES.values(), ids=DIFFERENCES)
def test_our_answers_differ_from_git_annexs_only_as_documented(servers: Servers, difference: Difference) -> None:
    said = [*opening(difference.version), *difference.said]
    before = 1 if difference.version else 0
    theirs = native(servers, difference.who, said, difference.version, seconds=SILENCE_SECONDS)
    answers = ours(servers, difference.who, said, difference.version)
    assert fits(theirs[before:], difference.theirs, servers), theirs
    assert fits(answers[before:], difference.ours, servers), answers


def fits(answers: list[str], expected: list[str], servers: Servers) -> bool:
    node = servers.native.nodes[0].uuid
    patterns = [re.escape(each).replace("…", ".+").replace(r"\{node\}", node) for each in expected]
    return len(answers) == len(patterns) and all(map(re.fullmatch, patterns, answers))


def test_an_unexpected_message_under_a_lock_releases_it_with_an_error(servers: Servers) -> None:
    key = "WORM-s1--held"
    for node in (servers.native.nodes[0], servers.ours.cluster.nodes[0]):
        node.set_key(key, b"x")
    said = spoken([f"LOCKCONTENT {key}", None, *CHECK], 4)
    theirs = native(servers, "node", said, 4, seconds=SILENCE_SECONDS)
    assert theirs == ["VERSION 4", "SUCCESS", SILENT, CLOSED]
    assert ours(servers, "node", said, 4) == ["VERSION 4", "SUCCESS", *PROTOCOL_ERROR]
    assert ours(servers, "node", [f"REMOVE {key}", None], 0) == ["SUCCESS", CLOSED]


def test_a_lock_is_released_by_git_annex_and_kept_by_us_when_its_holder_disconnects(servers: Servers) -> None:
    # A key of its own, for with us it stays locked for ten minutes.
    key = "WORM-s1--locked"
    for node in (servers.native.nodes[0], servers.ours.cluster.nodes[0]):
        node.set_key(key, b"x")
    lock: list[Said] = [f"LOCKCONTENT {key}", None]
    remove: list[Said] = [f"REMOVE {key}", None]
    assert native(servers, "node", lock, 0) == ["SUCCESS", CLOSED]
    assert native(servers, "node", remove, 0) == ["SUCCESS", CLOSED]
    assert ours(servers, "node", lock, 0, seconds=SILENCE_SECONDS) == ["SUCCESS", SILENT]
    (refused, _closed) = ours(servers, "node", remove, 0)
    # git-annex-shell says why and ends, or says no: which of the two, depends on what it finds first.
    assert refused == "FAILURE" or "content is locked" in refused
    assert servers.ours.cluster.nodes[0].has_object(key)
