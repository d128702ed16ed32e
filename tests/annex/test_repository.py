"""Finding the repository, its configuration, and commands run in it or in another."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.annex.errors import CommandFailed, NotARepository, NotInitialised
from cluster_remote.annex.gitconfig import GitConfig
from cluster_remote.annex.repository import LOCAL_VARIABLES, Repository, foreign_environment
from cluster_remote.annex.waiting import Completed
from cluster_remote.p2p.key import UUID, encode
from tests.support.environment import Environment
from tests.support.repositories import Cluster, make_repository
from tests.support.repositories import Repository as RealRepository
from tests.support.slow import only_in_all

from .conftest import special_remote

# A special remote that says what cluster_remote makes of the place where git-annex starts it.
PROBE = special_remote(
    """\
say("GETGITDIR")
answer = sys.stdin.readline().rstrip("\\n").partition(" ")[2]
found = Repository.of_remote(answer)
with open(os.environ["PROBE_ANSWER"], "w") as f:
    json.dump([str(found.uuid), str(found.annex_dir), str(found.work_tree), found.environment()], f)
""",
    first="import json, os\nfrom cluster_remote.annex.repository import Repository",
)


@pytest.fixture
def other(environment: Environment) -> RealRepository:
    return make_repository(environment, environment.directory / "other", "another one")


def linked_work_tree(real: RealRepository) -> Path:
    path = real.path.parent / "linked"
    real.git("worktree", "add", "--quiet", "--detach", path)
    return path


def submodule(real: RealRepository, other: RealRepository) -> RealRepository:
    real.git("-c", "protocol.file.allow=always", "submodule", "--quiet", "add", other.path, "sub")
    found = RealRepository(real.path / "sub", real.environment)
    found.annex("init", "--quiet", "submodule")
    return found


def bare(real: RealRepository) -> RealRepository:
    path = real.path.parent / "bare.git"
    real.environment.run("git", "clone", "--quiet", "--bare", real.path, path)
    found = RealRepository(path, real.environment)
    found.annex("init", "--quiet", "bare one")
    return found


def in_place(real: RealRepository, path: Path) -> Repository:
    with real.environment.applied(path):
        return Repository.here()


def test_the_repository_is_found_from_a_subdirectory(real: RealRepository) -> None:
    below = real.path / "a b/c"
    below.mkdir(parents=True)
    found = in_place(real, below)
    assert found.git_dir == real.path / ".git"
    assert found.work_tree == real.path
    assert found.cwd == below


def test_a_directory_may_be_given_instead_of_the_working_directory(real: RealRepository, other: RealRepository) -> None:
    with real.environment.applied(real.path):
        assert Repository.here(other.path).git_dir == other.path / ".git"


def test_outside_any_repository_the_error_says_what_to_do(environment: Environment) -> None:
    with environment.applied(environment.directory), pytest.raises(NotARepository) as caught:
        Repository.here()
    assert str(environment.directory) in str(caught.value)
    assert "git annex init" in str(caught.value)
    assert "not a git repository" in str(caught.value)


def test_a_missing_git_is_named(environment: Environment) -> None:
    environment.env["PATH"] = str(environment.bin)
    with environment.applied(environment.directory), pytest.raises(CommandFailed, match=r"git .*cannot be started"):
        Repository.here()


def test_a_missing_git_directory_is_an_error(environment: Environment) -> None:
    with environment.applied(environment.directory), pytest.raises(NotARepository, match="does not exist"):
        Repository.of_remote("gone/.git")


def test_in_a_repository_without_git_annex_the_error_says_what_to_do(environment: Environment) -> None:
    environment.run("git", "init", "--quiet", "plain")
    with environment.applied(environment.directory / "plain"), pytest.raises(NotInitialised, match="git annex init"):
        _ = Repository.here().uuid


def test_an_unusable_uuid_is_an_error_that_shows_it(real: RealRepository) -> None:
    real.git("config", "annex.uuid", "what")
    with real.environment.applied(real.path), pytest.raises(NotInitialised, match="'what'"):
        _ = Repository.here().uuid


@pytest.mark.parametrize("place", ["top", "subdirectory", "linked work tree", "submodule", "bare", "git directory"])
def test_we_and_git_annex_find_the_same_repository(real: RealRepository, other: RealRepository, place: str) -> None:
    """The annex directory is where a location that git-annex records from there goes to."""
    match place:
        case "top":
            path, annex_dir = real.path, real.path / ".git/annex"
        case "subdirectory":
            path, annex_dir = real.path / "below", real.path / ".git/annex"
            path.mkdir()
        case "linked work tree":
            path, annex_dir = linked_work_tree(real), real.path / ".git/annex"
        case "submodule":
            path, annex_dir = submodule(real, other).path, real.path / ".git/modules/sub/annex"
        case "bare":
            path = bare(real).path
            annex_dir = path / "annex"
        case _:
            path, annex_dir = real.path / ".git", real.path / ".git/annex"
    found = in_place(real, path)
    with real.environment.applied(path):
        assert found.annex_dir == annex_dir
        subprocess.run(
            ["git", "annex", "setpresentkey", "--quiet", "WORM--x", "00000001-1111-4111-8111-111111111111", "1"],
            check=True,
            cwd="/",
            env=found.environment(),
            timeout=60,
        )
    assert [file.name for file in (annex_dir / "journal").glob("*_WORM--x.log")]


@pytest.mark.parametrize("place", ["top", "subdirectory", "linked work tree", "submodule", "bare"])
def test_a_special_remote_uses_the_repository_that_started_it(
    real: RealRepository, other: RealRepository, place: str
) -> None:
    annex_dir, work_tree, expected = real.path / ".git/annex", str(real.path), real.uuid
    match place:
        case "subdirectory":
            path = real.path / "a b"
            path.mkdir()
        case "linked work tree":
            path = linked_work_tree(real)
            work_tree = str(path)
        case "submodule":
            inner = submodule(real, other)
            path, expected, work_tree = inner.path, inner.uuid, str(inner.path)
            annex_dir = real.path / ".git/modules/sub/annex"
        case "bare":
            path = bare(real).path
            expected = RealRepository(path, real.environment).uuid
            annex_dir, work_tree = path / "annex", "None"
        case _:
            path = real.path
    real.environment.program("git-annex-remote-probe", PROBE)
    answer = real.environment.directory / "answer"
    real.environment.run(
        "git", "annex", "initremote", "--quiet", "p", "type=external", "externaltype=probe", "encryption=none",
        cwd=path,
        env={"PROBE_ANSWER": str(answer)},
    )  # fmt: skip
    uuid, told_annex_dir, told_work_tree, env = json.loads(answer.read_text())
    assert (uuid, told_annex_dir, told_work_tree) == (expected, str(annex_dir), work_tree)
    assert Path(env["GIT_DIR"]).is_absolute()
    assert env.get("GIT_WORK_TREE", "None") == work_tree


def test_children_use_our_repository_wherever_they_run(real: RealRepository, other: RealRepository) -> None:
    found = in_place(real, real.path)
    with other.environment.applied(other.path):
        told = subprocess.run(
            ["git", "rev-parse", "--absolute-git-dir", "--show-toplevel"],
            env=found.environment(), capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    assert told.stdout.splitlines() == [str(real.path / ".git"), str(real.path)]


def test_children_in_other_repositories_do_not_use_ours(
    real: RealRepository, other: RealRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    with real.environment.applied(real.path):
        monkeypatch.setenv("GIT_DIR", str(real.path / ".git"))
        monkeypatch.setenv("GIT_WORK_TREE", ".")
        monkeypatch.setenv("GIT_INDEX_FILE", str(real.path / "index"))
        monkeypatch.setenv("GIT_CONFIG_COUNT", "1")
        monkeypatch.setenv("GIT_CONFIG_KEY_0", "annex.uuid")
        monkeypatch.setenv("GIT_CONFIG_VALUE_0", "wrong")
        monkeypatch.setenv("GIT_EXEC_PATH", subprocess.check_output(["git", "--exec-path"], text=True).strip())
        foreign = foreign_environment()
        told = subprocess.run(
            ["git", "config", "annex.uuid"], cwd=other.path, env=foreign,
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
    assert told.stdout.strip() == other.uuid
    assert "GIT_EXEC_PATH" in foreign
    assert foreign["HOME"] == str(real.environment.home)
    assert not [name for name in foreign if name.startswith(("GIT_CONFIG_KEY", "GIT_CONFIG_VALUE"))]


def test_every_variable_that_binds_git_to_a_repository_is_known(environment: Environment) -> None:
    listed = environment.run("git", "rev-parse", "--local-env-vars").stdout.decode().split()
    assert set(listed) <= LOCAL_VARIABLES


def test_the_configuration_matches_gits(real: RealRepository) -> None:
    for name, value in (
        ("remote.disk One.annex-UUID", "11111111-1111-4111-8111-111111111111"),
        ("remote.a.b.url", "/somewhere"),
        ("remote.nas.annex-cluster-node", "mycluster"),
        ("Annex.NumCopies", "2"),
        ("annex.cluster.MyCluster", "ac111111-1111-8111-8111-111111111111"),
        ("annex.cluster.broken", "none"),
        ("user.motto", "two\nlines"),
    ):
        real.git("config", name, value)
    real.git("config", "--add", "remote.nas.annex-cluster-node", "other")
    config = in_place(real, real.path).config()
    assert config.remotes() == ["disk One", "a.b", "nas"]
    assert config.remote("disk One", "annex-uuid") == "11111111-1111-4111-8111-111111111111"
    assert config.remote("Disk One", "annex-uuid") is None
    assert config.all("remote.nas.annex-cluster-node") == ("mycluster", "other")
    assert config.get("REMOTE.nas.Annex-Cluster-Node") == "other"
    assert config.get("annex.numcopies") == "2"
    assert config.get("user.motto") == "two\nlines"
    assert config.get("no.such", "default") == "default"
    assert config.clusters() == {"mycluster": UUID("ac111111-1111-8111-8111-111111111111")}


def test_a_gateways_clusters_are_found_by_name(cluster: Cluster) -> None:
    found = in_place(cluster.gateway, cluster.gateway.path)
    assert found.config().clusters() == {cluster.name: UUID(cluster.uuid)}


@pytest.mark.parametrize(
    "value", ["true", "-1", "", "Off", *only_in_all("yes", "on", "1", "2", "false", "no", "off", "0", "TRUE")]
)
def test_booleans_are_parsed_as_git_does(real: RealRepository, value: str) -> None:
    real.git("config", "some.thing", value)
    told = real.git("config", "--type=bool", "some.thing").stdout.decode().strip()
    assert in_place(real, real.path).config().boolean("some.thing") is (told == "true")


def test_a_name_without_a_value_is_true(real: RealRepository) -> None:
    with (real.path / ".git/config").open("a") as f:
        f.write("[some]\n\tthing\n")
    config = in_place(real, real.path).config()
    assert config.boolean("some.thing")
    assert not config.boolean("some.other")
    assert config.boolean("some.other", default=True)


names = st.text("abcXYZ.- é", min_size=1)


@given(names, st.lists(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_any_value_in_any_subsection_round_trips(subsection: str, values: list[str]) -> None:
    listing = b"".join(encode(f"remote.{subsection}.url\n{value}\0") for value in values)
    config = GitConfig.parse(listing)
    assert config.all(f"Remote.{subsection}.URL") == tuple(values)
    assert config.remotes() == ([subsection] if values else [])


@pytest.fixture
def cats(environment: Environment) -> Iterator[Repository]:
    environment.run("git", "init", "--quiet", "plain")
    with environment.applied(environment.directory / "plain"):
        yield Repository.here()


class TestRun:
    """One-shot commands."""

    pytestmark = pytest.mark.anyio

    async def test_a_command_gets_its_input_and_returns_its_output(self, cats: Repository) -> None:
        """More than any pipe holds, both ways at once."""
        content = os.urandom(3_000_000)
        done = await cats.run("cat", input=content)
        assert done.stdout == content
        assert done.returncode == 0

    async def test_a_command_that_reads_no_input_is_no_error(self, cats: Repository) -> None:
        assert (await cats.run("true", input=b"x" * 1_000_000)).stdout == b""

    async def test_an_error_carries_command_exit_code_and_stderr_tail(self, cats: Repository) -> None:
        with pytest.raises(CommandFailed) as caught:
            await cats.run("sh", "-c", "echo it broke >&2; exit 7")
        assert caught.value.returncode == 7
        assert caught.value.complaint == "it broke"
        assert str(caught.value).endswith("ended with exit code 7\nit broke")

    async def test_an_accepted_exit_code_is_no_error(self, cats: Repository) -> None:
        assert (await cats.run("sh", "-c", "exit 7", accept=(0, 7))).returncode == 7

    async def test_a_command_that_times_out_is_killed_with_its_children(self, cats: Repository) -> None:
        with anyio.fail_after(20), pytest.raises(CommandFailed, match=r"did not end within 0\.5 seconds"):
            await cats.run("sh", "-c", "sleep 600 & sleep 600", timeout=0.5)

    async def test_a_command_that_outlives_its_output_is_killed(self, cats: Repository) -> None:
        with anyio.fail_after(20), pytest.raises(CommandFailed, match="did not end"):
            await cats.run("sh", "-c", "exec >&- 2>&-; sleep 600", timeout=0.5)

    async def test_cancellation_kills_the_command(self, cats: Repository) -> None:
        with anyio.fail_after(20), anyio.move_on_after(0.5) as scope:
            await cats.run("sh", "-c", "sleep 600 & sleep 600")
        assert scope.cancelled_caught

    async def test_endless_output_is_cut_off(self, cats: Repository) -> None:
        with anyio.fail_after(60), pytest.raises(CommandFailed, match="wrote more than"):
            await cats.run("yes")

    async def test_a_missing_command_is_named(self, cats: Repository) -> None:
        with pytest.raises(CommandFailed, match="no-such-program: cannot be started"):
            await cats.run("no-such-program")


@pytest.mark.anyio
async def test_the_configuration_is_reread_only_when_one_of_its_files_changes(
    real: RealRepository, monkeypatch: pytest.MonkeyPatch
) -> None:
    included = real.path / "included"
    included.write_text("[test]\n\tincluded = 1\n")
    real.git("config", "include.path", str(included))
    repository = Repository.here(real.path)
    asked = 0
    run = Repository.run

    async def counted(self: Repository, *argv: str, timeout: float = 60.0) -> Completed:
        nonlocal asked
        asked += 1
        return await run(self, *argv, timeout=timeout)

    monkeypatch.setattr(Repository, "run", counted)
    results: list[GitConfig] = []

    async def read() -> None:
        results.append(await repository.current_config())

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(read)
    assert {config.get("test.included") for config in results} == {"1"}
    assert asked == 1
    included.write_text("[test]\n\tincluded = 22\n")
    assert (await repository.current_config()).get("test.included") == "22"
    real.git("config", "test.own", "3")
    assert (await repository.current_config()).get("test.own") == "3"
    assert (await repository.current_config()).get("test.own") == "3"
    assert asked == 3
