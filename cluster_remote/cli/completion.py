"""What the shell offers where a command takes a remote or a node. Never an error: a shell has no place for one."""

from __future__ import annotations

__all__ = ["behind", "candidates", "clusters", "nodes", "remotes"]


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


def behind(incomplete: str) -> list[str]:
    """What this repository, as a gateway, calls the repositories and clusters that stand behind it."""
    import anyio

    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.errors import AnnexError
    from cluster_remote.annex.repository import Repository

    try:
        repository = Repository.here()
        own = repository.uuid
        logs = anyio.run(BranchLogs.read, repository, ("proxy.log",))
    except AnnexError:
        return []
    return [name for name in ("here", *sorted(logs.proxied.get(own, {}))) if name.startswith(incomplete)]


def clusters(incomplete: str) -> list[str]:
    """The clusters that this repository is a gateway of."""
    from cluster_remote.annex.errors import AnnexError
    from cluster_remote.annex.repository import Repository

    try:
        found = Repository.here().config().clusters()
    except AnnexError:
        return []
    return [name for name in found if name.startswith(incomplete)]


def candidates(incomplete: str) -> list[str]:
    """The remotes of this repository that could become nodes: git-annex knows them, and they are none of ours."""
    from cluster_remote.annex.errors import AnnexError
    from cluster_remote.annex.repository import Repository
    from cluster_remote.cli.target import our_remotes

    try:
        config = Repository.here().config()
    except AnnexError:
        return []
    ours = our_remotes(config)
    return [
        name
        for name in config.remotes()
        if name.startswith(incomplete) and name not in ours and config.remote(name, "annex-uuid")
    ]
