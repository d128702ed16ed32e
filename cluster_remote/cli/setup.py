"""cluster-remote setup: a remote for a cluster, and all that belongs to it, in one command."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import typer

from cluster_remote.cli.completion import candidates, clusters, remotes
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import say
from cluster_remote.remote.settings import BadSettings

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.key import UUID
    from cluster_remote.transport.address import Address

__all__ = ["setup"]

# Seconds for one command of git or git-annex; a fetch over a slow line is the longest.
_TIMEOUT = 3600
# The cost of a cluster without a server, below that of every node, so that git annex sync uploads once.
_SERVERLESS_COST = 50


@dataclass
class Plan:
    """One remote to be made or mended."""

    name: str
    sameas: UUID | None
    parameters: dict[str, str]
    private: bool
    config: dict[str, str] = field(default_factory=dict)


class Commands:
    """Runs commands in the open: each is printed as a user would type it, with its own output."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.ran: list[str] = []

    def run(self, *argv: str) -> None:
        """Raises CommandFailed; the command's own words have gone to the user already."""
        from cluster_remote.annex.errors import CommandFailed

        line = shlex.join(argv)
        self.ran.append(line)
        say(f"$ {line}", bold=True)
        try:
            code = subprocess.run(
                argv, cwd=self._repository.cwd, stdin=subprocess.DEVNULL, timeout=_TIMEOUT, check=False
            ).returncode
        except subprocess.TimeoutExpired:
            raise CommandFailed(argv, None, f"did not end within {_TIMEOUT} seconds") from None
        except OSError as error:
            raise CommandFailed(argv, None, f"cannot be started: {error.strerror}") from None
        if code:
            raise CommandFailed(argv, code, f"ended with exit code {code}; its message is above")

    def output(self, *argv: str) -> str:
        """What a command prints, without showing it: for questions that change nothing. Raises CommandFailed."""
        from cluster_remote.annex.errors import CommandFailed

        try:
            done = subprocess.run(
                argv,
                cwd=self._repository.cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                timeout=60,
                check=False,
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise CommandFailed(argv, None, str(error)) from None
        return done.stdout.decode("utf-8", "surrogateescape")


def setup(
    name: str = typer.Argument(..., metavar="NAME", help="What the remote shall be called.", autocompletion=remotes),
    url: str = typer.Argument(
        "", metavar="[URL]", help="The gateway: /dir, ssh://host/dir, host:dir, unix:/path or tcp://host:port."
    ),
    node: list[str] = typer.Option(
        [],
        "--node",
        metavar="REMOTE",
        help="Without a server: a remote of this repository that shall be a node.",
        autocompletion=candidates,
    ),
    cluster: str = typer.Option("", help="Which of several clusters, by name or UUID.", autocompletion=clusters),
    tracking: str = typer.Option("nodes", help="nodes: each node counts as a copy. remote: the remote counts as one."),
    encryption: str = typer.Option("none", help="With --tracking remote: git-annex's encryption, such as shared."),
    chunk: str = typer.Option("", help="With --tracking remote: the size of chunks, such as 1MiB."),
    share: bool = typer.Option(False, "--share", help="Keep the configuration in the git-annex branch, for everybody."),
    nodes: bool = typer.Option(
        True,
        "--nodes/--no-nodes",
        help="A remote NAME-NODE for every node, so that the copies there can be verified one by one.",
    ),
    timeout: float = typer.Option(None, help="Seconds without progress before the remote gives up (default 60)."),
) -> None:
    """Make a remote for a cluster, or mend it: running it again is harmless.

    Asks the gateway who it is, checks that this repository knows the cluster, and runs the git-annex commands for it,
    each of which is shown. Without a URL the nodes are remotes of this repository and no server is needed.

    Example: cluster-remote setup mycluster ssh://nas.local/srv/annex

    Example: cluster-remote setup mycluster --node disk1 --node nas
    """

    if tracking not in {"nodes", "remote"}:
        raise BadSettings(f"--tracking {tracking}: it can be nodes or remote")
    if tracking == "nodes" and (encryption != "none" or chunk):
        raise BadSettings(
            "encrypted or chunked content on the nodes is no copy that this repository could count; add "
            "--tracking remote"
        )
    if bool(url) == bool(node) and not (not url and cluster):
        raise BadSettings(
            "give either the URL of a gateway, or --node REMOTE for each remote of this repository that shall be a node"
        )
    parameters = {"encryption": encryption, "chunk": chunk, "url": url}
    if timeout is not None:
        parameters["timeout"] = f"{timeout:g}"
    if tracking == "remote":
        parameters["tracking"] = "remote"
        parameters["cluster"] = cluster
    work = Setup(name, parameters, cluster, share, nodes)
    if url:
        run(work.at_address, url)
    else:
        run(work.serverless, node)


class Setup:
    """The work of one `cluster-remote setup`."""

    def __init__(self, name: str, parameters: dict[str, str], cluster: str, share: bool, nodes: bool) -> None:
        from cluster_remote.annex.repository import Repository

        self.name = name
        self.parameters = {key: value for key, value in parameters.items() if value}
        self.cluster = cluster
        self.share = share
        self.nodes = nodes
        self.repository = Repository.here()
        self.commands = Commands(self.repository)
        # Raises NotInitialised here rather than in the middle.
        self.uuid = self.repository.uuid

    @property
    def config(self) -> GitConfig:
        return self.repository.config()

    async def logs(self) -> BranchLogs:
        from cluster_remote.annex.branchlog import BranchLogs
        from cluster_remote.annex.merge import refresh

        await refresh(self.repository)
        return await BranchLogs.read(self.repository)

    # A gateway

    async def at_address(self, url: str) -> None:
        from cluster_remote.transport.address import BadAddress, parse_address

        try:
            address = parse_address(url)
        except BadAddress as error:
            raise BadSettings(str(error)) from None
        if self.parameters.get("tracking") == "remote":
            self.make(await self.logs(), Plan(self.name, None, self.parameters, private=False))
            return
        server = await self._who(url)
        logs = await self._logs_that_know(server, url)
        sameas = self._choose(server, logs)
        plan = Plan(self.name, sameas, self.parameters, not self.share)
        self.make(logs, plan)
        if sameas.is_cluster and self.nodes:
            self._make_nodes(address, sameas, server, logs)

    async def _who(self, url: str) -> UUID:
        from cluster_remote.cli.target import our_remotes, remote_settings, resolve

        config = self.config
        known = self.name in our_remotes(config) and remote_settings(self.name, config, await self.logs()).url == url
        # A remote that is there already has its token with it.
        target = await resolve(self.name if known else url)
        try:
            return await target.session.open()
        finally:
            await target.session.aclose()

    async def _logs_that_know(self, server: UUID, url: str) -> BranchLogs:
        """The logs, after a fetch where that helps. Raises BadSettings where the server stays unknown."""
        logs = await self.logs()
        if self._known(server, logs):
            return logs
        for remote in self.config.remotes():
            if self.config.remote(remote, "annex-uuid") == server.text:
                self.commands.run("git", "fetch", remote)
                logs = await self.logs()
        if self._known(server, logs):
            return logs
        raise BadSettings(
            f"this repository does not know {server}, which answers at {url}. Fetch the gateway's git-annex branch, so "
            f"that the copies on the nodes can be counted: git remote add {self.name}-gateway URL && git fetch "
            f"{self.name}-gateway; then run this again. Or count the cluster as one copy of its own: cluster-remote "
            f"setup {shlex.quote(self.name)} {shlex.quote(url)} --tracking remote"
        )

    @staticmethod
    def _known(server: UUID, logs: BranchLogs) -> bool:
        return bool(logs.clusters.nodes(server)) if server.is_cluster else server in logs.descriptions

    def _choose(self, server: UUID, logs: BranchLogs) -> UUID:
        """What the remote shall be the same as. Raises BadSettings."""
        from cluster_remote.p2p.key import UUID
        from cluster_remote.remote.identity import candidates, names_of

        if server.is_cluster:
            return server
        proxied = logs.proxied.get(server, {})
        if self.cluster:
            for name, uuid in proxied.items():
                if self.cluster in (name, uuid.text):
                    return uuid
            if self.cluster == server.text:
                return UUID.parse(self.cluster)
            raise BadSettings(
                f"--cluster {self.cluster}: the gateway has none of that name; it has "
                f"{', '.join(sorted(proxied)) or 'none at all (git annex updatecluster on the gateway records them)'}"
            )
        found = candidates(server, logs)
        if len(found) > 1:
            names = sorted(name for name, uuid in proxied.items() if uuid in found)
            raise BadSettings(f"the gateway has several clusters; say which with --cluster: {', '.join(names)}")
        if not found[0].is_cluster:
            say(
                f"{names_of(server, logs.descriptions)} is the gateway of no cluster that this repository knows; the "
                f"remote will be this one repository."
            )
        return found[0]

    def _make_nodes(self, address: Address, cluster: UUID, server: UUID, logs: BranchLogs) -> None:
        from cluster_remote.annex.errors import AnnexError, CommandFailed
        from cluster_remote.transport.address import at_node, is_local

        names = {uuid: name for gateway in logs.proxied.values() for name, uuid in gateway.items()}
        names |= {uuid: name for name, uuid in logs.proxied.get(server, {}).items()}
        reachable = {self.config.remote(remote, "annex-uuid"): remote for remote in self.config.remotes()}
        ours = {name: self.config.remote(name, "annex-uuid") for name in self.config.remotes()}
        cost = (100 if is_local(address) else 200) + 1
        failed: list[str] = []
        for uuid in sorted(logs.clusters.nodes(cluster), key=lambda uuid: names.get(uuid, uuid.text)):
            name = f"{self.name}-{_remote_name(names.get(uuid) or logs.descriptions.get(uuid, '') or uuid.text)}"
            if uuid == self.uuid or (uuid.text in reachable and ours.get(name) != uuid.text):
                # This very repository, or one that is a remote already and can be verified through that.
                continue
            if logs.trust.get(uuid) == "dead":
                continue
            if logs.remotes.get(uuid, {}).get("encryption", "none") != "none":
                say(
                    f"{names.get(uuid, uuid.text)} is an encrypted special remote, and a remote that is the same as it "
                    f"would encrypt too. Its copies can be verified after: git annex enableremote "
                    f"{shlex.quote(logs.remotes[uuid].get('name', uuid.text))}"
                )
                continue
            parameters = {**self.parameters, "url": str(at_node(address, uuid))}
            extra = {"annex-sync": "false", "annex-cost": str(cost)}
            try:
                self.make(logs, Plan(name, uuid, parameters, not self.share, extra))
            except CommandFailed:
                # A node that is away, as a rule; git-annex has said why. The others can be verified all the same.
                failed.append(logs.descriptions.get(uuid) or names.get(uuid) or uuid.text)
        if failed:
            raise AnnexError(
                f"there is no remote for {', '.join(failed)}, so that the copies there cannot be verified; why is "
                "above. When that is mended, run this again. What is gone for good is left out after git annex dead"
            )

    # No server

    async def serverless(self, remotes: Sequence[str]) -> None:
        config = self.config
        for remote in remotes:
            if remote not in config.remotes():
                raise BadSettings(f"--node {remote}: this repository has no such remote (git remote shows them)")
            if not config.remote(remote, "annex-uuid"):
                raise BadSettings(
                    f"--node {remote}: git-annex does not know this remote yet; try: git fetch {shlex.quote(remote)} "
                    f"&& git annex info {shlex.quote(remote)}"
                )
        name = self.cluster or self.name
        if name not in config.clusters():
            self.commands.run("git", "annex", "initcluster", name)
        for remote in remotes:
            if config.remote(remote, "annex-cluster-node") != name:
                self.commands.run("git", "config", f"remote.{remote}.annex-cluster-node", name)
        if remotes:
            self.commands.run("git", "annex", "updatecluster")
        uuid = self.config.clusters()[name]
        logs = await self.logs()
        costs = [float(cost) for remote in remotes if (cost := config.remote(remote, "annex-cost"))]
        extra = {"annex-cost": f"{min([_SERVERLESS_COST, *(cost - 1 for cost in costs)]):g}"}
        if self.parameters.get("tracking") == "remote":
            self.make(logs, Plan(self.name, None, {**self.parameters, "cluster": name}, False, extra))
        else:
            self.make(logs, Plan(self.name, uuid, self.parameters, not self.share, extra))

    # A remote

    def make(self, logs: BranchLogs, plan: Plan) -> None:
        """Makes a remote, or mends it where it is there already. Raises BadSettings, CommandFailed."""
        from cluster_remote.annex.errors import CommandFailed

        config = self.config
        parameters = [f"{key}={value}" for key, value in plan.parameters.items()]
        here = plan.name in config.remotes()
        if here:
            self._check_same(config, plan)
        if here and self._as_planned(config, logs, plan):
            say(f"{plan.name} is set up already.")
        elif here or self._exists_elsewhere(logs, plan):
            self.commands.run("git", "annex", "enableremote", plan.name, *parameters)
            self._verify(plan)
        else:
            sameas = [] if plan.sameas is None else [f"--sameas={plan.sameas}"]
            private = ["--private"] if plan.private else []
            try:
                self.commands.run(
                    "git", "annex", "initremote", plan.name, *sameas, *private,
                    "type=external", "externaltype=cluster", *parameters,
                )  # fmt: skip
            except CommandFailed:
                self._forget_attempt(plan.name)
                raise
        for key, value in plan.config.items():
            if config.remote(plan.name, key) != value:
                self.commands.run("git", "config", f"remote.{plan.name}.{key}", value)

    def _forget_attempt(self, name: str) -> None:
        """Takes away what a refused initremote leaves in git's configuration, which would be in the way next time."""
        config = self.config
        if name in config.remotes() and not (config.remote(name, "annex-uuid") or config.remote(name, "url")):
            self.commands.run("git", "config", "--remove-section", f"remote.{name}")

    def _verify(self, plan: Plan) -> None:
        """Tells git-annex that a configuration is safe, which it asks for because it may come from somebody else.

        It is, when it is what the user has just typed; git-annex says which one it is about.
        """
        argv = ("git", "annex", "verifyremote", plan.name)
        output = self.commands.output(*argv)
        number = re.search(r"--safe ([0-9]+)", output)
        if number is None:
            return
        shown = next((line.split() for line in output.splitlines() if "externaltype=" in line), [])
        if any(f"{key}={value}" not in shown for key, value in plan.parameters.items() if key in {"url", "timeout"}):
            say(output)
            raise BadSettings(
                f"the configuration of {plan.name!r} that git-annex asks about is not the one that was asked for; look "
                f"at it above and decide yourself: {shlex.join(argv)}"
            )
        self.commands.run(*argv, "--safe", number[1])

    def _as_planned(self, config: GitConfig, logs: BranchLogs, plan: Plan) -> bool:
        """Whether nothing is left to be done for a remote: its parameters are right, it is verified, no new token."""
        uuid = config.remote(plan.name, "annex-config-uuid") or config.remote(plan.name, "annex-uuid") or ""
        stored = next((settings for key, settings in logs.remotes.items() if key.text == uuid), {})
        return (
            config.remote(plan.name, "annex-verified") == "verified"
            # The encryption of a remote that is the same as another is not stored; it is always none.
            and all(stored.get(key) == value for key, value in plan.parameters.items() if key != "encryption")
            and not os.environ.get("CLUSTER_REMOTE_TOKEN")
        )

    def _check_same(self, config: GitConfig, plan: Plan) -> None:
        if config.remote(plan.name, "annex-externaltype") != "cluster":
            raise BadSettings(
                f"this repository has a remote {plan.name!r} already, of another kind; choose another name, or remove "
                f"it first: git remote remove {shlex.quote(plan.name)}"
            )
        uuid = config.remote(plan.name, "annex-uuid")
        if plan.sameas is not None and uuid != plan.sameas.text:
            raise BadSettings(
                f"the remote {plan.name!r} of this repository is another repository ({uuid}) than what is at the "
                f"address ({plan.sameas}); choose another name, or remove it first: git remote remove "
                f"{shlex.quote(plan.name)}"
            )

    def _exists_elsewhere(self, logs: BranchLogs, plan: Plan) -> bool:
        """Whether somebody has made this very remote and shared it."""
        for settings in logs.remotes.values():
            if settings.get("externaltype") != "cluster":
                continue
            name = settings.get("sameas-name") or settings.get("name")
            wanted = None if plan.sameas is None else plan.sameas.text
            if name == plan.name and settings.get("sameas-uuid") == wanted:
                return True
        return False


def _remote_name(text: str) -> str:
    """A description or a gateway's name for a node, as git lets a remote be called."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in text).strip("_-")
    return name[:40] or "node"
