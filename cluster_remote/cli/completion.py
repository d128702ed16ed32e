"""What the shell offers where a command takes a remote or a node. Never an error: a shell has no place for one."""

from __future__ import annotations

__all__ = ["nodes", "remotes"]


def remotes(incomplete: str) -> list[str]:
    """The remotes of this repository that are served by this program."""
    from cluster_remote.annex.errors import AnnexError
    from cluster_remote.annex.repository import Repository
    from cluster_remote.cli.target import our_remotes

    try:
        names = our_remotes(Repository.here().config())
    except AnnexError:
        return []
    return [name for name in names if name.startswith(incomplete)]


def nodes(incomplete: str) -> list[str]:
    """What the gateways known here call their repositories, and this repository's remotes that may be nodes."""
    import anyio

    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.errors import AnnexError
    from cluster_remote.annex.repository import Repository

    try:
        repository = Repository.here()
        config = repository.config()
        logs = anyio.run(BranchLogs.read, repository, ("cluster.log", "proxy.log"))
    except AnnexError:
        return []
    members = {node.text for each in logs.clusters.members.values() for node in each}
    found = [name for name in config.remotes() if config.remote(name, "annex-uuid") in members]
    found += [name for names in logs.proxied.values() for name, uuid in names.items() if uuid.text in members]
    return [name for name in dict.fromkeys(found) if name.startswith(incomplete)]
