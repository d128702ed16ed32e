"""The formats of the branch's logs: properties of any log, and agreement with git-annex."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_remote.annex import logformat
from cluster_remote.annex.clusterlog import ClusterLog
from cluster_remote.p2p.key import UUID, Key, encode
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository

from .conftest import UUIDS

uuids = st.sampled_from(UUIDS)
times = st.tuples(st.integers(0, 20), st.text("0123456789", max_size=14)).map(
    lambda t: f"{t[0]}.{t[1]}s" if t[1] else f"{t[0]}s"
)
presence_lines = st.tuples(times, st.sampled_from("01X"), uuids)


def written(lines: list[tuple[str, str, UUID]]) -> bytes:
    """A location log."""
    return "".join(f"{time} {status} {uuid}\n" for time, status, uuid in lines).encode()


def exact(time: str) -> Fraction:
    """Return the timestamp as git-annex reads it, computed independently: to twelve decimal places."""
    whole, _, part = time.removesuffix("s").partition(".")
    return int(whole) + Fraction(int(part[:12] or "0"), 10 ** len(part[:12] or "0"))


@given(st.lists(presence_lines))
def test_the_newest_line_per_repository_wins(lines: list[tuple[str, str, UUID]]) -> None:
    """Of two with the same time, the first one does."""
    expected = set()
    for uuid in UUIDS:
        own = [(exact(time), -number, status) for number, (time, status, u) in enumerate(lines) if u == uuid]
        if own and max(own)[2] == "1":
            expected.add(uuid)
    assert logformat.presence(written(lines)) == expected


@given(st.lists(presence_lines, unique_by=lambda line: exact(line[0])), st.randoms())
def test_line_order_does_not_matter(lines: list[tuple[str, str, UUID]], chance: random.Random) -> None:
    """So logs can be merged by joining them, in either order."""
    shuffled = lines.copy()
    chance.shuffle(shuffled)
    assert logformat.presence(written(shuffled)) == logformat.presence(written(lines))


@given(st.lists(presence_lines), st.lists(st.binary().filter(lambda b: not re.match(rb"[+-]?[0-9]", b)), max_size=5))
def test_unreadable_lines_are_ignored(lines: list[tuple[str, str, UUID]], junk: list[bytes]) -> None:
    """None of them begins with a time, even after a line break inside it."""
    harmless = [b for j in junk for b in j.split(b"\n") if not re.match(rb"[+-]?[0-9]", b)]
    mixed = b"\n".join([*harmless, written(lines), *harmless])
    assert logformat.presence(mixed) == logformat.presence(written(lines))


@given(st.binary())
def test_any_bytes_can_be_read_as_a_log(raw: bytes) -> None:
    """A stranger may have written it."""
    logformat.presence(raw)
    list(logformat.annotated(raw))
    list(logformat.dated(raw))
    ClusterLog.parse(raw)


@example("5.123456789012s", "5.123456789013s")
@example("1795358606.1s", "1795358606.10s")
@given(times, times)
def test_timestamps_are_compared_exactly(one: str, other: str) -> None:
    first, second = logformat.picoseconds(one), logformat.picoseconds(other)
    assert first is not None
    assert second is not None
    assert (first < second) == (exact(one) < exact(other))
    assert (first == second) == (exact(one) == exact(other))


@pytest.mark.parametrize("text", ["", "s", "5.s", ".5s", "5e3s", "5 s", "５s", "5ss"])
def test_an_invalid_timestamp_is_rejected(text: str) -> None:
    assert logformat.picoseconds(text) is None


values = st.lists(st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), max_size=8)).map(
    " ".join
)


@given(st.lists(st.tuples(uuids, values, st.none() | times)))
def test_an_annotated_log_gives_the_newest_value_per_uuid(lines: list[tuple[UUID, str, str | None]]) -> None:
    """A line without a time is older than all others; of two with the same time, the last counts."""
    lines = [(u, v, t) for u, v, t in lines if t is not None or "timestamp=" not in v]
    raw = "".join(f"{u} {v} timestamp={t}\n" if t else f"{u} {v}\n" for u, v, t in lines).encode()
    best: dict[UUID, tuple[Fraction, str]] = {}
    for uuid, value, time in lines:
        clock = Fraction(-1) if time is None else exact(time)
        if uuid not in best or best[uuid][0] <= clock:
            best[uuid] = clock, value
    assert logformat.newest(logformat.annotated(raw)) == {uuid: value for uuid, (_, value) in best.items()}


@given(st.dictionaries(st.text("abcdefg-", min_size=1), st.text(st.characters(exclude_categories=["Cs"]))))
def test_settings_with_any_characters_round_trip(parameters: dict[str, str]) -> None:
    def escaped(value: str) -> str:
        return "".join(f"&{ord(c)};" if c.isspace() or c == "&" else c for c in value)

    assert logformat.settings(" ".join(f"{n}={escaped(v)}" for n, v in parameters.items())) == parameters


def test_an_invalid_escape_is_left_as_is() -> None:
    assert logformat.settings("a=&; b=&9999999; c=&x; d=& e f=1=2") == {
        "a": "&;",
        "b": "&9999999;",
        "c": "&x;",
        "d": "&",
        "f": "1=2",
    }


ODD_NAMES = [
    "plain",
    "a&b",
    "100%",
    "c:d",
    "http://example.com/%20?q=1&r",
    "under_score__twice",
    "..",
    "caf\udce9",
    "\udcff\udcfe",
    "é",
    "\"quoted'",
    "back\\slash",
    "\x01control\x7f",
    "&a%s&c",
    "-leading",
    "\u2028",
    "x" * 200,
]


@pytest.fixture(scope="module")
def repository(make_environment: Callable[[], Environment]) -> Repository:
    environment = make_environment()
    return make_repository(environment, environment.directory / "repo", "the desk")


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_log_path_matches_git_annexs(repository: Repository, name: str) -> None:
    key = Key(f"WORM-s3-m5--{name}")
    told = repository.annex("examinekey", "--format=${hashdirlower}\\n${key}\\n", "--", bytes(key)).stdout
    folders = told.split(b"\n")[0]
    path = logformat.branch_path(key)
    assert path.startswith(folders)
    assert path.count(b"/") == 2
    before = set((repository.path / ".git/annex/journal").iterdir())
    repository.annex("setpresentkey", "--quiet", "--", bytes(key), str(UUIDS[0]), "1")
    new = set((repository.path / ".git/annex/journal").iterdir()) - before
    assert [encode(str(file.name)) for file in new] == [logformat.journal_name(path)]


def commit_file(repository: Repository, path: bytes, content: bytes) -> None:
    """Put a file on the git-annex branch, as another repository may have done."""
    head = repository.git("rev-parse", "refs/heads/git-annex").stdout.strip()
    repository.git(
        "fast-import",
        "--quiet",
        input=b"commit refs/heads/git-annex\ncommitter t <t@example.com> 1795358606 +0000\ndata 1\nx\n"
        b"from %b\nM 100644 inline %b\ndata %d\n%b\n" % (head, path, len(content), content),
    )


LOGS = {
    "same time": "5s 1 A\n5s 0 A\n5s 0 B\n5s 1 B\n",
    "fractions": "5.25s 1 A\n5.3s 0 A\n5.3s 1 B\n5.25s 0 B\n5.30s 1 C\n5.3s 0 C\n5.9s 0 D\n6s 1 D\n",
    "beyond twelve places": "5.0000000000001s 1 A\n5.0000000000002s 0 A\n5.0000000000002s 0 B\n5.0000000000001s 1 B\n",
    "close": "1795358606.123456789s 1 A\n1795358606.123456788s 0 A\n"
    "1795358606.123456788s 1 B\n1795358606.123456789s 0 B\n",
    "dead": "5s 1 A\n6s X A\n5s X B\n6s 1 B\n",
    "no unit": "5 1 A\n6s 0 B\n7 1 B\n",
    "signs": "-5s 1 A\n-6s 0 A\n+5s 1 B\n4s 0 B\n-0.5s 1 C\n0s 0 C\n-5.5s 1 D\n-5.2s 0 D\n",
    "far ahead": f"5s 1 A\n{'9' * 30}s 0 A\n{'9' * 30}s 1 B\n5s 0 B\n{'9' * 5000}s 1 C\n{'9' * 30}s 0 C\n",
    "long fractions": f"5.{'0' * 200}1s 1 A\n5.3s 0 A\n5.{'9' * 200}s 1 B\n5.8s 0 B\n",
    "unknown status": "5s 2 A\n5s 1 B\n",
    "wrong spaces": "5s  1 A\n 5s 1 B\n5s 1 C \n5s 1  D\n",
    "junk": "garbage\n\n5s 1 A\nx 1 B\n5.s 1 B\n.5s 1 C\n5e3s 1 D\n",
    "carriage returns": "5s 1 A\r\n5s 1 B\r\n",
    "no last newline": "5s 1 A\n5s 1 B",
}


@pytest.mark.parametrize("name", LOGS)
def test_git_annex_reads_the_same_locations(repository: Repository, name: str) -> None:
    letters = dict(zip("ABCD", UUIDS, strict=False))
    raw = re.sub("[ABCD]", lambda m: str(letters[m[0]]), LOGS[name]).encode()
    key = Key(f"WORM--{name.replace(' ', '_')}")
    commit_file(repository, logformat.branch_path(key), raw)
    present = {
        uuid
        for uuid in letters.values()
        if repository.annex("readpresentkey", str(key), str(uuid), check=False).returncode == 0
    }
    assert logformat.presence(raw) == present


CLUSTERS = {
    "plain": ("5s C A B\n", "AB"),
    "newest": ("5s C A\n6s C B\n", "B"),
    "newest first": ("6s C B\n5s C A\n", "B"),
    "same time": ("5s C A\n5s C B\n", "B"),
    "emptied": ("5s C A\n6s C \n", ""),
    "no nodes and no space": ("5s C A\n6s C\n", "A"),
    "junk among the nodes": ("5s C A junk B\n", "AB"),
    "not a cluster": ("5s D A\n", ""),
}


@pytest.mark.parametrize("name", CLUSTERS)
def test_git_annex_reads_the_same_nodes(repository: Repository, name: str) -> None:
    """It shows the cluster as a location of whatever one of its nodes has."""
    cluster = UUID("ac111111-1111-8111-8111-111111111111")
    names = {"A": UUIDS[0], "B": UUIDS[1], "C": cluster, "D": UUIDS[3]}
    text, nodes = CLUSTERS[name]
    raw = re.sub(r"\b[ABCD]\b", lambda m: str(names[m[0]]), text).encode()
    commit_file(repository, b"cluster.log", raw)
    for letter in "AB":
        key = Key(f"WORM--{letter}")
        commit_file(repository, logformat.branch_path(key), f"5s 1 {names[letter]}\n".encode())
        told = repository.annex("whereis", "--key", str(key), "--format=${uuid} ", check=False).stdout.decode()
        assert (str(cluster) in told.split()) == (letter in nodes)
    assert ClusterLog.parse(raw).nodes(cluster) == {names[letter] for letter in nodes}
    assert ClusterLog.parse(raw).clusters() <= {cluster}
