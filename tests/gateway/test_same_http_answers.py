"""The same requests to `git annex p2phttp` and to our gateway over HTTP: status, headers and bodies.

docs/differences.md has what differs. Left out is what makes git-annex 10.20261026 stand still for everybody: a body
that is short or wrong in version 0, or a length below zero.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import pytest

from cluster_remote.p2p.server import Mode
from tests.gateway.test_web import Web, web_of
from tests.support.environment import Environment
from tests.support.repositories import Cluster, make_cluster
from tests.support.slow import only_in_all
from tests.support.sockets import serve_p2phttp

LENGTH = "X-git-annex-data-length"
CLIENT = "clientuuid=c11e0000-0000-4000-8000-000000000002"
FORM = {"Content-Type": "application/x-www-form-urlencoded"}
STRANGER = "11111111-1111-4111-8111-111111111111"
# Of the headers; whatever else is there is the server's own.
HEADERS = ("content-type", LENGTH.lower(), "www-authenticate")
# Our answers where they differ, and theirs, by the name of the request; an answer is its status and a part of its body.
BAD_VERSION, NOT_FOUND = (400, "bad version"), (404, "")


@dataclass(frozen=True)
class Asked:
    """A request; `path` is below /git-annex/."""

    name: str
    method: str
    path: str
    body: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Answer:
    status: int
    body: str
    headers: Mapping[str, str]

    def fits(self, expected: tuple[int, str]) -> bool:
        return self.status == expected[0] and expected[1] in self.body


@dataclass(frozen=True)
class Servers:
    """Two identical copies of one cluster, one of them served by us."""

    native: Cluster
    native_port: int
    ours: Web

    def uuid(self, who: str) -> str:
        return self.native.uuid if who == "cluster" else self.native.nodes[0].uuid

    def ask(self, asked: Asked, logins: Mapping[str, str] | None = None) -> tuple[Answer, Answer]:
        """Return git-annex's answer and ours; `logins` are the passwords for both, else everything is allowed."""
        ours = (logins or {}).get("ours", self.ours.tokens[Mode.READ_WRITE])
        return (
            _answer(self.native_port, "", asked, (logins or {}).get("native")),
            _answer(self.ours.port, "/data", asked, ours or None),
        )


def _answer(port: int, prefix: str, asked: Asked, password: str | None) -> Answer:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = dict(asked.headers)
    if password is not None and "Authorization" not in headers:
        headers["Authorization"] = "Basic " + base64.b64encode(f"user:{password}".encode()).decode()
    with contextlib.closing(connection):
        connection.request(asked.method, f"{prefix}/git-annex/{asked.path}", asked.body, headers)
        response = connection.getresponse()
        body = response.read().decode("latin-1")
        kept = {name.lower(): value for name, value in response.getheaders() if name.lower() in HEADERS}
    if response.status >= 400:
        # git-annex has none for words.
        kept.pop("content-type", None)
    elif kept.get("content-type", "").startswith("application/json"):
        body = _comparable(body)
    return Answer(response.status, body, kept)


def _comparable(body: str) -> str:
    """Remove what differs from run to run."""
    said = json.loads(body)
    for name in ("timestamp", "lockid"):
        if name in said:
            said[name] = "*"
    if "plusuuids" in said:
        said["plusuuids"].sort()
    return json.dumps(said, sort_keys=True)


def compare(
    servers: Servers, asked: list[Asked], different: Mapping[str, tuple[tuple[int, str], tuple[int, str]]]
) -> None:
    found = []
    for each in asked:
        theirs, ours = servers.ask(each)
        if each.name in different:
            expected = different[each.name]
            same = theirs.fits(expected[0]) and ours.fits(expected[1])
        else:
            same = theirs == ours or (theirs.fits(BAD_VERSION) and (ours.status, ours.body) == NOT_FOUND)
        if not same:
            found.append(f"{each.name}: {each.method} {each.path}\n  git-annex: {theirs}\n  ours: {ours}")
    assert not found, "\n".join(found)


def key_of(content: bytes) -> str:
    return f"SHA256-s{len(content)}--{hashlib.sha256(content).hexdigest()}"


@pytest.fixture(scope="module")
def servers(make_environment: Callable[[], Environment]) -> Iterator[Servers]:
    environment = make_environment()
    native = make_cluster(environment, environment.directory / "native")
    ours = make_cluster(environment, environment.directory / "ours")
    with serve_p2phttp(native.gateway) as port, web_of(ours) as web:
        yield Servers(native, port, web)


# One after the other, by one client. What git-annex answers first, and what we do.
DIFFERENT = {
    "where it would go on": ((200, '"offset": '), (200, '"offset": ')),
    "the key in the path is none": ((400, ""), (400, "Error parsing key failed")),
    "an absolute file name": ((200, '"stored": false'), (400, "associatedfile failed")),
    "a file name that is no base64": ((400, "associatedfile failed"), (400, "associatedfile failed")),
    "neither true nor false": ((400, "data-present failed"), (400, "data-present failed")),
    "a key with a space": ((200, "present"), (400, "key parse error")),
    "get from another form of a number": ((200, ""), (400, "offset parse error")),
    "put from another form of a number": ((200, "stored"), (400, "offset parse error")),
    "removal before another form of a number": ((200, "removed"), (400, "timestamp parse error")),
    "length another form of a number": ((200, "stored"), (400, "length parse error")),
    "as application/json": ((400, "bad version"), (200, "")),
    "as text/html": ((400, "bad version"), (200, "")),
    "answered as application/octet-stream": ((400, "bad version"), (200, "present")),
    "answered as text/html": ((400, "bad version"), (200, "present")),
    "the gateway knows it now": ((200, '"present": false'), (200, '"present": true')),
}


def conversation(who: str, uuid: str, version: int) -> list[Asked]:
    content = f"{who} {version} ".encode() * 10
    key, absent = key_of(content), key_of(content + b"absent")
    size = {LENGTH: str(len(content))}
    said: list[Asked] = []

    def ask(
        name: str,
        endpoint: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        method: str = "POST",
        client: str = CLIENT,
    ) -> None:
        path = f"{uuid}/v{version}/{endpoint}{'&' if '?' in endpoint else '?'}{client}"
        said.append(Asked(name, method, path, body, headers or {}))

    for endpoint in ("checkpresent", "remove", "lockcontent"):
        ask(f"{endpoint} of what is not there", f"{endpoint}?key={absent}")
    for offset in (0, 4):
        ask(f"get of what is not there from {offset}", f"key/{absent}?offset={offset}", method="GET")
    ask("the offset of what is new", f"putoffset?key={key}")
    ask("no length", f"put?key={key}", content)
    ask("no number as length", f"put?key={key}", content, {LENGTH: "x"})
    if version:
        ask("a short body", f"put?key={key}", content[:-9], size)
        ask("where it would go on", f"putoffset?key={key}")
        ask("from beyond", f"put?offset=9999&key={key}", b"", {LENGTH: "0"})
        ask("wrong bytes", f"put?key={key}", b"x" * len(content), size)
    ask("not there yet", f"checkpresent?key={key}")
    ask("the right bytes", f"put?associatedfile=a%2Fb&key={key}", content, size)
    for body in (content, b""):
        ask("what is there, again", f"put?key={key}", body, {LENGTH: str(len(body))})
    ask("there now", f"checkpresent?key={key}")
    ask("the offset of what is there", f"putoffset?key={key}")
    for offset in (0, 3, len(content), len(content) + 9):
        ask(f"get from {offset}", f"key/{key}?offset={offset}", method="GET")
    ask("head", f"key/{key}", method="HEAD")
    ask("get from x", f"key/{key}?offset=x", method="GET")
    ask("a range", f"key/{key}", method="GET", headers={"Range": "bytes=2-5"})
    ask("compressed", f"key/{key}", method="GET", headers={"Accept-Encoding": "gzip"})
    for accepted in ("*/*", "application/json", "application/octet-stream", "text/html"):
        ask(f"as {accepted}", f"key/{key}", method="GET", headers={"Accept": accepted})
        ask(f"answered as {accepted}", f"checkpresent?key={key}", headers={"Accept": accepted})
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "nonsense"):
        ask(f"a body said to be {kind}", f"put?key={key}", content, {**size, "Content-Type": kind})
        ask(f"a question said to be {kind}", f"checkpresent?key={key}", b"x", {"Content-Type": kind})
    ask("keeping a lock that there is not", "keeplocked?lockid=nosuch", b'{"unlock":true}\n')
    ask("keeping no lock", "keeplocked", b'{"unlock":true}\n')
    ask("the time", "gettimestamp")
    ask("too late", f"remove-before?timestamp=1&key={key}")
    ask("no time", f"remove-before?key={key}")
    ask("no number as time", f"remove-before?timestamp=x&key={key}")
    nothing = {LENGTH: "0"}
    for endpoint in ("checkpresent", "putoffset", "put", "remove", "lockcontent"):
        ask("no key", endpoint, b"", nothing)
        ask("an empty key", f"{endpoint}?key=", b"", nothing)
        ask("a bad key", f"{endpoint}?key=foo", b"", nothing)
        ask("a key that is no base64", f"{endpoint}?key=%5B!!%5D", b"", nothing)
        for client in ("", "clientuuid=", "clientuuid=x"):
            if endpoint != "put":
                ask(f"client {client!r}", f"{endpoint}?key={absent}", b"", nothing, client=client)
        ask("get in place of post", f"{endpoint}?key={absent}", method="GET")
    for endpoint in ("put", "gettimestamp", "remove-before?timestamp=1", "keeplocked?lockid=nosuch"):
        joined = f"{endpoint}{'&' if '?' in endpoint else '?'}key={key}"
        for client in ("x=y", "clientuuid=", "clientuuid=x"):
            ask(f"{endpoint}, client {client}", joined, b"", nothing, client=client)
    ask("get without a client", f"key/{key}", method="GET", client="x=y")
    ask("a header in lower case", f"put?key={key}", b"", {LENGTH.lower(): "0"})
    ask("names in upper case", f"checkpresent?KEY={absent}")
    ask("names in another case", f"checkpresent?key={absent}", client=CLIENT.replace("clientuuid", "clientUUID"))
    ask("two keys", f"checkpresent?key={key}&key={absent}")
    ask("a name nobody knows", f"checkpresent?key={absent}&nosuch=x&nosuch")
    ask("parameters in the body", "checkpresent", f"key={absent}&{CLIENT}".encode(), FORM)
    ask("a key with a space", "checkpresent?key=WORM-s1--a+b")
    ask("semicolons", f"checkpresent?key={absent};{CLIENT}", client="x=y")
    for number in ("1.5", "1e3", "%2B1", "", "0x1", "%201", "9" * 20):
        name = "another form of a number" if number in ("0x1", "%201", "9" * 20) else number
        ask(f"get from {name}", f"key/{key}?offset={number}", method="GET")
        ask(f"put from {name}", f"put?offset={number}&key={key}", b"", nothing)
        before = name if version > 2 else number
        ask(f"removal before {before}", f"remove-before?timestamp={number}&key={absent}")
        if "%" not in number:
            ask(f"length {name}", f"put?key={key}", b"", {LENGTH: number})
    ask("a key in base64", "checkpresent?key=%5BV09STS1zMS0teA%3D%3D%5D")
    ask("bypass", f"checkpresent?bypass={STRANGER}&bypass=x&key={absent}")
    ask("an absolute file name", f"put?associatedfile=%2Fetc%2Fx&key={key_of(b'abc')}", b"abc", {LENGTH: "3"})
    ask("a file name that is no base64", f"put?associatedfile=%5B!%5D&key={key_of(b'abc')}", b"abc", {LENGTH: "3"})
    ask("no such endpoint", f"nosuch?key={absent}")
    ask("post in place of get", f"key/{absent}")
    ask("the key in the path is none", "key/foo", method="GET")
    ask("a key with a slash", "key/WORM-s1--a%2Fb", method="GET")
    ask("a key in two words of the path", "key/WORM-s1--a/b", method="GET")
    ask("no key in the path", "key/", method="GET")
    ask("removal", f"remove?key={key}")
    ask("gone", f"checkpresent?key={key}")
    return said


@pytest.mark.slow
@pytest.mark.parametrize("version", [0, 4, *only_in_all(1, 2, 3)])
@pytest.mark.parametrize("who", ["cluster", "node"])
def test_we_answer_http_requests_as_p2phttp_does(servers: Servers, who: str, version: int) -> None:
    compare(servers, conversation(who, servers.uuid(who), version), DIFFERENT)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["cluster", "node"])
def test_we_find_content_that_arrived_otherwise_as_p2phttp_does(servers: Servers, who: str) -> None:
    said = []
    for number, (query, where) in enumerate(
        [("=true", 3), ("=true", 1), ("=true", 0), ("", 3), ("=True", 3), ("=false", 0), ("=1", 0)]
    ):
        key = f"WORM-s1--brought{number}to-the-{who}"
        for cluster in (servers.native, servers.ours.cluster):
            for node in cluster.nodes[:where]:
                node.set_key(key, b"x")
        for endpoint in (f"put?data-present{query}&", "checkpresent?"):
            path = f"{servers.uuid(who)}/v4/{endpoint}key={key}&{CLIENT}"
            name = f"{query} {where} {endpoint}"
            if query == "=1" and endpoint[0] == "p":
                name = "neither true nor false"
            elif who == "cluster" and where and endpoint[0] == "c":
                name = "the gateway knows it now"
            said.append(Asked(name, "POST", path, b"", {LENGTH: "0"}))
    compare(servers, said, DIFFERENT)


@pytest.mark.slow
def test_we_judge_urls_and_logins_as_p2phttp_does(servers: Servers) -> None:
    uuid, key = servers.uuid("cluster"), "WORM-s1--x"
    said = []
    for version in ("v5", "v", "v-1", "x", "v4x"):
        said.append(Asked("version", "POST", f"{uuid}/{version}/checkpresent?key={key}&{CLIENT}"))
    for other in (STRANGER, "x", "%5BeA%3D%3D%5D"):
        said.append(Asked("a stranger's UUID", "POST", f"{other}/v4/checkpresent?key={key}&{CLIENT}"))
        said.append(Asked("a stranger's UUID, plainly", "GET", f"{other}/key/{key}"))
        said.append(Asked("a stranger's UUID, no parameters", "POST", f"{other}/v4/checkpresent"))
    said += [Asked("nothing", "GET", ""), Asked("nothing but a UUID", "GET", uuid)]
    said.append(Asked("plainly what is not there", "GET", f"{uuid}/key/{key}"))
    for login in ("Bearer x", "Basic", "Basic !!", "Basic bm9jb2xvbg=="):
        header = {"Authorization": login}
        said.append(
            Asked(
                "no colon" if login.endswith("==") else "login",
                "POST",
                f"{uuid}/v4/checkpresent?key={key}&{CLIENT}",
                b"",
                header,
            )
        )
    different = {
        "plainly what is not there": ((200, ""), (404, "")),
        # Nobody's login counts there.
        "no colon": ((200, "present"), (400, "only Basic")),
        "login": ((400, "Authorization failed"), (400, "Authorization failed")),
    }
    compare(servers, said, different)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        (("--authenv-http",), Mode.READ_WRITE),
        (("--authenv-http",), Mode.APPEND_ONLY),
        (("--authenv-http",), Mode.READ_ONLY),
        (("--authenv-http",), None),
        (("--authenv-http", "--unauth-readonly"), None),
    ],
)
def test_we_grant_permissions_as_p2phttp_does(
    make_environment: Callable[[], Environment], options: tuple[str, ...], mode: Mode | None
) -> None:
    environment = make_environment()
    native = make_cluster(environment, environment.directory / "native")
    ours = make_cluster(environment, environment.directory / "ours")
    variables = {"GIT_ANNEX_P2PHTTP_PASSWORD_user": "right"}
    if mode in (Mode.READ_ONLY, Mode.APPEND_ONLY):
        variables["GIT_ANNEX_P2PHTTP_PERMISSIONS_user"] = mode.value.replace("-", "")
    public = "--unauth-readonly" in options
    with (
        serve_p2phttp(native.gateway, *options, env=variables) as port,
        web_of(ours, *(["--public-read"] if public else [])) as web,
    ):
        servers = Servers(native, port, web)
        key = key_of(b"abc")
        found = []
        for endpoint in ("checkpresent", "putoffset", "put", "remove", "lockcontent", "remove-before", "gettimestamp"):
            path = f"{native.nodes[0].uuid}/v4/{endpoint}?key={key}&timestamp=1&{CLIENT}"
            asked = Asked(endpoint, "POST", path, b"abc" if endpoint == "put" else b"", {LENGTH: "3"})
            for right in (True, False):
                logins = {"native": "right" if right else "wrong", "ours": web.tokens[mode] if mode and right else "no"}
                if mode is None:
                    logins = {} if right else {"native": "wrong", "ours": "no"}
                theirs, answer = servers.ask(asked, logins or {"ours": ""})
                known = (theirs.status, answer.status)
                if endpoint == "lockcontent" and known == ((200, 401) if public else (403, 200)):
                    continue
                if public and not right and known == (403, 401):
                    continue
                if theirs != answer:
                    found.append(f"{endpoint} {logins}: git-annex: {theirs}, ours: {answer}")
        assert not found, "\n".join(found)
