"""Valid names of remotes and clusters. Pure.

A remote's name becomes a word on command lines, so it must not look like an option. A cluster's name is a variable in
git's configuration (`annex.cluster.NAME`): letters, digits and hyphens, a letter first, case-insensitive.
"""

from __future__ import annotations

import re
import unicodedata

from cluster_remote.access.settings import BadSettings

__all__ = ["checked_remote", "cluster_name", "node_remote", "suggestion"]

_CLUSTER = re.compile(r"[a-z][a-z0-9-]*")
# What git refuses in a ref name, and what makes a word an address for our commands.
_NOT_IN_REMOTE = re.compile(r"[\x00-\x20\x7f~^:?*\[\\/]|\.\.|@\{")


def checked_remote(name: str) -> str:
    """Return the name if it is valid for a remote. Raises BadSettings, which suggests a valid one."""
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
    """Return a cluster's name as in git's configuration, in lower case. Raises BadSettings, which suggests another."""
    lowered = name.lower()
    if not _CLUSTER.fullmatch(lowered):
        raise BadSettings(
            f"{name!r} cannot be the name of a cluster: git's configuration allows only letters, digits and hyphens, "
            f"a letter first; choose another, such as {suggestion(name)}, or keep it for the remote and "
            f"add --cluster {suggestion(name)}"
        )
    return lowered


def suggestion(name: str) -> str:
    """Return a similar name that is valid."""
    plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()
    words = re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")[:40].rstrip("-")
    if not words:
        return "disks"
    return words if words[0].isalpha() else f"c-{words}"


def node_remote(cluster_remote: str, node: str) -> str:
    """Return the name of the remote for a node behind a gateway; `node` is its description or the gateway's name."""
    name = "".join(c if c.isalnum() or c in "_-" else "_" for c in node).strip("_-")
    return f"{cluster_remote}-{name[:40] or 'node'}"
