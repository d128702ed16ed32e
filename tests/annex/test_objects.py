"""Content is found where git-annex stores it, and nothing else is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cluster_remote.annex.objects import Objects
from cluster_remote.p2p.key import Key
from tests.support.environment import Environment
from tests.support.repositories import Repository, make_repository

CONTENT = b"some content"


def stored(repository: Repository) -> tuple[Key, Path]:
    key = repository.add("file", CONTENT)
    path = repository.object_path(key)
    assert path is not None
    return Key(key), path


@pytest.fixture
def repository(environment: Environment) -> Repository:
    return make_repository(environment, environment.directory / "there", "there")


def test_objects_are_found_in_a_work_tree_and_in_a_bare_repository(
    environment: Environment, repository: Repository
) -> None:
    key, _ = stored(repository)
    bare = environment.directory / "bare.git"
    repository.git("clone", "--quiet", "--bare", str(repository.path), str(bare))
    repository.git("remote", "add", "bare", str(bare))
    repository.git("-C", str(bare), "annex", "init", "--quiet")
    assert Objects(str(bare)).read(key, 100) is None
    repository.annex("copy", "--quiet", "--to", "bare", "file")
    for place in (repository.path, bare):
        objects = Objects(str(place))
        # The second time it looks first where it found the last one.
        assert [objects.read(key, 100) for _ in range(2)] == [CONTENT, CONTENT]


def test_an_object_of_another_length_is_not_read(repository: Repository) -> None:
    key, path = stored(repository)
    objects = Objects(str(repository.path))
    assert objects.read(key, len(CONTENT)) == CONTENT
    assert objects.read(key, len(CONTENT) - 1) is None
    assert objects.read(Key("URL--of-unknown-length"), 100) is None
    path.chmod(0o644)
    path.write_bytes(CONTENT[:-1])
    assert objects.read(key, 100) is None


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "missing"])
def test_only_regular_files_are_read_and_opening_never_blocks(repository: Repository, kind: str) -> None:
    key, path = stored(repository)
    path.parent.chmod(0o755)
    if kind == "symlink":
        path.rename(repository.path / "elsewhere")
        path.symlink_to(repository.path / "elsewhere")
    else:
        path.unlink()
    if kind == "fifo":
        os.mkfifo(path)
    if kind == "directory":
        path.mkdir()
    assert Objects(str(repository.path)).read(key, 100) is None
