"""The file of a key is found in the index, however git-annex has added it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster_remote.annex.filenames import FileNames
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import Key
from tests.support.environment import Environment
from tests.support.repositories import Repository as RealRepository
from tests.support.repositories import make_repository

pytestmark = pytest.mark.anyio

NAMES = ["plain", "deep/down/in/there", "with space/and %/and ' \"", "Fotos/Müller.jpg", "a&b:c"]


async def found(real: RealRepository, key: str, cwd: Path | None = None) -> str:
    with real.environment.applied(cwd or real.path):
        return (await FileNames(Repository.here()).of(Key(key))).text


async def test_locked_and_unlocked_files_are_found_wherever_they_are(real: RealRepository) -> None:
    keys = {name: real.add(name, name.encode()) for name in NAMES}
    real.annex("unlock", NAMES[0], NAMES[3])
    real.write("small", b"not annexed")
    real.git("-c", "annex.largefiles=nothing", "add", "small")
    assert {name: await found(real, key) for name, key in keys.items()} == {name: name for name in NAMES}
    assert await found(real, keys["plain"], real.path / "deep/down") == "plain"
    assert await found(real, "SHA256E-s3--0000") == ""


async def test_files_of_odd_keys_are_found(real: RealRepository) -> None:
    for key in ("WORM-s1-m2--a:b&c%d", "URL--http&c%%x/y", "SHA1-s3--é"):
        real.annex("fromkey", "--force", key, f"of/{key.partition('--')[0]}")
        assert await found(real, key) == f"of/{key.partition('--')[0]}"


async def test_the_first_file_in_the_index_wins_among_several(real: RealRepository) -> None:
    for name in ("z", "b/x", "b/y", "c"):
        key = real.add(name, b"the same")
    assert await found(real, key) == "b/x"


async def test_a_file_added_later_is_found(real: RealRepository) -> None:
    with real.environment.applied(real.path):
        names = FileNames(Repository.here())
        first = real.add("first", b"1")
        assert (await names.of(Key(first))).text == "first"
        assert (await names.of(Key(real.add("second", b"2")))).text == "second"
        real.git("rm", "--quiet", "--cached", "first")
        assert (await names.of(Key(first))).text == ""


async def test_files_are_found_in_a_linked_work_tree_a_submodule_and_a_bare_repository(
    environment: Environment,
) -> None:
    top = make_repository(environment, environment.directory / "top", "top")
    key = top.add("in/top", b"of the top")
    top.git("commit", "--quiet", "-m", "files")
    top.git("worktree", "add", "--quiet", "-b", "other", "../tree")
    tree = RealRepository(environment.directory / "tree", environment)
    assert await found(tree, key) == "in/top"
    assert await found(tree, tree.add("new", b"of the tree")) == "new"
    top.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(top.path), "sub")
    sub = RealRepository(top.path / "sub", environment)
    sub.annex("init", "--quiet", "sub")
    assert await found(sub, sub.add("deep/new", b"of the submodule"), top.path / "sub/deep") == "deep/new"
    environment.run("git", "init", "--quiet", "--bare", environment.directory / "bare")
    assert await found(RealRepository(environment.directory / "bare", environment), key) == ""


@pytest.mark.parametrize("tuned", ["annex.tune.objecthash1", "annex.tune.objecthashlower"])
async def test_files_are_found_in_a_tuned_repository(environment: Environment, tuned: str) -> None:
    environment.run("git", "init", "--quiet", environment.directory / "tuned")
    real = RealRepository(environment.directory / "tuned", environment)
    real.annex("init", "--quiet", "tuned", "-c", f"{tuned}=true")
    assert await found(real, real.add("some/file", b"content")) == "some/file"


async def test_files_are_found_in_a_sha256_repository(environment: Environment) -> None:
    environment.run("git", "init", "--quiet", "--object-format=sha256", environment.directory / "long")
    real = RealRepository(environment.directory / "long", environment)
    real.annex("init", "--quiet", "long")
    assert await found(real, real.add("some/file", b"content")) == "some/file"
