"""Every message round-trips; every other line is refused in the same way."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p import MAX_VERSION
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.messages import (
    ANSWERS,
    MAX_DATA_LENGTH,
    MESSAGES,
    AlreadyHavePlus,
    Auth,
    AuthSuccess,
    Bypass,
    Changed,
    CheckPresent,
    Connect,
    ConnectDone,
    Data,
    DataPresent,
    Error,
    FailurePlus,
    Get,
    GetTimestamp,
    Invalid,
    MalformedMessage,
    Message,
    Put,
    PutFrom,
    RemoveBefore,
    Success,
    SuccessPlus,
    Timestamp,
    Valid,
    Version,
    describe,
    expected_answers,
    parse,
    serialise,
    since,
    word,
)
from tests.p2p.strategies import messages, messages_of

ONE = UUID("11111111-1111-4111-8111-111111111111")
TWO = UUID("22222222-2222-4222-8222-222222222222")
KEY = Key("SHA256E-s3--abc.txt")
TOKEN = "sesame0pen"
WORDS = {
    *("AUTH", "AUTH-SUCCESS", "AUTH-FAILURE", "VERSION", "BYPASS", "CHECKPRESENT", "LOCKCONTENT", "UNLOCKCONTENT"),
    *("REMOVE", "REMOVE-BEFORE", "GETTIMESTAMP", "TIMESTAMP", "GET", "PUT", "PUT-FROM", "ALREADY-HAVE"),
    *("ALREADY-HAVE-PLUS", "DATA", "DATA-PRESENT", "VALID", "INVALID", "SUCCESS", "SUCCESS-PLUS", "FAILURE"),
    *("FAILURE-PLUS", "ERROR", "CONNECT", "CONNECTDONE", "NOTIFYCHANGE", "CHANGED"),
}


def test_the_table_has_every_message_of_the_protocol() -> None:
    assert set(map(word, MESSAGES)) == WORDS


@pytest.mark.parametrize("kind", MESSAGES)
@given(data=st.data())
def test_every_message_round_trips(kind: type[Message], data: st.DataObject) -> None:
    message = data.draw(messages_of(kind))
    line = serialise(message)
    assert line.endswith(b"\n")
    assert b"\n" not in line[:-1]
    assert parse(line[:-1]) == message


# The protocol's examples, as they stand on the wire.
@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"AUTH 11111111-1111-4111-8111-111111111111 sesame0pen", Auth(ONE, TOKEN)),
        (b"AUTH  sesame0pen", Auth(None, TOKEN)),
        (b"AUTH-SUCCESS 11111111-1111-4111-8111-111111111111", AuthSuccess(ONE)),
        (b"VERSION 4", Version(4)),
        (b"CHECKPRESENT SHA256E-s3--abc.txt", CheckPresent(KEY)),
        (b"REMOVE-BEFORE 77 SHA256E-s3--abc.txt", RemoveBefore(77, KEY)),
        (b"TIMESTAMP 77", Timestamp(77)),
        (b"GET 2 dir/f SHA256E-s3--abc.txt", Get(2, AssociatedFile("dir/f"), KEY)),
        (b"GET 0  SHA256E-s3--abc.txt", Get(0, AssociatedFile(), KEY)),
        (b"PUT a%%b SHA256E-s3--abc.txt", Put(AssociatedFile("a%b"), KEY)),
        (b"PUT  SHA256E-s3--abc.txt", Put(AssociatedFile(), KEY)),
        (b"PUT-FROM 2", PutFrom(2)),
        (b"DATA 3", Data(3)),
        (b"ERROR it is late", Error("it is late")),
        (b"CONNECT git-upload-pack", Connect("git-upload-pack")),
        (b"CONNECTDONE -1", ConnectDone(-1)),
        (b"CHANGED refs/heads/main refs/heads/git-annex", Changed(("refs/heads/main", "refs/heads/git-annex"))),
        (
            b"BYPASS 11111111-1111-4111-8111-111111111111 22222222-2222-4222-8222-222222222222",
            Bypass(frozenset({TWO, ONE})),
        ),
    ],
)
def test_messages_match_the_protocols_lines(line: bytes, message: Message) -> None:
    assert parse(line) == message
    assert serialise(message) == line + b"\n"


@pytest.mark.parametrize("end", [b"", b" "])
@pytest.mark.parametrize(
    ("word", "message"),
    [
        (b"SUCCESS-PLUS", SuccessPlus(frozenset())),
        (b"FAILURE-PLUS", FailurePlus(frozenset())),
        (b"ALREADY-HAVE-PLUS", AlreadyHavePlus(frozenset())),
        (b"BYPASS", Bypass(frozenset())),
        (b"CHANGED", Changed(())),
        (b"ERROR", Error("")),
    ],
)
def test_an_empty_list_is_read_with_and_without_a_trailing_space(word: bytes, end: bytes, message: Message) -> None:
    assert parse(word + end) == message


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        (b"", "unknown message"),
        (b" ", "unknown message"),
        (b" SUCCESS", "unknown message"),
        (b"success", "unknown message"),
        (b"HELLO", "unknown message 'HELLO'"),
        (b"SUCCESS\r", "unknown message"),
        (b"\xff\xfe", "unknown message"),
        (b"SUCCESS 1", "takes no parameters"),
        (b"VALID ", "takes no parameters"),
        (b"DATA", "without its parameters"),
        (b"CHECKPRESENT", "without its parameters"),
        (b"CHECKPRESENT ", "is not a key"),
        (b"CHECKPRESENT nokey", "is not a key"),
        (b"CHECKPRESENT  SHA256E-s3--abc", "is not a key"),
        (b"CHECKPRESENT SHA256E-s3--a b", "is not a key"),
        (b"PUT SHA256E-s3--abc", "a word is missing"),
        (b"PUT /etc/passwd SHA256E-s3--abc", "absolute"),
        (b"PUT a b SHA256E-s3--abc", "is not a key"),
        (b"GET 0 SHA256E-s3--abc", "a word is missing"),
        (b"GET x  SHA256E-s3--abc", "the offset 'x' is not a number"),
        (b"GET -1  SHA256E-s3--abc", "the offset -1 is out of range"),
        (b"REMOVE-BEFORE SHA256E-s3--abc", "a word is missing"),
        (b"REMOVE-BEFORE now SHA256E-s3--abc", "the timestamp 'now' is not a number"),
        (b"AUTH-SUCCESS me", "is not a UUID"),
        (b"SUCCESS-PLUS 11111111-1111-4111-8111-111111111111 x", "is not a UUID"),
        (b"CONNECT git-shell", "is not a service of git"),
        (b"CONNECT ", "is not a service of git"),
        (b"VERSION -1", "out of range"),
        (b"VERSION 1000001", "out of range"),
        (b"DATA -5", "the length -5 is out of range"),
        (b"DATA 9223372036854775808", "the length 9223372036854775808 is out of range"),
        (b"DATA 99999999999999999999999999999999", "is not a number"),
        (b"DATA 1e3", "is not a number"),
        (b"DATA 0x10", "is not a number"),
        (b"DATA +5", "is not a number"),
        (b"DATA  5", "is not a number"),
        (b"DATA 5 ", "is not a number"),
        (b"DATA 1_000", "is not a number"),
        (b"DATA \xd9\xa3", "is not a number"),
        (b"PUT-FROM -1", "out of range"),
        (b"TIMESTAMP -9223372036854775808", "out of range"),
        (b"CONNECTDONE 99999999999", "out of range"),
    ],
)
def test_an_invalid_message_is_refused_with_the_reason(line: bytes, complaint: str) -> None:
    with pytest.raises(MalformedMessage, match=complaint):
        parse(line)


@pytest.mark.parametrize(
    ("line", "number"), [(b"DATA 007", 7), (b"DATA 0", 0), (b"DATA 9223372036854775807", MAX_DATA_LENGTH)]
)
def test_extreme_numbers_are_read(line: bytes, number: int) -> None:
    assert parse(line) == Data(number)


def test_a_timestamp_may_be_negative() -> None:
    assert parse(b"REMOVE-BEFORE -3 " + bytes(KEY)) == RemoveBefore(-3, KEY)


def _is_refused_properly(line: bytes) -> None:
    try:
        message = parse(line)
    except MalformedMessage:
        return
    assert isinstance(message, MESSAGES)
    # What was read can be written, and is read in the same way again.
    assert parse(serialise(message)[:-1]) == message


@given(st.binary().map(lambda raw: raw.replace(b"\n", b"")))
def test_arbitrary_bytes_are_a_message_or_malformed(line: bytes) -> None:
    _is_refused_properly(line)


@given(messages, st.data())
def test_a_damaged_message_is_a_message_or_malformed(message: Message, data: st.DataObject) -> None:
    line = bytearray(serialise(message)[:-1])
    start = data.draw(st.integers(0, len(line)))
    end = data.draw(st.integers(start, min(len(line), start + 3)))
    line[start:end] = data.draw(st.binary(max_size=3)).replace(b"\n", b" ")
    _is_refused_properly(bytes(line))


# Tokens


def test_a_token_is_neither_shown_nor_described() -> None:
    message = Auth(ONE, TOKEN)
    assert TOKEN not in repr(message)
    assert TOKEN not in str(message)
    assert TOKEN not in f"{[message]}"
    assert TOKEN not in describe(message)
    assert str(ONE) in describe(message)


@pytest.mark.parametrize(
    "line",
    [
        f"AUTH {TOKEN}",
        f"AUTH {TOKEN} {ONE}",
        f"AUTH x {TOKEN}",
        f"AUTH\t{ONE}\t{TOKEN}",
        f"AUTH\t{TOKEN}",
        f"auth:{TOKEN}",
        f"AUTHENTICATE {ONE} {TOKEN}",
    ],
)
def test_a_malformed_authentication_is_refused_without_quoting_it(line: str) -> None:
    with pytest.raises(MalformedMessage) as caught:
        parse(line.encode())
    assert TOKEN not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_message_with_a_newline_is_refused_without_quoting_its_token() -> None:
    with pytest.raises(ValueError, match="newline") as caught:
        serialise(Auth(ONE, f"{TOKEN}\nVERSION 4"))
    assert TOKEN not in str(caught.value)
    with pytest.raises(ValueError, match="newline"):
        serialise(Changed(("refs/heads/a\nb",)))


def test_a_multiline_error_is_sent_as_one_line() -> None:
    assert serialise(Error("first\nsecond")) == b"ERROR first second\n"


# Versions


@pytest.mark.parametrize(
    ("version", "kinds"),
    [
        (1, {Valid, Invalid}),
        (2, {Bypass, SuccessPlus, FailurePlus, AlreadyHavePlus}),
        (3, {GetTimestamp, Timestamp, RemoveBefore}),
        (4, {DataPresent}),
    ],
)
def test_each_version_adds_its_messages(version: int, kinds: set[type[Message]]) -> None:
    assert {kind for kind in MESSAGES if since(kind) == version} == kinds


def test_expected_answers_are_named_without_their_plus_forms() -> None:
    assert expected_answers(Put) == "PUT-FROM or ALREADY-HAVE"
    assert expected_answers(RemoveBefore) == "SUCCESS or FAILURE"


def test_no_answer_needs_a_newer_version_than_its_request() -> None:
    # A peer that speaks only the version of the request can give at least one of the answers.
    for request, answers in ANSWERS.items():
        assert min(map(since, answers)) <= since(request)


def test_no_message_needs_an_unsupported_version() -> None:
    assert max(map(since, MESSAGES)) == MAX_VERSION


def test_a_messages_version_is_its_types() -> None:
    assert since(Valid()) == since(Valid) == 1
    assert since(Success()) == since(Success) == 0


@given(messages)
def test_a_description_is_one_line(message: Message) -> None:
    assert "\n" not in describe(message)
