"""The steps of a plan that change a cluster of this repository: its nodes, its name and its description."""

from __future__ import annotations

from dataclasses import dataclass

from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.branchwrite import record_nodes
from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.merge import refresh
from cluster_remote.lifecycle.runner import Later, Runner, as_typed, resolve_words
from cluster_remote.lifecycle.steps import Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import printable

__all__ = ["CheckNodes", "Describe", "InitCluster", "RecordNodes", "RestoreLogs"]


@dataclass(frozen=True)
class InitCluster(Step):
    """A new cluster, under a name that this repository does not use yet."""

    name: str
    shares: bool = True

    def shown(self) -> str:
        return f"git annex initcluster {self.name}"

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "initcluster", self.name)

    async def undo(self, runner: Runner) -> None:
        # The description stays in uuid.log; the next setup with this name reuses the cluster.
        if self.name in (await runner.repository.current_config()).clusters():
            await runner.attempt("git", "config", "--unset-all", f"annex.cluster.{self.name}")


@dataclass(frozen=True)
class Describe(Step):
    """The description of a cluster in uuid.log; `before` is the old one."""

    uuid: UUID
    words: str
    before: str
    shares: bool = True

    def shown(self) -> str:
        return as_typed(("git", "annex", "describe", self.uuid.text, self.words))

    async def do(self, runner: Runner) -> None:
        await runner.run("git", "annex", "describe", self.uuid.text, self.words)

    async def undo(self, runner: Runner) -> None:
        await runner.attempt("git", "annex", "describe", self.uuid.text, self.before)


@dataclass(frozen=True)
class RestoreLogs(Step):
    """Undoes what later steps write to cluster.log and proxy.log; does nothing by itself.

    It comes first in a plan, so it is undone last, when the configuration has been restored.
    """

    uuid: UUID
    logs: BranchLogs

    def shown(self) -> str:
        return ""

    async def do(self, runner: Runner) -> None:
        """Do nothing."""

    async def undo(self, runner: Runner) -> None:
        await refresh(runner.repository)
        now = await BranchLogs.read(runner.repository)
        if now.proxied.get(self.uuid, {}) != self.logs.proxied.get(self.uuid, {}):
            await runner.attempt("git", "annex", "updateproxy")
        for cluster in now.clusters.clusters():
            nodes = self.logs.clusters.nodes(cluster)
            if now.clusters.nodes(cluster) != nodes:
                await record_nodes(runner.repository, cluster, nodes)


@dataclass(frozen=True)
class RecordNodes(Step):
    """The nodes of a cluster in cluster.log, written directly where `git annex updatecluster` would lose some."""

    cluster: UUID | Later
    nodes: frozenset[UUID]
    why: str
    shares: bool = True

    def shown(self) -> str:
        return f"# {self.why}: write the {len(self.nodes)} nodes of {self.cluster} to cluster.log"

    async def do(self, runner: Runner) -> None:
        runner.say(self.shown())
        cluster = self.cluster
        if isinstance(cluster, Later):
            cluster = UUID((await resolve_words([cluster], runner))[0])
        await record_nodes(runner.repository, cluster, self.nodes)


@dataclass(frozen=True)
class CheckNodes(Step):
    """A check that cluster.log has the requested nodes: git-annex only warns if it does not accept one."""

    cluster: str
    nodes: frozenset[UUID]

    def shown(self) -> str:
        return ""

    async def do(self, runner: Runner) -> None:
        await refresh(runner.repository)
        logs = await BranchLogs.read(runner.repository)
        config = await runner.repository.current_config()
        uuid = config.clusters().get(self.cluster)
        listed = frozenset[UUID]() if uuid is None else logs.clusters.nodes(uuid)
        if listed == self.nodes:
            return
        names = {config.remote(name, "annex-uuid"): name for name in config.remotes()}

        def words(uuids: frozenset[UUID]) -> str:
            return ", ".join(
                sorted(names.get(each.text) or printable(logs.descriptions.get(each, each.text)) for each in uuids)
            )

        if self.nodes - listed:
            raise AnnexError(
                f"git-annex did not accept {words(self.nodes - listed)} as a node of the cluster {self.cluster}; the "
                "reason is above"
            )
        raise AnnexError(
            f"{words(listed - self.nodes)} is still a node of the cluster {self.cluster}; the reason is above"
        )
