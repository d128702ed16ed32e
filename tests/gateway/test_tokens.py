"""Tokens: only hashes are stored, readable only by the owner, and a revoked token is gone."""

from __future__ import annotations

import fcntl
import hmac
import json
import re
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cluster_remote.gateway import tokens as module
from cluster_remote.gateway.errors import TokensUnusable, UnknownToken
from cluster_remote.gateway.tokens import Claim, Token, Tokens, for_node, read_claim
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from tests.support.environment import open_umask

NODE = UUID("0e15e000-0000-4000-8000-000000000003")


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "cluster-remote" / "tokens")


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_only_an_exact_token_authenticates_and_with_its_own_mode(tokens: Tokens) -> None:
    assert tokens.check("anything") is None
    made = {mode: tokens.create(mode, f"for {mode.value}") for mode in Mode}
    for mode, (token, text) in made.items():
        assert tokens.check(text) == token
        assert (token.mode, token.note) == (mode, f"for {mode.value}")
        for wrong in ("", text[:-1], text + "a", text.upper(), token.id, token.sha256, text + "\n"):
            assert tokens.check(wrong) is None
    assert tokens.all() == [token for token, _ in made.values()]


def test_a_token_has_only_characters_that_git_annex_can_send(tokens: Tokens) -> None:
    texts = {tokens.create(Mode.READ_WRITE)[1] for _ in range(20)}
    assert len(texts) == 20
    assert all(re.fullmatch("[a-z2-7]{52}", text) for text in texts)


def test_the_text_of_a_token_is_stored_nowhere(tokens: Tokens, tmp_path: Path) -> None:
    _, text = tokens.create(Mode.READ_WRITE, "laptop")
    kept = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"laptop" in kept
    assert text.encode() not in kept


def test_the_token_file_is_private_whatever_the_umask(tokens: Tokens) -> None:
    with open_umask():
        tokens.create(Mode.READ_WRITE)
        token, _ = tokens.create(Mode.READ_ONLY)
        tokens.revoke(token.id)
    assert {mode_of(path) for path in tokens.file.parent.iterdir()} == {0o600}
    assert mode_of(tokens.file.parent) == 0o700


def test_a_revoked_token_is_refused_and_the_others_still_work(tokens: Tokens) -> None:
    first, text = tokens.create(Mode.READ_WRITE)
    second, other = tokens.create(Mode.READ_WRITE)
    reader = Tokens(tokens.file)
    assert reader.check(text) == first
    assert tokens.revoke(first.id) == first
    assert reader.check(text) is None
    assert reader.check(other) == second
    with pytest.raises(UnknownToken, match="token list"):
        tokens.revoke(first.id)


def test_a_wrong_token_does_not_cost_reading_all_tokens_again(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[bytes] = []
    really = module._read_token

    def counted(line: bytes) -> Token:
        read.append(line)
        return really(line)

    monkeypatch.setattr(module, "_read_token", counted)
    monkeypatch.setattr(module, "_SETTLED", -1.0)
    tokens.create(Mode.READ_ONLY)
    assert tokens.check("wrong") is None
    read.clear()
    assert tokens.check("wrong") is None
    assert read == []
    _, text = tokens.create(Mode.READ_ONLY)
    assert tokens.check(text) is not None


def test_every_token_is_compared_even_after_a_match(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [tokens.create(Mode.READ_WRITE)[1] for _ in range(5)]
    compared: list[str] = []
    really = hmac.compare_digest

    def watched(kept: str, presented: str) -> bool:
        compared.append(kept)
        return really(kept, presented)

    monkeypatch.setattr(module.hmac, "compare_digest", watched)  # type: ignore[attr-defined]
    for text in (*texts, "wrong"):
        compared.clear()
        tokens.check(text)
        assert compared == [token.sha256 for token in tokens.all()]


def test_concurrently_created_tokens_are_all_kept(tokens: Tokens) -> None:
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda _: Tokens(tokens.file).create(Mode.READ_WRITE)[1], range(24)))
    assert all(tokens.check(text) for text in texts)
    assert len({token.id for token in tokens.all()}) == 24


def test_a_change_times_out_waiting_for_another(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens.create(Mode.READ_WRITE)
    monkeypatch.setattr(module, "_LOCK_WAIT", 0.2)
    with tokens.file.with_name("tokens.lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(TokensUnusable, match="another process"):
            tokens.create(Mode.READ_WRITE)
    assert len(tokens.all()) == 1


def test_a_change_waits_for_a_short_one_before_it(tokens: Tokens) -> None:
    tokens.create(Mode.READ_WRITE)
    with tokens.file.with_name("tokens.lock").open("r+b") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        timer = threading.Timer(0.2, lambda: fcntl.flock(held, fcntl.LOCK_UN))
        timer.start()
        tokens.create(Mode.READ_WRITE)
        timer.join()
    assert len(tokens.all()) == 2


@pytest.mark.parametrize("note", ["two\nlines", "\x1b[31m", "x" * 201])
def test_an_unprintable_note_is_refused(tokens: Tokens, note: str) -> None:
    with pytest.raises(ValueError, match="printable"):
        tokens.create(Mode.READ_WRITE, note)
    assert tokens.all() == []


def test_the_number_of_tokens_is_limited(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_TOKENS", 2)
    tokens.create(Mode.READ_WRITE)
    tokens.create(Mode.READ_WRITE)
    with pytest.raises(TokensUnusable, match="token revoke"):
        tokens.create(Mode.READ_WRITE)


@pytest.mark.parametrize("change", ["cut", "mode", "hash", "id", "list", "note", "no UTF-8", "too large"])
def test_a_damaged_token_file_authenticates_nobody_and_says_what_to_do(tokens: Tokens, change: str) -> None:
    _, text = tokens.create(Mode.READ_ONLY)
    entry = json.loads(tokens.file.read_text())
    damaged = {
        "cut": json.dumps(entry).encode()[:-10],
        "mode": json.dumps({**entry, "mode": "everything"}).encode(),
        "hash": json.dumps({**entry, "sha256": "é"}).encode(),
        "id": json.dumps({**entry, "id": "../x"}).encode(),
        "list": b"[1, 2]",
        "note": json.dumps({**entry, "note": 5}).encode(),
        "no UTF-8": b"\xff\xfe",
        "too large": json.dumps(entry).encode() + b"\n" * (5 * 1024 * 1024),
    }
    tokens.file.write_bytes(damaged[change])
    for attempt in (lambda: tokens.check(text), lambda: tokens.create(Mode.READ_WRITE)):
        with pytest.raises(TokensUnusable, match="token create") as raised:
            attempt()
        assert entry["sha256"] not in str(raised.value)


def test_an_unwritable_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster-remote").write_text("in the way")
    tokens = Tokens(tmp_path / "cluster-remote" / "tokens")
    with pytest.raises(TokensUnusable, match="cannot be written"):
        tokens.create(Mode.READ_WRITE)
    with pytest.raises(TokensUnusable, match="cannot be read"):
        tokens.check("anything")


def test_a_failed_change_leaves_the_tokens_as_they_were(tokens: Tokens, monkeypatch: pytest.MonkeyPatch) -> None:
    _, text = tokens.create(Mode.READ_WRITE)

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.os, "fsync", full)  # type: ignore[attr-defined]
    with pytest.raises(TokensUnusable, match="No space left"):
        tokens.create(Mode.READ_WRITE)
    assert tokens.check(text)
    assert sorted(path.name for path in tokens.file.parent.iterdir()) == ["tokens", "tokens.lock"]


TEXT = "a2" * 26


@pytest.mark.parametrize(
    ("presented", "claim"),
    [
        (TEXT, Claim(TEXT)),
        (f"{TEXT}/{NODE}", Claim(TEXT, NODE)),
        (f"{TEXT}/{str(NODE).upper()}", Claim(TEXT, NODE)),
        (for_node(TEXT, NODE), Claim(TEXT, NODE)),
        ("", Claim("")),
        (f"{TEXT}/", None),
        (f"{TEXT}/node1", None),
        (TEXT + "z" * 32, None),
        (f"/{NODE}", Claim("", NODE)),
    ],
)
def test_a_client_may_name_the_repository_it_wants(presented: str, claim: Claim | None) -> None:
    assert read_claim(presented) == claim


def test_a_claim_never_shows_its_token() -> None:
    assert TEXT not in repr(read_claim(f"{TEXT}/{NODE}"))
