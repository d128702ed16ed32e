"""What remotes and clusters can be called. Pure.

A remote's name becomes a word of command lines, so it must not look like an option. A cluster's name is a variable of
git's configuration (`annex.cluster.NAME`), which holds letters, digits and hyphens, a letter first, and has no case.
"""

from __future__ import annotations

import re
import unicodedata

from cluster_remote.access.settings import BadSettings

__all__ = ["checked_remote", "cluster_name", "node_remote", "suggestion"]

_CLUSTER = re.compile(r"[a-z][a-z0-9-]*")
# What git refuses in the name of a ref, and what a command line of ours takes for an address.
_NOT_IN_REMOTE = re.compile(r"[\x00-\x20\x7f~^:?*\[\\/]|\.\.|@\{")


def checked_remote(name: str) -> str:
    """The name, if a remote can have it. Raises BadSettings with one that works."""
    bad = (
        not name
        or name.startswith(("-", "."))
        or name.endswith((".", ".lock"))
        or _NOT_IN_REMOTE.search(name)
        or not name.isprintable()
    )
    if bad:
        raise BadSettings(f"{name!r} cannot be the name of a remote; choose another, such as {suggestion(name)}")
    return name


def cluster_name(name: str) -> str:
    """The name of a cluster as git's configuration has it: in lower case. Raises BadSettings with one that works."""
    lowered = name.lower()
    if not _CLUSTER.fullmatch(lowered):
        raise BadSettings(
            f"{name!r} cannot be the name of a cluster, for git's configuration takes letters, digits and hyphens "
            f"there, a letter first; choose another, such as {suggestion(name)}, or keep it for the remote and "
            f"add --cluster {suggestion(name)}"
        )
    return lowered


def suggestion(name: str) -> str:
    """A name that works and looks like this one."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].rstrip("-")
    if not words:
        return "disks"
    return words if words[0].isalpha() else f"c-{words}"


def node_remote(cluster_remote: str, node: str) -> str:
    """What the remote for one node behind a gateway is called; `node` is a description or the gateway's name for it."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in node).strip("_-")
    return f"{cluster_remote}-{name[:40] or 'node'}"
