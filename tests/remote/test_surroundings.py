"""The remote works on git-annex's repository, wherever and however git-annex is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.testbed import Testbed, initremote, make_testbed
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository


def stored(testbed: Testbed, key: str) -> bool:
    """Return whether every node has the content and the client's location log says so."""
    return testbed.cluster.holders(key) == [True] * 3 and testbed.present(key) == testbed.nodes


def test_the_remote_works_from_a_subdirectory(testbed: Testbed) -> None:
    key = testbed.client.add("a/b c/below", b"from below")
    testbed.environment.run("git", "annex", "copy", "--to", "mycl", "below", cwd=testbed.client.path / "a/b c")
    assert stored(testbed, key)
    testbed.environment.run("git", "annex", "drop", "--force", "below", cwd=testbed.client.path / "a/b c")
    testbed.environment.run("git", "annex", "get", "--from", "mycl", "b c/below", cwd=testbed.client.path / "a")
    assert testbed.client.object_bytes(key) == b"from below"


def test_the_remote_works_with_git_dash_c(testbed: Testbed) -> None:
    key = testbed.client.add("elsewhere", b"from elsewhere")
    testbed.environment.run("git", "-C", "client", "annex", "copy", "--to", "mycl", "elsewhere")
    assert stored(testbed, key)


@pytest.mark.parametrize("how", ["absolute", "relative", "options"])
def test_the_remote_works_with_git_dir_set(testbed: Testbed, how: str) -> None:
    """GIT_DIR must not lead git-annex-shell, nor the processes for the location log, into the wrong repository."""
    key = testbed.client.add(f"set {how}", how.encode())
    top = testbed.client.path
    command = ("git", "annex", "copy", "--to", "mycl", f"set {how}")
    match how:
        case "absolute":
            testbed.environment.run(*command, cwd=top, env={"GIT_DIR": str(top / ".git"), "GIT_WORK_TREE": str(top)})
        case "relative":
            testbed.environment.run(*command, cwd=top, env={"GIT_DIR": ".git", "GIT_WORK_TREE": "."})
        case "options":
            options = (f"--git-dir={top}/.git", f"--work-tree={top}")
            testbed.environment.run(command[0], *options, *command[1:], cwd=top)
    assert stored(testbed, key)


def test_the_remote_works_in_a_linked_work_tree(own_testbed: Testbed) -> None:
    linked = Repository(own_testbed.environment.directory / "linked", own_testbed.environment)
    own_testbed.client.git("worktree", "add", "--quiet", linked.path, "-b", "aside")
    key = linked.add("aside", b"from aside")
    linked.annex("copy", "--to", "mycl", "aside")
    assert stored(own_testbed, key)
    linked.annex("drop", "--force", "aside")
    linked.annex("get", "--from", "mycl", "aside")
    assert (linked.path / "aside").read_bytes() == b"from aside"
    linked.annex("drop", "--from", "mycl", "aside")
    assert own_testbed.present(key) == set()


def test_the_remote_works_in_a_bare_repository(cluster: Cluster, environment: Environment) -> None:
    path = environment.directory / "bare.git"
    environment.run("git", "clone", "--quiet", "--bare", cluster.gateway.path, path)
    bare = Repository(path, environment)
    bare.annex("init", "--quiet", "bare client")
    initremote(bare, "mycl", f"url={cluster.gateway.path}", sameas=cluster.uuid)
    key = "WORM-s4-m1--bare"
    bare.set_key(key, b"bare")
    bare.annex("copy", "--to", "mycl", "--key", key)
    assert cluster.holders(key) == [True] * 3
    known = bare.annex("whereis", "--key", key).stdout.decode()
    assert all(node.uuid in known for node in cluster.nodes)
    bare.annex("drop", "--from", "mycl", "--key", key)
    assert cluster.holders(key) == [False] * 3


def test_the_remote_works_in_a_git_hook(own_testbed: Testbed) -> None:
    """git gives a hook variables about its repository, which must not reach other repositories."""
    hook = own_testbed.client.path / ".git/hooks/post-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec git annex copy --quiet --to mycl hooked\n")
    hook.chmod(0o755)
    key = own_testbed.client.add("hooked", b"by a hook")
    own_testbed.client.git("commit", "--quiet", "--message", "add hooked")
    assert stored(own_testbed, key)


def test_the_remote_works_in_a_git_alias(testbed: Testbed) -> None:
    key = testbed.client.add("aliased/f", b"by an alias")
    alias = "alias.up=!git annex copy --to mycl aliased/f"
    testbed.environment.run("git", "-c", alias, "up", cwd=testbed.client.path / "aliased")
    assert stored(testbed, key)


def test_the_remote_works_with_configuration_on_the_command_line(testbed: Testbed) -> None:
    """It is for this repository alone: the gateway would not do anything with another UUID, for instance."""
    key = testbed.client.add("configured", b"with configuration")
    testbed.client.git("-c", "annex.jobs=2", "-c", "core.bare=false", "annex", "copy", "--to", "mycl", "configured")
    assert stored(testbed, key)


def test_the_remote_works_in_directories_of_any_name(environment: Environment) -> None:
    testbed = make_testbed(environment, environment.directory / "it's ünï q $(x) %20 &")
    key = testbed.client.add("f", b"in an odd place")
    testbed.client.annex("copy", "--to", "mycl", "f")
    assert stored(testbed, key)
    testbed.client.annex("drop", "--force", "f")
    testbed.client.annex("get", "--from", "mycl", "f")
    assert testbed.client.object_bytes(key) == b"in an odd place"


def test_the_remote_works_through_a_symlink_to_the_repository(testbed: Testbed) -> None:
    link = testbed.environment.directory / "link"
    link.symlink_to(testbed.client.path)
    key = testbed.client.add("linked", b"by a link")
    testbed.environment.run("git", "annex", "copy", "--to", "mycl", "linked", cwd=link)
    link.unlink()
    assert stored(testbed, key)


@pytest.mark.parametrize("version", ["unlocked", "adjusted"])
def test_the_remote_works_with_unlocked_files(own_testbed: Testbed, version: str) -> None:
    key = own_testbed.client.add("f", b"unlocked")
    own_testbed.client.git("commit", "--quiet", "--message", "add f")
    if version == "unlocked":
        own_testbed.client.annex("unlock", "f")
    else:
        own_testbed.client.annex("adjust", "--unlock")
    assert not (own_testbed.client.path / "f").is_symlink()
    own_testbed.client.annex("move", "--to", "mycl", "f")
    assert stored(own_testbed, key)
    own_testbed.client.annex("get", "--from", "mycl", "f")
    assert (own_testbed.client.path / "f").read_bytes() == b"unlocked"


def test_the_remote_works_with_alwayscommit_false(own_testbed: Testbed) -> None:
    own_testbed.client.git("config", "annex.alwayscommit", "false")
    key = own_testbed.client.add("f", b"in the journal")
    own_testbed.client.annex("copy", "--to", "mycl", "f")
    assert stored(own_testbed, key)
    assert list((own_testbed.client.path / ".git/annex/journal").glob("*.log"))


def test_the_remote_works_in_a_private_repository(own_testbed: Testbed) -> None:
    """The log must name the nodes but not the client itself."""
    own_testbed.client.git("config", "annex.private", "true")
    key = own_testbed.client.add("f", b"by an unknown client")
    own_testbed.client.annex("copy", "--to", "mycl", "f")
    assert stored(own_testbed, key)
    log = own_testbed.client.git("grep", "-h", "-e", " 1 ", "git-annex", "--", f"*{key}.log").stdout.decode()
    assert {line.split()[-1] for line in log.splitlines()} == own_testbed.nodes


def test_the_remote_works_without_a_home_directory(testbed: Testbed, tmp_path: Path) -> None:
    """As in a container or a service: a home that is not there, and next to no variables."""
    key = testbed.client.add("homeless", b"without a home")
    kept = {name: testbed.environment.env[name] for name in ("PATH", "GIT_CONFIG_GLOBAL", "CLUSTER_REMOTE_TEST")}
    words = [f"{name}={value}" for name, value in {**kept, "HOME": str(tmp_path / "none")}.items()]
    testbed.environment.run(
        "env", "-i", *words, "git", "annex", "copy", "--to", "mycl", "homeless", cwd=testbed.client.path
    )
    assert stored(testbed, key)
