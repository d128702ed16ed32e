"""Clusters, remotes and preferences in the git-annex branch, compared with what git-annex was told."""

from __future__ import annotations

import sys

import pytest

from cluster_remote.annex.branchlog import BranchLogs, read_files
from cluster_remote.annex.clusterlog import ClusterLog
from cluster_remote.annex.errors import BranchUnreadable, CommandFailed
from cluster_remote.annex.merge import refresh
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from tests.support.environment import Environment
from tests.support.repositories import GATEWAY_DESCRIPTION, Cluster
from tests.support.repositories import Repository as RealRepository

from .test_locationlog import TRACE
from .test_logformat import commit_file

pytestmark = pytest.mark.anyio


def uuid_of(real: RealRepository, remote: str) -> UUID:
    return UUID(real.config(f"remote.{remote}.annex-uuid") or "")


async def cluster_log(repository: Repository) -> ClusterLog:
    return (await BranchLogs.read(repository, ("cluster.log",))).clusters


async def test_clusters_nodes_and_names_match_the_gateways(cluster: Cluster, client: RealRepository) -> None:
    uuid, gateway = UUID(cluster.uuid), UUID(cluster.gateway.uuid)
    nodes = [UUID(node.uuid) for node in cluster.nodes]
    with client.environment.applied(client.path):
        repository = Repository.here()
        logs = await BranchLogs.read(repository)
        alone = await cluster_log(repository)
    assert logs.clusters.nodes(uuid) == set(nodes) == alone.nodes(uuid)
    assert logs.clusters.clusters() == {uuid} == alone.clusters()
    assert logs.clusters.nodes(gateway) == frozenset()
    assert logs.proxied == {gateway: {cluster.name: uuid, **{f"node{n + 1}": node for n, node in enumerate(nodes)}}}
    told = {UUID(u): description for u, description in cluster.gateway.descriptions().items()}
    assert logs.descriptions == {**told, UUID(client.uuid): "client (desk)"}
    assert logs.descriptions[gateway] == GATEWAY_DESCRIPTION


async def test_a_removed_node_is_no_longer_in_the_cluster(cluster: Cluster) -> None:
    gateway = cluster.gateway
    with gateway.environment.applied(gateway.path):
        for gone in (1, 2, 3):
            gateway.git("config", "--unset", f"remote.node{gone}.annex-cluster-node")
            gateway.annex("updatecluster")
            nodes = (await cluster_log(Repository.here())).nodes(UUID(cluster.uuid))
            assert nodes == {UUID(node.uuid) for node in cluster.nodes[gone:]}


async def test_descriptions_may_contain_any_text(real: RealRepository, here: Repository) -> None:
    for description in ("two  spaces", "an old timestamp=5s", "é & ünïcödé %", "trailing "):
        real.annex("describe", "here", description)
        assert (await BranchLogs.read(here)).descriptions[here.uuid] == description


@pytest.mark.parametrize("private", [[], ["--private"]])
async def test_parameters_of_special_remotes_are_unescaped(
    real: RealRepository, here: Repository, private: list[str]
) -> None:
    real.environment.env["STARTED"] = str(real.environment.directory / "started")
    real.environment.program("git-annex-remote-trace", TRACE)
    url = "a b&c%d\te;f=é&"
    real.annex(
        "initremote", "--quiet", *private, "t", "type=external", "externaltype=trace", "encryption=none", f"url={url}"
    )
    logs = await BranchLogs.read(here)
    assert logs.remotes[uuid_of(real, "t")] == {
        "name": "t",
        "type": "external",
        "externaltype": "trace",
        "encryption": "none",
        "url": url,
    }
    assert logs.descriptions[uuid_of(real, "t")] == "t"


async def test_a_sameas_remote_is_configured_under_its_own_uuid(cluster: Cluster, client: RealRepository) -> None:
    client.environment.env["STARTED"] = str(client.environment.directory / "started")
    client.environment.program("git-annex-remote-trace", TRACE)
    client.annex(
        "initremote", "--quiet", "c", f"--sameas={cluster.uuid}", "type=external", "externaltype=trace",
        "encryption=none",
    )  # fmt: skip
    with client.environment.applied(client.path):
        remotes = (await BranchLogs.read(Repository.here())).remotes
    own = UUID(client.config("remote.c.annex-config-uuid") or "")
    assert remotes[own]["sameas-uuid"] == cluster.uuid
    assert remotes[own]["sameas-name"] == "c"
    assert UUID(cluster.uuid) not in remotes


async def test_trust_groups_and_preferred_content_are_read(real: RealRepository, here: Repository) -> None:
    uuids = {}
    for name in ("a", "b", "c", "d", "e"):
        (real.path / name).mkdir()
        real.annex("initremote", "--quiet", name, "type=directory", f"directory={name}", "encryption=none")
        uuids[name] = uuid_of(real, name)
    a, b, c, d, e = uuids.values()
    empty = await BranchLogs.read(here)
    assert (empty.trust, empty.groups, empty.preferred, empty.required) == ({}, {}, {}, {})
    real.annex("trust", "--force", "a")
    real.annex("untrust", "b")
    real.annex("semitrust", "c")
    real.annex("dead", "--force", "d")
    real.annex("group", "a", "archive")
    real.annex("group", "a", "backup")
    real.annex("wanted", "b", "include=*.mp3 or (not copies=2)")
    real.annex("required", "c", "anything")
    real.annex("wanted", "e", "nothing")
    real.annex("wanted", "e", "")
    logs = await BranchLogs.read(here)
    assert logs.trust == {a: "trusted", b: "untrusted", c: "semitrusted", d: "dead"}
    assert logs.groups == {a: {"archive", "backup"}}
    assert logs.preferred == {b: "include=*.mp3 or (not copies=2)"}
    assert logs.required == {c: "anything"}
    assert [logs.has_preferred_content([u]) for u in (a, b, c, d, e)] == [False, True, True, False, False]
    assert logs.has_preferred_content([a, b])
    assert not logs.has_preferred_content([])


async def test_the_journal_wins_over_the_branch_at_equal_timestamps(real: RealRepository, here: Repository) -> None:
    lines = f"{here.uuid} committed timestamp=5s\n".encode()
    commit_file(real, b"uuid.log", lines)
    (here.annex_dir / "journal" / "uuid.log").write_bytes(lines.replace(b"committed", b"journalled"))
    assert (await BranchLogs.read(here)).descriptions[here.uuid] == "journalled"
    told = real.annex("info", "--fast", str(here.uuid)).stdout.decode()
    assert "description: journalled" in told


async def test_logs_that_were_not_read_are_empty(real: RealRepository, here: Repository) -> None:
    logs = await BranchLogs.read(here, ["trust.log"])
    assert logs.descriptions == {}
    assert logs.clusters.clusters() == frozenset()


async def test_without_a_git_annex_branch_every_log_is_empty(environment: Environment) -> None:
    environment.run("git", "init", "--quiet", "plain")
    with environment.applied(environment.directory / "plain"):
        logs = await BranchLogs.read(Repository.here())
    assert set(logs.files.values()) == {b""}


@pytest.mark.usefixtures("commit_while_reading")
async def test_a_line_moving_from_the_journal_to_the_branch_is_not_missed(
    real: RealRepository, here: Repository
) -> None:
    real.annex("describe", "here", "the new desk", env={"GIT_CONFIG_PARAMETERS": "'annex.alwayscommit=false'"})
    assert (here.annex_dir / "journal" / "uuid.log").exists()
    assert (await BranchLogs.read(here, ["uuid.log"])).descriptions[here.uuid] == "the new desk"
    assert not list((here.annex_dir / "journal").iterdir())


async def test_uncommitted_journal_lines_count(real: RealRepository, here: Repository) -> None:
    real.git("config", "annex.alwayscommit", "false")
    real.annex("describe", "here", "the new desk")
    assert (here.annex_dir / "journal" / "uuid.log").exists()
    assert (await BranchLogs.read(here)).descriptions[here.uuid] == "the new desk"
    assert b"the new desk" not in real.git("show", "git-annex:uuid.log").stdout


async def test_a_damaged_log_reads_as_empty(real: RealRepository, here: Repository) -> None:
    told = real.git("ls-tree", "git-annex", "uuid.log").stdout.decode()
    blob = told.split()[2]
    file = here.git_dir / "objects" / blob[:2] / blob[2:]
    file.chmod(0o600)
    file.unlink()
    assert (await BranchLogs.read(here)).descriptions == {}


async def test_an_unparsable_answer_is_an_error(real: RealRepository, here: Repository) -> None:
    git = real.environment.which("git")
    real.environment.program(
        "git",
        f'#!{sys.executable}\nimport os, sys\nif "cat-file" in sys.argv:\n    print("what?")\n'
        f'else:\n    os.execv("{git}", sys.argv)\n',
    )
    with pytest.raises(BranchUnreadable, match=r"'what\?'"):
        await read_files(here, ["uuid.log"])


class TestRefresh:
    """Merging what was fetched."""

    async def test_a_fetched_branch_is_merged(self, cluster: Cluster, client: RealRepository) -> None:
        cluster.gateway.annex("describe", cluster.nodes[0].uuid, "renamed")
        client.git("fetch", "--quiet", "origin")
        node = UUID(cluster.nodes[0].uuid)
        with client.environment.applied(client.path):
            repository = Repository.here()
            assert (await BranchLogs.read(repository)).descriptions[node] != "renamed"
            await refresh(repository)
            assert (await BranchLogs.read(repository)).descriptions[node] == "renamed"

    async def test_the_first_merge_in_a_new_clone_reveals_the_cluster(
        self, cluster: Cluster, environment: Environment
    ) -> None:
        path = environment.directory / "fresh"
        environment.run("git", "clone", "--quiet", cluster.gateway.path, path)
        environment.run("git", "annex", "init", "--quiet", "fresh", cwd=path)
        with environment.applied(path):
            await refresh(Repository.here())
            found = await cluster_log(Repository.here())
        assert found.nodes(UUID(cluster.uuid)) == {UUID(node.uuid) for node in cluster.nodes}

    async def test_merging_leaves_the_checked_out_branch_alone(self, real: RealRepository, here: Repository) -> None:
        """`git annex merge` would merge a synced branch into it."""
        head = real.git("rev-parse", "HEAD").stdout
        real.git("checkout", "--quiet", "-b", "synced/main")
        real.git("commit", "--quiet", "--allow-empty", "--message", "elsewhere")
        real.git("checkout", "--quiet", "main")
        await refresh(here)
        assert real.git("rev-parse", "HEAD").stdout == head

    async def test_the_journal_is_committed(self, real: RealRepository, here: Repository) -> None:
        real.annex("setpresentkey", "WORM--x", real.uuid, "1")
        assert list((here.annex_dir / "journal").iterdir())
        await refresh(here)
        assert not list((here.annex_dir / "journal").iterdir())

    async def test_a_repository_git_annex_refuses_is_an_error(self, environment: Environment) -> None:
        environment.run("git", "init", "--quiet", "plain")
        with environment.applied(environment.directory / "plain"):
            repository = Repository.here()
            with pytest.raises(
                CommandFailed, match=r"git annex groupwanted -- nobody: ended with exit code 1\n.*git-annex init"
            ):
                await refresh(repository)
