"""Wherever and however git-annex is run: the remote works on the repository that git-annex means."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.remote.sites import Site, initremote, make_site
from tests.support.environment import Environment
from tests.support.repositories import Cluster, Repository


def stored(site: Site, key: str) -> bool:
    """Whether a content is on every node, and the client's location log knows it."""
    return site.cluster.holders(key) == [True] * 3 and site.present(key) == site.nodes


def test_from_a_subdirectory(site: Site) -> None:
    key = site.client.add("a/b c/below", b"from below")
    site.environment.run("git", "annex", "copy", "--to", "mycl", "below", cwd=site.client.path / "a/b c")
    assert stored(site, key)
    site.environment.run("git", "annex", "drop", "--force", "below", cwd=site.client.path / "a/b c")
    site.environment.run("git", "annex", "get", "--from", "mycl", "b c/below", cwd=site.client.path / "a")
    assert site.client.object_bytes(key) == b"from below"


def test_from_elsewhere_with_git_c(site: Site) -> None:
    key = site.client.add("elsewhere", b"from elsewhere")
    site.environment.run("git", "-C", "client", "annex", "copy", "--to", "mycl", "elsewhere")
    assert stored(site, key)


@pytest.mark.parametrize("how", ["absolute", "relative", "options"])
def test_with_git_dir_set(site: Site, how: str) -> None:
    """GIT_DIR must not lead git-annex-shell, nor the processes for the location log, into the wrong repository."""
    key = site.client.add(f"set {how}", how.encode())
    top = site.client.path
    command = ("git", "annex", "copy", "--to", "mycl", f"set {how}")
    match how:
        case "absolute":
            site.environment.run(*command, cwd=top, env={"GIT_DIR": str(top / ".git"), "GIT_WORK_TREE": str(top)})
        case "relative":
            site.environment.run(*command, cwd=top, env={"GIT_DIR": ".git", "GIT_WORK_TREE": "."})
        case "options":
            options = (f"--git-dir={top}/.git", f"--work-tree={top}")
            site.environment.run(command[0], *options, *command[1:], cwd=top)
    assert stored(site, key)


def test_in_a_linked_work_tree(own_site: Site) -> None:
    linked = Repository(own_site.environment.directory / "linked", own_site.environment)
    own_site.client.git("worktree", "add", "--quiet", linked.path, "-b", "aside")
    key = linked.add("aside", b"from aside")
    linked.annex("copy", "--to", "mycl", "aside")
    assert stored(own_site, key)
    linked.annex("drop", "--force", "aside")
    linked.annex("get", "--from", "mycl", "aside")
    assert (linked.path / "aside").read_bytes() == b"from aside"
    linked.annex("drop", "--from", "mycl", "aside")
    assert own_site.present(key) == set()


def test_in_a_bare_repository(cluster: Cluster, environment: Environment) -> None:
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


def test_in_a_hook_of_git(own_site: Site) -> None:
    """git tells a hook about the repository by variables, which are not for others."""
    hook = own_site.client.path / ".git/hooks/post-commit"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text("#!/bin/sh\nexec git annex copy --quiet --to mycl hooked\n")
    hook.chmod(0o755)
    key = own_site.client.add("hooked", b"by a hook")
    own_site.client.git("commit", "--quiet", "--message", "add hooked")
    assert stored(own_site, key)


def test_in_an_alias_of_git(site: Site) -> None:
    key = site.client.add("aliased/f", b"by an alias")
    alias = "alias.up=!git annex copy --to mycl aliased/f"
    site.environment.run("git", "-c", alias, "up", cwd=site.client.path / "aliased")
    assert stored(site, key)


def test_with_configuration_on_the_command_line(site: Site) -> None:
    """It is for this repository alone: the gateway would not do anything with another UUID, for instance."""
    key = site.client.add("configured", b"with configuration")
    site.client.git("-c", "annex.jobs=2", "-c", "core.bare=false", "annex", "copy", "--to", "mycl", "configured")
    assert stored(site, key)


def test_in_directories_of_any_name(environment: Environment) -> None:
    site = make_site(environment, environment.directory / "it's ünï q $(x) %20 &")
    key = site.client.add("f", b"in an odd place")
    site.client.annex("copy", "--to", "mycl", "f")
    assert stored(site, key)
    site.client.annex("drop", "--force", "f")
    site.client.annex("get", "--from", "mycl", "f")
    assert site.client.object_bytes(key) == b"in an odd place"


def test_by_a_link_to_the_repository(site: Site) -> None:
    link = site.environment.directory / "link"
    link.symlink_to(site.client.path)
    key = site.client.add("linked", b"by a link")
    site.environment.run("git", "annex", "copy", "--to", "mycl", "linked", cwd=link)
    link.unlink()
    assert stored(site, key)


@pytest.mark.parametrize("version", ["unlocked", "adjusted"])
def test_with_unlocked_files(own_site: Site, version: str) -> None:
    key = own_site.client.add("f", b"unlocked")
    own_site.client.git("commit", "--quiet", "--message", "add f")
    if version == "unlocked":
        own_site.client.annex("unlock", "f")
    else:
        own_site.client.annex("adjust", "--unlock")
    assert not (own_site.client.path / "f").is_symlink()
    own_site.client.annex("move", "--to", "mycl", "f")
    assert stored(own_site, key)
    own_site.client.annex("get", "--from", "mycl", "f")
    assert (own_site.client.path / "f").read_bytes() == b"unlocked"


def test_in_a_repository_that_commits_by_hand(own_site: Site) -> None:
    own_site.client.git("config", "annex.alwayscommit", "false")
    key = own_site.client.add("f", b"in the journal")
    own_site.client.annex("copy", "--to", "mycl", "f")
    assert stored(own_site, key)
    assert list((own_site.client.path / ".git/annex/journal").glob("*.log"))


def test_in_a_private_repository(own_site: Site) -> None:
    """Where the client itself is not to be mentioned; the nodes are."""
    own_site.client.git("config", "annex.private", "true")
    key = own_site.client.add("f", b"by an unknown client")
    own_site.client.annex("copy", "--to", "mycl", "f")
    assert stored(own_site, key)
    log = own_site.client.git("grep", "-h", "-e", " 1 ", "git-annex", "--", f"*{key}.log").stdout.decode()
    assert {line.split()[-1] for line in log.splitlines()} == own_site.nodes


def test_without_a_home_of_ones_own(site: Site, tmp_path: Path) -> None:
    """As in a container or a service: a home that is not there, and next to no variables."""
    key = site.client.add("homeless", b"without a home")
    kept = {name: site.environment.env[name] for name in ("PATH", "GIT_CONFIG_GLOBAL", "CLUSTER_REMOTE_TEST")}
    words = [f"{name}={value}" for name, value in {**kept, "HOME": str(tmp_path / "none")}.items()]
    site.environment.run("env", "-i", *words, "git", "annex", "copy", "--to", "mycl", "homeless", cwd=site.client.path)
    assert stored(site, key)
