"""Whether a remote's configuration is one that this user has accepted in this repository. Nothing is used before.

The configuration of a special remote may come from somebody else, by the git-annex branch. git-annex uses none that was
never verified, and goes on with the one that was when another comes; `git annex verifyremote` is how a user accepts it.
This is where our commands, and INITREMOTE, go by the same rule. (Observed with git-annex 10.20261026: annex-verified is
`verified`; `manual` after enableremote, when git-annex does not use the remote; or `automatic` after autoenable, when
it reads from it, and writes to no special remote at all.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings, Settings, as_argument
from cluster_remote.p2p.key import UUID

if TYPE_CHECKING:
    from cluster_remote.annex.branchlog import BranchLogs
    from cluster_remote.annex.gitconfig import GitConfig

__all__ = [
    "Configuration",
    "NotVerified",
    "as_used",
    "awaits_verification",
    "check_writing",
    "is_accepted",
    "our_remotes",
]

Verified = Mapping[UUID, Mapping[str, str]]
"""The configurations that were verified, by their UUIDs."""


class NotVerified(BadSettings):
    """The configuration is not one that this user has accepted; says how that is done."""


@dataclass(frozen=True)
class Configuration:
    """A remote's configuration as git-annex uses it.

    `parameters` are those that were verified, whatever has come by the git-annex branch since. `shared` says whether
    they are in that branch, where others can change them.
    """

    name: str
    uuid: UUID
    parameters: Mapping[str, str]
    accepted: bool
    shared: bool

    @classmethod
    def of(cls, name: str, config: GitConfig, logs: BranchLogs, verified: Verified | None) -> Configuration:
        """That of a remote of ours. `verified` is None where git-annex is too old to ask. Raises BadSettings."""
        known = our_remotes(config)
        if name not in known:
            raise BadSettings(
                f"{name!r} is not a cluster remote of this repository"
                + (
                    f"; there is {', '.join(known)}"
                    if known
                    else "; there is none yet (cluster-remote setup makes one)"
                )
                + ". An address has a slash or a colon in it"
            )
        uuid = UUID.parse(config.remote(name, "annex-uuid") or "")
        identity = UUID.parse(config.remote(name, "annex-config-uuid") or uuid.text)
        state = config.remote(name, "annex-verified")
        parameters = (verified or {}).get(identity) if state == "verified" else None
        return cls(
            name,
            uuid,
            as_used(logs.remotes.get(identity, {}) if parameters is None else parameters),
            accepted=is_accepted(name, config, verified),
            shared=not config.boolean(f"remote.{name}.annex-private"),
        )

    @property
    def settings(self) -> Settings:
        """The parameters, checked. Raises BadSettings."""
        return Settings.read(lambda setting: self.parameters.get(setting, ""), self.uuid.text, self.name)

    def check_accepted(self) -> None:
        """Raises NotVerified."""
        if not self.accepted:
            raise NotVerified(
                f"the configuration of {self.name} has come by the git-annex branch, and you have not said here that "
                f"it is safe; look at it, and say so: git annex verifyremote {as_argument(self.name)}"
            )


def as_used(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """The parameters without an encryption that git-annex ignores: that of a remote that is the same as another."""
    if "sameas-uuid" not in parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name != "encryption"}


def is_accepted(name: str, config: GitConfig, verified: Verified | None) -> bool:
    """Whether the user has accepted the configuration of a remote; with a git-annex that does not ask, all are."""
    state = config.remote(name, "annex-verified")
    return state == "verified" or (state is None and verified is None)


def our_remotes(config: GitConfig) -> list[str]:
    """The remotes of this repository that are served by this program, and that git-annex can use."""
    return [
        name
        for name in config.remotes()
        if config.remote(name, "annex-externaltype") == "cluster" and config.remote(name, "annex-uuid")
    ]


def check_writing(config: GitConfig) -> None:
    """Refuse to write where git-annex does: while any autoenabled remote is not verified. Raises NotVerified."""
    waiting = [name for name in config.remotes() if config.remote(name, "annex-verified") == "automatic"]
    if waiting:
        raise NotVerified(
            f"git-annex writes to no special remote before you have said whether {', '.join(waiting)} is safe, and "
            f"neither does this: git annex verifyremote {as_argument(waiting[0])}"
        )


def awaits_verification(settings: Settings, logs: BranchLogs, verified: Verified | None) -> bool:
    """Whether INITREMOTE is about a configuration that has come by the git-annex branch and was never verified here.

    git-annex does not say which of initremote, enableremote and autoenable it is at. What is enabled is in remote.log
    already; what is made is not.
    """
    for identity, parameters in logs.remotes.items():
        sameas = parameters.get("sameas-uuid")
        name = parameters.get("name" if sameas is None else "sameas-name")
        if settings.uuid.text == (identity.text if sameas is None else sameas) and settings.name == name:
            # A git-annex that does not ask has no other way to enable a remote; what it enables by itself says so.
            return parameters.get("autoenable") == "true" if verified is None else identity not in verified
    return False
