"""Keys, UUIDs and associated files: every instance is valid, and git-annex agrees."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from cluster_remote.p2p.key import UUID, AssociatedFile, Key, decode, encode
from tests.p2p.strategies import file_names, key_bytes, plain_file_names
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository

CLUSTER = "acdf6a8c-5fd8-8c5b-9d4c-000000000001"


@given(st.binary())
def test_any_bytes_round_trip_through_text(raw: bytes) -> None:
    assert encode(decode(raw)) == raw


# Keys


@pytest.mark.parametrize(
    ("text", "backend", "size", "content_size", "is_chunk", "is_encrypted"),
    [
        ("SHA256E-s3--abc.txt", "SHA256E", 3, 3, False, False),
        ("SHA256E-s0--e3b0", "SHA256E", 0, 0, False, False),
        ("WORM-s5-m1700000000--name", "WORM", 5, 5, False, False),
        ("URL--http&c%%example.com%x", "URL", None, None, False, False),
        ("SHA256E-s1000-S300-C4--abc", "SHA256E", 1000, None, True, False),
        ("SHA256E-s1000-S300--abc", "SHA256E", 1000, None, True, False),
        ("SHA256E-s1000-C4--abc", "SHA256E", 1000, None, True, False),
        ("GPGHMACSHA1--0badcafe", "GPGHMACSHA1", None, None, False, True),
        ("GPGHMACSHA512--0badcafe", "GPGHMACSHA512", None, None, False, True),
        ("XFOO-s007--leading-zeros", "XFOO", 7, 7, False, False),
        ("WORM-s9223372036854775807--largest", "WORM", 2**63 - 1, 2**63 - 1, False, False),
        ("WORM--s5", "WORM", None, None, False, False),
        ("WORM---dash", "WORM", None, None, False, False),
        ("lower.case--", "lower.case", None, None, False, False),
    ],
)
def test_a_keys_fields_are_parsed(
    text: str, backend: str, size: int | None, content_size: int | None, is_chunk: bool, is_encrypted: bool
) -> None:
    key = Key(text)
    assert (key.backend, key.size, key.content_size) == (backend, size, content_size)
    assert (key.is_chunk, key.is_encrypted) == (is_chunk, is_encrypted)
    assert str(key) == text


NO_KEYS = [
    "",
    "-",
    "--",
    "--name",
    "WORM",
    "WORM-",
    "WORM-name",
    "WORM-s--name",
    "WORM-s-3--name",
    "WORM-s+3--name",
    "WORM-s0x3--name",
    "WORM-m-5--name",
    "WORM-m1.5--name",
    "WORM-m5-s3--name",
    "WORM-s3-s3--name",
    "WORM-C1-S5--name",
    "WORM-x3--name",
    "-s3--name",
]


@pytest.mark.parametrize("text", NO_KEYS)
def test_a_malformed_key_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        Key(text)


@pytest.mark.parametrize("character", [*" \t\n\r\f\v", "\0"])
@pytest.mark.parametrize("text", ["WO{}RM--name", "WORM--na{}me", "WORM--name{}", "{}WORM--name"])
def test_whitespace_and_nul_are_refused_anywhere_in_a_key(text: str, character: str) -> None:
    with pytest.raises(ValueError, match="is not a key"):
        Key(text.format(character))


@pytest.mark.parametrize("size", [str(2**63), "9" * 30, "9" * 5000])
def test_a_key_larger_than_any_file_is_refused(size: str) -> None:
    with pytest.raises(ValueError, match="larger than any file"):
        Key(f"WORM-s{size}--name")


def test_leading_zeros_do_not_count_towards_a_size_limit() -> None:
    assert Key(f"WORM-s{'0' * 5000}12--name").size == 12


def test_text_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        Key("WORM--\ud800")


@given(st.text() | st.binary().map(decode))
def test_any_text_is_a_key_or_raises_value_error(text: str) -> None:
    try:
        key = Key(text)
    except ValueError:
        return
    assert decode(bytes(key)) == text
    assert not set(text) & set(" \t\n\r\f\v\0")


@given(key_bytes)
def test_a_key_preserves_its_bytes(raw: bytes) -> None:
    assert bytes(Key(decode(raw))) == raw


@pytest.fixture(scope="module")
def repository(make_environment: Callable[[], Environment]) -> Repository:
    environment = make_environment()
    return make_repository(environment, environment.directory / "r", "keys")


# One process of git-annex takes all keys of an example, and stops at the first that it does not accept.
@settings(max_examples=8, suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink))
@given(st.lists(key_bytes, min_size=40, max_size=40))
def test_git_annex_accepts_and_parses_every_key_we_accept(repository: Repository, raws: list[bytes]) -> None:
    fields = repository.annex(
        "examinekey",
        "--batch",
        "-z",
        "--format=${backend}\\n${bytesize}\\n",
        input=b"".join(raw + b"\0" for raw in raws),
    )
    expected = []
    for raw in raws:
        key = Key(decode(raw))
        expected += [key.backend, "unknown" if key.size is None else str(key.size)]
    assert decode(fields.stdout).split("\n") == [*expected, ""]


@pytest.mark.parametrize("text", [text for text in NO_KEYS if not text.startswith("-")])
def test_git_annex_refuses_the_keys_we_refuse(repository: Repository, text: str) -> None:
    assert repository.annex("examinekey", text, check=False).returncode != 0


# UUIDs


@pytest.mark.parametrize(
    ("text", "is_cluster"),
    [
        (CLUSTER, True),
        (CLUSTER.upper(), True),
        ("acdf6a8c-5fd8-4c5b-9d4c-000000000001", False),
        ("bcdf6a8c-5fd8-8c5b-9d4c-000000000001", False),
        ("00000000-0000-0000-0000-000000000001", False),
    ],
)
def test_a_cluster_is_recognised_by_its_uuid(text: str, is_cluster: bool) -> None:
    assert UUID(text).is_cluster is is_cluster


def test_git_annex_marks_cluster_uuids_the_same_way(repository: Repository) -> None:
    repository.annex("initcluster", "marked")
    uuid = repository.config("annex.cluster.marked")
    assert uuid is not None
    assert UUID(uuid).is_cluster
    assert not UUID(repository.uuid).is_cluster


def test_uuids_are_compared_and_written_in_lower_case() -> None:
    assert UUID(CLUSTER.upper()) == UUID(CLUSTER)
    assert str(UUID(CLUSTER.upper())) == CLUSTER


@pytest.mark.parametrize(
    "text",
    ["", "x", CLUSTER[:-1], CLUSTER + "0", CLUSTER.replace("-", ""), CLUSTER + "\n", " " + CLUSTER, "g" + CLUSTER[1:]],
)
def test_a_malformed_uuid_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a UUID"):
        UUID(text)


# Associated files


@pytest.mark.parametrize(
    ("name", "wire", "read_back"),
    [
        ("", b"", ""),
        ("dir/file.txt", b"dir/file.txt", "dir/file.txt"),
        ("100%", b"100%%", "100%"),
        ("%%", b"%%%%", "%%"),
        ("a b", b"a%b", "a_b"),
        ("a\tb\nc", b"a%b%c", "a_b_c"),
        ("a% b", b"a%%%b", "a%_b"),
        ("no\u00a0break", b"no%break", "no_break"),
        ("bell\a", b"bell\a", "bell_"),
        ("c1\u009b", "c1\u009b".encode(), "c1_"),
        ("caf\u00e9", "caf\u00e9".encode(), "caf\u00e9"),
        ("latin1\udce9", b"latin1\xe9", "latin1\udce9"),
        ("-rf", b"-rf", "-rf"),
        ("../up", b"../up", "../up"),
    ],
)
def test_an_associated_file_is_escaped_on_the_wire(name: str, wire: bytes, read_back: str) -> None:
    assert bytes(AssociatedFile(name)) == wire
    assert str(AssociatedFile.parse(wire)) == read_back


@given(file_names)
def test_no_associated_file_adds_words_to_a_line(raw: bytes) -> None:
    wire = bytes(AssociatedFile(decode(raw)))
    assert not set(wire) & set(b" \t\n\r\f\v")


@given(plain_file_names)
def test_a_plain_associated_file_round_trips(name: str) -> None:
    assert AssociatedFile.parse(bytes(AssociatedFile(name))) == AssociatedFile(name)


@given(file_names)
def test_an_escaped_associated_file_is_stable(raw: bytes) -> None:
    once = AssociatedFile.parse(bytes(AssociatedFile(decode(raw))))
    assert AssociatedFile.parse(bytes(once)) == once


@given(st.binary())
def test_any_bytes_are_an_associated_file_or_raise_value_error(raw: bytes) -> None:
    try:
        file = AssociatedFile.parse(raw)
    except ValueError:
        assert raw.startswith(b"/")
        return
    assert not any(ord(c) < 32 or 127 <= ord(c) < 160 for c in file.text)


def test_an_absolute_associated_file_is_refused_on_the_way_in_and_out() -> None:
    with pytest.raises(ValueError, match="absolute"):
        AssociatedFile.parse(b"/etc/passwd")
    with pytest.raises(ValueError, match="absolute"):
        AssociatedFile("/etc/passwd")


def test_an_associated_file_that_cannot_be_encoded_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be written"):
        AssociatedFile("a\ud800")


def test_file_names_from_the_system_can_be_used_unchanged() -> None:
    assert bytes(AssociatedFile(os.fsdecode(b"\xff\xfe"))) == b"\xff\xfe"


@pytest.mark.parametrize(
    ("text", "verifiable"),
    [
        ("SHA256E-s1--abc.txt", True),
        ("SHA256E-s9-S5-C1--abc.txt", True),
        ("WORM-s5--SHA256E-s9-S5-C1--abc.txt", True),
        ("WORM-s5--URL-s9-S5-C1--abc", False),
        ("WORM-s5--SHA256E-s9--abc.txt", False),
        ("WORM-s5-m1--abc", False),
        ("URL--abc", False),
        ("XHASH-s1--abc", False),
        ("GPGHMACSHA1--abc", False),
    ],
)
def test_wrong_content_is_detected_by_the_checksum_of_its_key_or_file(text: str, verifiable: bool) -> None:
    assert Key(text).is_verifiable is verifiable
