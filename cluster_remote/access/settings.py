"""Read the remote's parameters from git-annex."""

from __future__ import annotations

from cluster_remote.annex import TOKEN_VARIABLE as TOKEN
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command
from cluster_remote.p2p.timeouts import DEFAULT_TIMEOUT
from cluster_remote.transport import FORMS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Literal

    from cluster_remote.transport.address import Address

    Tracking = Literal["nodes", "remote"]

__all__ = ["DESCRIPTIONS", "TOKEN", "BadSettings", "Settings"]

DESCRIPTIONS = {
    "url": f"address of the cluster's gateway: {FORMS}; omit it for a cluster that is configured in this repository",
    "cluster": "the cluster's name or UUID; needed without a url if this repository has several clusters, and with "
    "tracking=remote to select the cluster behind the gateway",
    "tracking": "nodes: the remote is the cluster (--sameas) and each node that stores a file counts as a copy; "
    "remote: the remote has a UUID of its own and counts as one copy "
    "(default: nodes without encryption and chunks, otherwise remote)",
    "timeout": "seconds without a byte of progress before giving up (default: 60)",
}


class BadSettings(ValueError):
    """Unusable parameters; the message says which, why, and what to use instead."""


class Settings:
    """The checked parameters of one remote."""

    def __init__(
        self,
        *,
        uuid: UUID,
        name: str,
        url: str,
        address: Address | None,
        cluster: str,
        tracking: Tracking,
        timeout: float,
        encryption: str,
        chunked: bool,
        sameas: bool,
        explicit_tracking: str,
        others: Mapping[str, str],
    ) -> None:
        """Create settings.

        `explicit_tracking` is the tracking parameter, empty if not set; `others` are raw parameters, kept to be able to
        show the user the whole command again.
        """
        self.uuid = uuid
        self.name = name
        self.url = url
        self.address = address
        self.cluster = cluster
        self.tracking: Tracking = tracking
        self.timeout = timeout
        self.encryption = encryption
        self.chunked = chunked
        self.sameas = sameas
        self.explicit_tracking = explicit_tracking
        self.others = others

    @classmethod
    def read(cls, ask: Callable[[str], str], uuid: str, name: str = "") -> Settings:
        """Read the parameters with `ask`, which returns a value, or the empty text if unset. Raises BadSettings."""
        url = ask("url")
        address = _address(url) if url else None
        encryption = ask("encryption") or "none"
        # git-annex has two parameters for chunks; the older one does not show upload progress.
        others = {name: value for name in ("timeout", "chunk", "chunksize") if (value := ask(name))}
        chunked = any(others.get(name, "0") != "0" for name in ("chunk", "chunksize"))
        tracking = explicit_tracking = ask("tracking")
        if tracking not in {"", "nodes", "remote"}:
            raise BadSettings(f"tracking={tracking}: it can be tracking=nodes or tracking=remote")
        if not tracking:
            tracking = "nodes" if encryption == "none" and not chunked else "remote"
        return cls(
            uuid=UUID(uuid),
            # A sameas remote keeps its name in another parameter.
            name=name or ask("sameas-name") or ask("name") or "cluster",
            url=url,
            address=address,
            cluster=ask("cluster"),
            tracking="nodes" if tracking == "nodes" else "remote",
            timeout=_timeout(others.get("timeout", "")),
            encryption=encryption,
            chunked=chunked,
            sameas=bool(ask("sameas-uuid")),
            explicit_tracking=explicit_tracking,
            others=others,
        )

    @property
    def is_alias(self) -> bool:
        """Return whether the UUID is an alias of another cluster, named by `cluster`, with the same nodes.

        git-annex can autoenable such a remote because its encryption is stored, which is not so with --sameas.
        """
        return self.tracking == "nodes" and not self.sameas and self.uuid.is_cluster and bool(self.cluster)

    @property
    def cost(self) -> int:
        """Return the cost: serverless below the nodes', so that a sync uploads once; else git-annex's default."""
        if self.address is None:
            return 50
        return 100 if self.address.local else 200

    @property
    def new_token_command(self) -> str:
        """Return the command that gives an existing remote a new token."""
        # git-annex does not remember the encryption of a sameas remote.
        encryption = ["encryption=none"] if self.sameas else []
        return f"{TOKEN}=… {as_command('git annex enableremote', self.name, *encryption)}"


def _address(url: str) -> Address:
    from cluster_remote.transport.address import BadAddress, parse_address

    try:
        return parse_address(url)
    except BadAddress as error:
        raise BadSettings(f"url: {error}") from None


def _timeout(text: str) -> float:
    if not text:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1
    if not 0 < seconds <= 86400:
        raise BadSettings(f"timeout={text}: it is a number of seconds, such as timeout=60")
    return seconds
