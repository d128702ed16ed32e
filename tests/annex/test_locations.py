"""Location logs of many keys read at once agree with each key's own log, by every way of reading them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from cluster_remote.annex import logformat
from cluster_remote.annex.errors import BranchUnreadable, CommandFailed, NotAKey
from cluster_remote.annex.locationlog import LocationLog
from cluster_remote.annex.locations import (
    BATCH,
    Located,
    LocationReader,
    Selection,
    estimate,
    located,
    read_log,
)
from cluster_remote.annex.logformat import branch_path
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID, Key, encode
from cluster_remote.remote.failure import leaf_errors
from tests.support.repositories import Repository as RealRepository

from .conftest import UUIDS
from .test_logformat import LOGS, ODD_NAMES, commit_file, presence_lines, written

A, B, C = UUIDS[:3]
EVERYTHING = Selection(everything=True)

log_texts = st.lists(presence_lines).map(written) | st.lists(presence_lines, unique_by=lambda line: line[2]).map(
    written
)


@given(log_texts | st.binary() | st.tuples(log_texts, st.binary(max_size=20), log_texts).map(b"".join))
@example(b"")
@example(b"5s 1 00000001-1111-4111-8111-111111111111\n6s 0 00000001-1111-4111-8111-111111111111\n")
def test_a_location_log_is_read_by_the_rules_of_its_format(raw: bytes) -> None:
    assert read_log(raw)[0] == logformat.presence(raw)


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_unusual_location_logs_are_read_by_the_same_rules(log: str) -> None:
    raw = log.translate({ord(letter): str(uuid) for letter, uuid in zip("ABCD", UUIDS, strict=False)}).encode()
    assert read_log(raw)[0] == logformat.presence(raw)


@pytest.mark.parametrize(
    ("log", "dead"),
    [
        ("5s X A\n5s X B\n", True),
        ("5s X A\n5s 0 B\n", False),
        ("5s X A\n6s 1 A\n", False),
        ("5s 1 A\n6s X A\n", True),
        ("", False),
    ],
)
def test_a_key_is_dead_if_every_repository_marks_it_dead(log: str, dead: bool) -> None:
    assert read_log(log.replace("A", str(A)).replace("B", str(B)).encode())[1] is dead


def keys(count: int) -> list[Key]:
    return [Key(f"SHA256-s{number}--{hashlib.sha256(str(number).encode()).hexdigest()}") for number in range(count)]


def record(real: RealRepository, lines: list[tuple[Key, UUID, str]], *, commit: bool = True) -> None:
    """Have git-annex write to the location log, leaving it in the journal or committing it."""
    text = b"".join(b"%b %b %b\n" % (bytes(key), str(uuid).encode(), status.encode()) for key, uuid, status in lines)
    real.annex("setpresentkey", "--batch", input=text)
    assert any((real.path / ".git/annex/journal").iterdir())
    if commit:
        real.annex("group", "here")
        assert not any((real.path / ".git/annex/journal").iterdir())


async def read(here: Repository, selection: Selection) -> dict[Key, Located]:
    found: dict[Key, Located] = {}
    async with located(here, selection) as batches:
        async for batch in batches:
            assert 0 < len(batch) <= BATCH
            found |= {each.key: each for each in batch}
    return found


# A git from before cat-file had --batch-command.
OLD = """#!/bin/sh
for word; do if [ "$word" = --batch-command ]; then echo "error: unknown option" >&2; exit 129; fi; done
exec {git} "$@"
"""


@pytest.mark.anyio
class TestWithGitAnnex:
    async def test_keys_and_locations_are_read_from_branch_and_journal(
        self, real: RealRepository, here: Repository
    ) -> None:
        known = keys(BATCH + 50)
        record(real, [(key, A, "1") for key in known] + [(key, B, "1") for key in known[::2]])
        record(real, [(known[0], A, "0"), (known[1], C, "1")], commit=False)
        new = Key("WORM-s1--only in the journal".replace(" ", "_"))
        record(real, [(new, C, "1")], commit=False)
        found = await read(here, EVERYTHING)
        assert set(found) == {*known, new}
        assert found[known[0]].holders == {B}
        assert found[known[1]].holders == {A, C}
        assert found[new].holders == {C}
        assert all(
            found[key].holders == ({A, B} if number % 2 == 0 else {A}) for number, key in enumerate(known[2:], 2)
        )
        async with LocationReader(here) as reader:
            again = await reader.read([*known, new])
        assert {each.key: each.holders for each in again} == {key: each.holders for key, each in found.items()}
        assert await estimate(here, EVERYTHING) == len(known)

    async def test_keys_with_odd_names_are_found(self, real: RealRepository, here: Repository) -> None:
        odd = [Key(f"WORM-s3-m5--{name}") for name in ODD_NAMES]
        async with LocationLog(here) as log:
            for key in odd:
                await log.record(key, present=[A])
        assert {key: each.holders for key, each in (await read(here, EVERYTHING)).items()} == {key: {A} for key in odd}
        real.annex("group", "here")
        assert set(await read(here, EVERYTHING)) == set(odd)
        async with LocationReader(here) as reader:
            assert [each.holders for each in await reader.read(odd)] == [{A}] * len(odd)

    async def test_a_branch_with_one_directory_level_is_read(self, real: RealRepository, here: Repository) -> None:
        real.git("config", "annex.tune.branchhash1", "true")
        (key,) = keys(1)
        commit_file(real, branch_path(key, levels=1), f"5s 1 {A}\n".encode())
        assert (await read(here, EVERYTHING))[key].holders == {A}
        async with LocationReader(here) as reader:
            assert (await reader.read([key]))[0].holders == {A}

    async def test_other_logs_are_not_mistaken_for_location_logs(self, real: RealRepository, here: Repository) -> None:
        (key,) = keys(1)
        folder = os.path.dirname(branch_path(key))  # noqa: PTH120 -- bytes
        for name in (bytes(key) + b".log.web", bytes(key) + b".log.cnk", b"nonsense.log", b"x.txt"):
            commit_file(real, folder + b"/" + name, f"5s 1 {A}\n".encode())
        assert await read(here, EVERYTHING) == {}

    async def test_an_unknown_key_has_no_locations(self, here: Repository) -> None:
        async with LocationReader(here) as reader:
            (found,) = await reader.read(keys(1))
        assert (found.holders, found.dead) == (frozenset(), False)

    async def test_a_reader_sees_locations_recorded_after_it_opened(
        self, real: RealRepository, here: Repository
    ) -> None:
        (key,) = keys(1)
        async with LocationReader(here) as reader:
            assert (await reader.read([key]))[0].holders == frozenset()
            record(real, [(key, A, "1")])
            assert (await reader.read([key]))[0].holders == {A}
            record(real, [(key, B, "1")], commit=False)
            assert (await reader.read([key]))[0].holders == {A, B}

    @pytest.mark.usefixtures("commit_while_reading")
    async def test_a_location_moving_from_the_journal_to_the_branch_is_not_missed(
        self, real: RealRepository, here: Repository
    ) -> None:
        (key,) = keys(1)
        record(real, [(key, A, "1")], commit=False)
        async with LocationReader(here) as reader:
            assert (await reader.read([key]))[0].holders == {A}

    async def test_an_older_git_is_queried_with_the_older_format(self, real: RealRepository, here: Repository) -> None:
        git = real.environment.which("git")
        real.environment.program("git", OLD.format(git=git))
        first, second = keys(2)
        record(real, [(first, A, "1")])
        async with LocationReader(here) as reader:
            assert [each.holders for each in await reader.read([first, second])] == [{A}, set()]
            record(real, [(second, B, "1")])
            assert [each.holders for each in await reader.read([first, second])] == [{A}, {B}]

    async def test_a_branch_that_is_created_and_deleted_is_followed(
        self, real: RealRepository, here: Repository
    ) -> None:
        (key,) = keys(1)
        record(real, [(key, A, "1")])
        async with LocationReader(here) as reader:
            assert (await reader.read([key]))[0].holders == {A}
            real.git("update-ref", "refs/heads/kept", "refs/heads/git-annex")
            real.git("update-ref", "-d", "refs/heads/git-annex")
            assert (await reader.read([key]))[0].holders == set()
            real.git("update-ref", "refs/heads/git-annex", "refs/heads/kept")
            assert (await reader.read([key]))[0].holders == {A}

    async def test_files_are_named_relative_to_the_working_directory(
        self, real: RealRepository, here: Repository
    ) -> None:
        names = ["top", "below/one", "below/with space", "below/caf\udce9"]
        found = {name: real.add(encode(name), encode(name)) for name in names}
        for name in names:
            real.annex("drop", "--force", "--key", found[name])
        assert {each.file: each.key.text for each in (await read(here, Selection())).values()} == found
        below = await read(here, Selection(files=("below", "top")))
        assert {each.file: each.key.text for each in below.values()} == found
        single = await read(here, Selection(files=("below/caf\udce9",)))
        assert [each.file for each in single.values()] == ["below/caf\udce9"]
        assert await estimate(here, Selection(files=("below",))) == 3

    async def test_keys_and_files_can_be_queried_together(self, real: RealRepository, here: Repository) -> None:
        file = real.add("file", b"file")
        (key,) = keys(1)
        found = await read(here, Selection(keys=(key,), files=("file",)))
        assert {each.key.text: each.file for each in found.values()} == {key.text: None, file: "file"}
        assert await estimate(here, Selection(keys=(key,))) == 1

    async def test_a_file_that_is_not_annexed_is_an_error(self, real: RealRepository, here: Repository) -> None:
        real.write("plain", b"plain")
        for name, words in (("nothing", "there is no file"), ("plain", "not an annexed file")):
            with pytest.raises(NotAKey, match=words):
                await read(here, Selection(files=(name,)))

    async def test_a_failure_of_git_is_an_error_and_not_an_empty_answer(self, here: Repository, tmp_path: Path) -> None:
        elsewhere = Repository(tmp_path / "no repository", tmp_path)
        with pytest.raises(Exception) as failure:  # noqa: PT011 -- a group, looked into below
            await read(elsewhere, EVERYTHING)
        assert any(isinstance(cause, CommandFailed) for cause in leaf_errors(failure.value))
        assert await read(here, EVERYTHING) == {}

    async def test_a_damaged_branch_is_an_error(self, real: RealRepository, here: Repository) -> None:
        record(real, [(keys(1)[0], A, "1")])
        (blob,) = real.git("rev-parse", b"refs/heads/git-annex:" + branch_path(keys(1)[0])).stdout.decode().split()
        (real.path / ".git/objects" / blob[:2] / blob[2:]).unlink()
        with pytest.raises(Exception) as failure:  # noqa: PT011 -- a group, looked into below
            await read(here, EVERYTHING)
        (cause,) = leaf_errors(failure.value)
        assert isinstance(cause, BranchUnreadable)
        assert keys(1)[0].text in str(cause)

    async def test_an_abandoned_read_leaves_no_child_behind(self, real: RealRepository, here: Repository) -> None:
        record(real, [(key, A, "1") for key in keys(4 * BATCH)])
        async with located(here, EVERYTHING) as batches:
            await batches.receive()
        real.environment.assert_no_process_left()
