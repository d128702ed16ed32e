"""The location log: git-annex reads what we record, and we read what it records."""

from __future__ import annotations

import os

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.annex.errors import LocationLogError
from cluster_remote.annex.locationlog import LocationLog, recordable
from cluster_remote.annex.logformat import branch_path
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID, Key
from tests.support.environment import Environment
from tests.support.processes import descendants
from tests.support.repositories import Cluster
from tests.support.repositories import Repository as RealRepository

from .conftest import UUIDS, special_remote
from .test_logformat import ODD_NAMES, commit_file

A, B, C = UUIDS[:3]
CLUSTER = UUID("ac111111-1111-8111-8111-111111111111")

# Starting it at all leaves a trace, whatever it is asked.
TRACE = special_remote(first='import os, pathlib; pathlib.Path(os.environ["STARTED"]).touch()')


def known(real: RealRepository, key: Key) -> set[UUID]:
    """Return the UUIDs that git-annex itself lists for a key, in a repository without remotes, which it would ask."""
    told = real.annex("whereis", b"--key=" + bytes(key), "--format=${uuid}\\n", check=False).stdout.decode().split()
    return {uuid for uuid in (*UUIDS, CLUSTER) if str(uuid) in told}


plain = Key("SHA256E-s5--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824.txt")
encrypted = Key("GPGHMACSHA1--ca4cd5aa7b4c2fa5ac2d4b9d1c8d9d5f6a7b8c9d")
chunk = Key("SHA256E-s5-S2-C1--2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824")
any_uuids = st.lists(st.sampled_from([*UUIDS, CLUSTER]))


@given(any_uuids, st.none() | st.sampled_from(UUIDS))
def test_recordable_excludes_clusters_duplicates_and_this_repository(uuids: list[UUID], own: UUID | None) -> None:
    found = recordable(plain, uuids, own)
    assert set(found) == set(uuids) - {CLUSTER, own}
    assert len(found) == len(set(found))
    assert found == sorted(found, key=uuids.index)


@pytest.mark.parametrize("key", [encrypted, chunk])
@given(uuids=any_uuids)
def test_locations_of_chunks_and_encrypted_keys_are_not_recordable(key: Key, uuids: list[UUID]) -> None:
    assert recordable(key, uuids, None) == []


@pytest.mark.anyio
class TestWithGitAnnex:
    async def test_recorded_locations_are_visible_at_once(self, real: RealRepository, here: Repository) -> None:
        async with LocationLog(here) as log:
            await log.record(plain, present=[A, B])
            assert known(real, plain) == {A, B}
            await log.record(plain, present=[C], absent=[A])
            assert known(real, plain) == {B, C}
            assert await log.locations(plain) == {B, C}

    async def test_unrecordable_locations_are_not_recorded(self, real: RealRepository, here: Repository) -> None:
        async with LocationLog(here, own=B) as log:
            await log.record(plain, present=[A, B, CLUSTER])
            await log.record(encrypted, present=[A])
            await log.record(chunk, present=[A])
            assert await log.locations(encrypted) == frozenset()
            assert await log.locations(chunk) == frozenset()
        logs = [file.name for file in (here.annex_dir / "journal").iterdir() if "--" in file.name]
        assert len(logs) == 1
        assert plain.text in logs[0]
        assert real.locations(str(plain)) == {str(A)}

    async def test_this_repositorys_own_location_is_left_to_git_annex(
        self, real: RealRepository, here: Repository
    ) -> None:
        real.annex("setpresentkey", plain.text, str(A), "1")
        async with LocationLog(here, own=A) as log:
            await log.record(plain, present=[B], absent=[A])
        assert known(real, plain) == {A, B}

    async def test_recording_nothing_starts_no_process(self, here: Repository) -> None:
        async with LocationLog(here) as log:
            before = descendants_here()
            await log.record(plain)
            await log.record(plain, present=[CLUSTER])
            assert descendants_here() == before

    async def test_keys_with_odd_names_are_recorded(self, real: RealRepository, here: Repository) -> None:
        keys = [Key(f"WORM-s3-m5--{name}") for name in (*ODD_NAMES, "no\u00a0break", "thin\u2009space")]
        async with LocationLog(here) as log:
            for key in keys:
                await log.record(key, present=[A, B])
                await log.record(key, absent=[B])
                assert await log.locations(key) == {A}
                assert known(real, key) == {A}
            real.annex("group", "here")
            assert not list((here.annex_dir / "journal").iterdir())
            assert [await log.locations(key) for key in keys] == [{A}] * len(keys)

    async def test_locations_follow_the_journal_onto_the_branch(self, real: RealRepository, here: Repository) -> None:
        """Concurrent recording by others is neither missed nor overwritten."""
        async with LocationLog(here) as log:
            assert await log.locations(plain) == frozenset()
            real.annex("setpresentkey", plain.text, str(A), "1")
            assert await log.locations(plain) == {A}
            await log.record(plain, present=[B])
            real.annex("group", "here")
            assert await log.locations(plain) == {A, B}
            real.annex("setpresentkey", plain.text, str(A), "0")
            real.annex("group", "here")
            await log.record(plain, present=[C])
            assert await log.locations(plain) == {B, C}
            assert known(real, plain) == {B, C}

    @pytest.mark.usefixtures("commit_while_reading")
    async def test_a_location_moving_from_the_journal_to_the_branch_is_not_missed(
        self, real: RealRepository, here: Repository
    ) -> None:
        real.annex("setpresentkey", plain.text, str(A), "1")
        async with LocationLog(here) as log:
            assert await log.locations(plain) == {A}
        assert not list((here.annex_dir / "journal").iterdir())

    @pytest.mark.parametrize("end", ["", "9", "9999999999s 1 ", "9999999999s 1 00000002-1111"])
    async def test_a_truncated_journal_line_is_ignored(self, real: RealRepository, here: Repository, end: str) -> None:
        async with LocationLog(here) as log:
            await log.record(plain, present=[A])
            real.annex("group", "here")
            real.annex("setpresentkey", plain.text, str(C), "1")
            (file,) = (here.annex_dir / "journal").glob("*.log")
            with file.open("a") as f:
                f.write(end)
            assert await log.locations(plain) == {A, C}
            assert known(real, plain) == {A, C}

    @pytest.mark.parametrize(("committed", "journalled"), [("1", "0"), ("0", "1")])
    async def test_the_journal_wins_over_the_branch_at_equal_timestamps(
        self, real: RealRepository, here: Repository, committed: str, journalled: str
    ) -> None:
        real.annex("setpresentkey", plain.text, str(A), journalled)
        (file,) = (here.annex_dir / "journal").glob("*.log")
        line = file.read_bytes()
        commit_file(real, branch_path(plain), line.replace(f"s {journalled} ".encode(), f"s {committed} ".encode()))
        async with LocationLog(here) as log:
            assert await log.locations(plain) == ({A} if journalled == "1" else set())
        assert known(real, plain) == ({A} if journalled == "1" else set())

    async def test_locations_of_private_repositories_are_found(self, real: RealRepository, here: Repository) -> None:
        (here.git_dir.parent / "store").mkdir()
        real.annex("initremote", "--quiet", "--private", "p", "type=directory", "directory=store", "encryption=none")
        private = UUID(real.config("remote.p.annex-uuid") or "")
        async with LocationLog(here) as log:
            await log.record(plain, present=[A, private])
            assert await log.locations(plain) == {A, private}
            (file,) = (here.annex_dir / "journal").glob("*-s5--*.log")
            file.write_bytes(file.read_bytes().removesuffix(b"\n"))
            assert await log.locations(plain) == {A, private}
            real.annex("group", "here")
            assert await log.locations(plain) == {A, private}
        assert private.text not in real.git("log", "-p", "git-annex").stdout.decode()

    async def test_without_a_git_annex_branch_there_are_no_locations(self, environment: Environment) -> None:
        environment.run("git", "init", "--quiet", "plain")
        with environment.applied(environment.directory / "plain"):
            async with LocationLog(Repository.here()) as log:
                assert await log.locations(plain) == frozenset()

    async def test_a_tag_named_git_annex_is_not_mistaken_for_the_branch(
        self, real: RealRepository, here: Repository
    ) -> None:
        real.git("tag", "git-annex", "HEAD")
        real.annex("setpresentkey", plain.text, str(A), "1")
        real.annex("group", "here")
        async with LocationLog(here) as log:
            assert await log.locations(plain) == {A}

    async def test_a_repository_tuned_to_one_directory_level_is_read(self, environment: Environment) -> None:
        path = environment.directory / "tuned"
        environment.run("git", "init", "--quiet", path)
        environment.run("git", "-c", "annex.tune.branchhash1=true", "annex", "init", "--quiet", "tuned", cwd=path)
        real = RealRepository(path, environment)
        with environment.applied(path):
            async with LocationLog(Repository.here()) as log:
                await log.record(plain, present=[A])
                assert await log.locations(plain) == {A}
                real.annex("group", "here")
                assert await log.locations(plain) == {A}

    @pytest.mark.parametrize("place", ["subdirectory", "linked", "bare"])
    async def test_locations_are_read_from_a_subdirectory_a_linked_work_tree_and_a_bare_clone(
        self, real: RealRepository, place: str
    ) -> None:
        path = real.path.parent / place
        match place:
            case "subdirectory":
                path = real.path / "below"
                path.mkdir()
            case "linked":
                real.git("worktree", "add", "--quiet", "--detach", path)
            case _:
                real.environment.run("git", "clone", "--quiet", "--bare", real.path, path)
                real = RealRepository(path, real.environment)
                real.annex("init", "--quiet", "bare one")
        with real.environment.applied(path):
            async with LocationLog(Repository.here()) as log:
                await log.record(plain, present=[A])
                assert await log.locations(plain) == {A}
        assert known(real, plain) == {A}

    async def test_a_lookup_starts_no_special_remote(self, real: RealRepository, here: Repository) -> None:
        """`git annex whereis` would: it would start this program, which would start it again, endlessly."""
        started = real.environment.directory / "started"
        real.environment.env["STARTED"] = str(started)
        real.environment.program("git-annex-remote-trace", TRACE)
        real.annex("initremote", "--quiet", "t", "type=external", "externaltype=trace", "encryption=none")
        uuid = UUID(real.config("remote.t.annex-uuid") or "")
        started.unlink()
        async with LocationLog(here) as log:
            await log.record(plain, present=[A, uuid])
            assert await log.locations(plain) == {A, uuid}
        assert not started.exists()
        real.annex("whereis", "--key", plain.text)
        assert started.exists()

    async def test_many_tasks_record_and_look_up_at_once(self, real: RealRepository, here: Repository) -> None:
        keys = [Key(f"WORM--{n}") for n in range(100)]
        async with LocationLog(here) as log:

            async def one(number: int, key: Key) -> None:
                await log.record(key, present=[UUIDS[number % 9], UUIDS[(number + 1) % 9]])
                assert await log.locations(key) == {UUIDS[number % 9], UUIDS[(number + 1) % 9]}

            async with anyio.create_task_group() as tasks:
                for number, key in enumerate(keys):
                    tasks.start_soon(one, number, key)
        assert known(real, keys[50]) == {UUIDS[50 % 9], UUIDS[51 % 9]}

    async def test_a_cluster_is_no_location_but_its_nodes_are(self, cluster: Cluster, client: RealRepository) -> None:
        key = Key(client.add("f", b"content"))
        nodes = {UUID(node.uuid) for node in cluster.nodes}
        with client.environment.applied(client.path):
            async with LocationLog(Repository.here()) as log:
                await log.record(key, present=[*nodes, UUID(cluster.uuid)])
                assert await log.locations(key) == nodes | {UUID(client.uuid)}
        client.annex("group", "here")
        told = client.annex("whereis", "f", "--format=${uuid} ").stdout.decode().split()
        assert set(told) == {cluster.uuid, client.uuid, *map(str, nodes)}

    async def test_a_line_that_git_annex_cannot_write_is_an_error_that_says_why(
        self, real: RealRepository, here: Repository
    ) -> None:
        """The next line is still written."""
        long = Key("WORM--" + "x" * 400)
        async with LocationLog(here) as log:
            with pytest.raises(LocationLogError, match=r"(?s)location of WORM--x+.*too long"):
                await log.record(long, present=[A])
            await log.record(plain, present=[A])
        assert known(real, plain) == {A}

    async def test_a_key_that_git_annex_rejects_is_an_error(self, real: RealRepository, here: Repository) -> None:
        real.environment.program("git-annex", "#!/bin/sh\nread line\necho '{\"success\":false}'\n")
        async with LocationLog(here) as log:
            with pytest.raises(LocationLogError, match="did not record the location of"):
                await log.record(plain, present=[A])

    @pytest.mark.parametrize("answer", ["ok", "[]", '{"success":1}', '{"success":"true"}', "{}", ""])
    async def test_only_an_explicit_confirmation_counts_as_recorded(
        self, real: RealRepository, here: Repository, answer: str
    ) -> None:
        real.environment.program("git-annex", f"#!/bin/sh\nread line\necho '{answer}'\ncat\n")
        async with LocationLog(here) as log:
            with pytest.raises(LocationLogError, match="did not record the location of"):
                await log.record(plain, present=[A])

    async def test_without_git_annex_the_error_says_so(self, real: RealRepository, here: Repository) -> None:
        real.environment.program("git-annex", "#!/bin/sh\necho 'not today' >&2\nexit 9\n")
        async with LocationLog(here) as log:
            for key in (plain, Key("WORM--no\u00a0break")):
                with pytest.raises(LocationLogError, match=r"(?s)could not be recorded.*setpresentkey.*not today"):
                    await log.record(key, present=[A])

    async def test_a_stalled_git_annex_times_out(self, real: RealRepository, here: Repository) -> None:
        real.environment.program("git-annex", "#!/bin/sh\nsleep 600\n")
        async with LocationLog(here) as log:
            with anyio.fail_after(20), pytest.raises(LocationLogError, match="no answer within"):
                await log.record(plain, present=[A], timeout=0.5)

    async def test_a_directory_on_the_branch_in_place_of_the_log_is_an_empty_log_as_to_git_annex(
        self, real: RealRepository, here: Repository
    ) -> None:
        commit_file(real, branch_path(plain) + b"/x", b"1s 1 x\n")
        async with LocationLog(here) as log:
            assert await log.locations(plain) == frozenset()
            await log.record(plain, present=[A])
            assert await log.locations(plain) == {A}

    async def test_a_directory_in_place_of_the_log_is_an_error(self, real: RealRepository, here: Repository) -> None:
        async with LocationLog(here) as log:
            await log.record(plain, present=[A])
            (file,) = (here.annex_dir / "journal").glob("*.log")
            file.unlink()
            file.mkdir()
            with pytest.raises(LocationLogError, match=r"journal file .* cannot be read: Is a directory"):
                await log.locations(plain)


def descendants_here() -> list[int]:
    """Return the processes this one has started."""
    return [process.pid for process in descendants(os.getpid())]
