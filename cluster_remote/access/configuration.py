"""Use a remote's configuration only if the user has accepted it in this repository.

The configuration of a special remote may come from another user, through the git-annex branch. git-annex never uses an
unverified one, and keeps using the verified one when another arrives; users accept it with `git annex verifyremote`.
Our commands and INITREMOTE follow the same rule here. (Observed with git-annex 10.20261026: annex-verified is
`verified`; `manual` after enableremote, when git-annex does not use the remote; or `automatic` after autoenable, when
it reads from the remote but writes to no special remote at all.)
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cluster_remote.access.settings import BadSettings, Settings
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, few

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
"""Verified configurations by UUID."""


class NotVerified(BadSettings):
    """The user has not accepted the configuration; the message says how to."""


@dataclass(frozen=True)
class Configuration:
    """A remote's configuration as git-annex uses it.

    `parameters` are the verified ones, regardless of later changes in the git-annex branch. `shared` says whether they
    are in that branch, where others can change them.
    """

    name: str
    uuid: UUID
    parameters: Mapping[str, str]
    accepted: bool
    shared: bool

    @classmethod
    def of(cls, name: str, config: GitConfig, logs: BranchLogs, verified: Verified | None) -> Configuration:
        """Return the configuration of one of our remotes. Raises BadSettings.

        `verified` is None if git-annex is too old to verify configurations.
        """
        known = our_remotes(config)
        if name not in known:
            raise BadSettings(
                f"{name!r} is not a cluster remote of this repository"
                + (
                    f"; there is {', '.join(known)}"
                    if known
                    else "; there is none yet (cluster-remote setup makes one)"
                )
                + ". An address contains a slash or a colon"
            )
        uuid = UUID(config.remote(name, "annex-uuid") or "")
        identity = UUID(config.remote(name, "annex-config-uuid") or uuid.text)
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
        """Return the checked parameters. Raises BadSettings."""
        return Settings.read(lambda setting: self.parameters.get(setting, ""), self.uuid.text, self.name)

    def check_accepted(self) -> None:
        """Raise NotVerified unless the user has accepted the configuration."""
        if not self.accepted:
            raise NotVerified(
                f"the configuration of {self.name} came through the git-annex branch, and you have not confirmed here "
                f"that it is safe: check and confirm it with " + as_command("git annex verifyremote", self.name)
            )


def as_used(parameters: Mapping[str, str]) -> Mapping[str, str]:
    """Return the parameters without the encryption of a sameas remote, which git-annex ignores."""
    if "sameas-uuid" not in parameters:
        return parameters
    return {name: value for name, value in parameters.items() if name != "encryption"}


def is_accepted(name: str, config: GitConfig, verified: Verified | None) -> bool:
    """Return whether the user has accepted a remote's configuration; always True if git-annex does not verify."""
    state = config.remote(name, "annex-verified")
    return state == "verified" or (state is None and verified is None)


def our_remotes(config: GitConfig) -> list[str]:
    """Return the remotes here that this program serves and git-annex can use."""
    return [
        name
        for name in config.remotes()
        if config.remote(name, "annex-externaltype") == "cluster" and config.remote(name, "annex-uuid")
    ]


def check_writing(config: GitConfig) -> None:
    """Raise NotVerified while any autoenabled remote is unverified, because git-annex does not write then either."""
    waiting = [name for name in config.remotes() if config.remote(name, "annex-verified") == "automatic"]
    if waiting:
        raise NotVerified(
            f"git-annex does not write to special remotes until you have confirmed that {few(waiting)} is safe, "
            f"and neither does this program: " + as_command("git annex verifyremote", waiting[0])
        )


def awaits_verification(settings: Settings, logs: BranchLogs, verified: Verified | None) -> bool:
    """Return whether INITREMOTE concerns a configuration from the git-annex branch that was never verified here.

    git-annex does not say whether it runs initremote, enableremote or autoenable. A remote being enabled is already in
    remote.log; a new one is not. Only the configurations of sameas remotes share a UUID and need to be told apart by
    name, of which git-annex passes on no control characters. One that was verified is handed to us as it was then.
    """
    if logs.hides_remotes:
        # git-annex reads lines of any length, so an unverified configuration may be in one that was skipped here.
        return not any(_concerns(settings, *known) for known in (verified or {}).items())
    for identity, parameters in logs.remotes.items():
        if not _concerns(settings, identity, parameters):
            continue
        if verified is None:
            # If git-annex does not verify, only autoenable can have enabled the remote without the user's consent.
            if parameters.get("autoenable") == "true":
                return True
        elif identity not in verified:
            return True
    return False


def _concerns(settings: Settings, identity: UUID, parameters: Mapping[str, str]) -> bool:
    """Return whether a stored configuration may be that of the remote with these settings."""
    # The target of a sameas remote may itself be a special remote, of another type.
    if identity == settings.uuid and not settings.sameas:
        return True
    names = {_bare(parameters[name]) for name in ("name", "sameas-name") if name in parameters}
    return settings.uuid == UUID.if_valid(parameters.get("sameas-uuid")) and _bare(settings.name) in names


def _bare(name: str) -> str:
    return "".join(c for c in name if c.isprintable() and not c.isspace())
