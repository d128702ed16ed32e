"""Plan one cluster remote: created, enabled, fixed, shared, or left as it is. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cluster_remote.access.settings import BadSettings
from cluster_remote.access.tokens import given_token
from cluster_remote.lifecycle.facts import HARMLESS, Facts, Stored
from cluster_remote.lifecycle.remote_steps import Enable, Initremote, RemoveRemote, Verify
from cluster_remote.lifecycle.runner import Later
from cluster_remote.lifecycle.steps import Plan, Setting, Step
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command, printable

__all__ = ["Wanted", "initremote", "plan_remote", "recreated"]


@dataclass(frozen=True)
class Wanted:
    """The remote to set up. `sameas` is None for a remote with a UUID of its own: `uuid`, or a random one."""

    name: str
    sameas: UUID | Later | None
    parameters: Mapping[str, str]
    private: bool
    config: Mapping[str, str] = field(default_factory=dict)
    uuid: UUID | None = None


def initremote(wanted: Wanted) -> Initremote:
    """Return the step that creates a remote."""
    argv: list[str | Later] = ["git", "annex", "initremote", wanted.name]
    match wanted.sameas:
        case UUID():
            argv.append(f"--sameas={wanted.sameas}")
        case Later():
            argv.append(Later(wanted.sameas.cluster, "--sameas="))
    if wanted.private:
        argv.append("--private")
    if wanted.uuid is not None:
        argv.append(f"uuid={wanted.uuid}")
    argv += ["type=external", "externaltype=cluster"]
    argv += [f"{key}={value}" for key, value in wanted.parameters.items()]
    return Initremote(tuple(argv), shares=not wanted.private, name=wanted.name)


def plan_remote(facts: Facts, wanted: Wanted) -> Plan:
    """Plan the steps that a remote needs; none if it is as wanted already. Raises BadSettings."""
    config = facts.config
    here = wanted.name in config.remotes()
    if here:
        _check_same(facts, wanted)
    stored = facts.stored_of(wanted.name) if here else next(iter(facts.stored_named(wanted.name)), None)
    settings = tuple(
        step for key, value in wanted.config.items() for step in facts.setting(f"remote.{wanted.name}.{key}", value)
    )
    if here and stored is not None and stored.private and not wanted.private:
        # Removing the remote also removes its settings, so all are set again.
        fresh = tuple(
            step for key, value in wanted.config.items() for step in _fresh(f"remote.{wanted.name}.{key}", value)
        )
        return Plan((RemoveRemote(wanted.name, recreated(facts, wanted.name, stored)), initremote(wanted), *fresh))
    if here and stored is not None:
        if _as_wanted(facts, wanted, stored):
            return Plan(settings, () if settings else (f"{wanted.name} is set up already.",))
        return _enable(facts, wanted, stored, tuple(_given(stored))) + Plan(settings)
    if stored is None or stored.private:
        freed = () if stored is None else _freed_name(facts, stored)
        return Plan((*freed, initremote(wanted), *settings))
    if stored.sameas != wanted.sameas:
        what = "nothing else" if stored.sameas is None else facts.description(stored.sameas)
        raise BadSettings(
            f"the git-annex branch already has a remote {wanted.name!r}, which is for {printable(what)}; "
            "choose another name"
        )
    return _enable(facts, wanted, stored, None) + Plan(settings)


def _fresh(key: str, value: str) -> tuple[Step, ...]:
    return (Setting(key, value, ()),)


def _check_same(facts: Facts, wanted: Wanted) -> None:
    if not facts.ours(wanted.name):
        raise BadSettings(
            f"this repository already has a remote {wanted.name!r} of another kind; choose another name, or remove it "
            f"first: {as_command('git remote remove', wanted.name)}"
        )
    uuid = facts.remote_uuid(wanted.name)
    expected = facts.config.clusters().get(wanted.sameas.cluster) if isinstance(wanted.sameas, Later) else wanted.sameas
    if wanted.sameas is not None and uuid != expected:
        there = "a new cluster" if expected is None else printable(facts.description(expected))
        raise BadSettings(
            f"the remote {wanted.name!r} of this repository is the repository {uuid}, not the requested one "
            f"({there}); choose another name, or remove it first: {as_command('cluster-remote remove', wanted.name)}"
        )


def _as_wanted(facts: Facts, wanted: Wanted, stored: Stored) -> bool:
    """Return whether nothing is left to do: the parameters are as wanted and verified, and there is no new token."""
    return (
        facts.config.remote(wanted.name, "annex-verified") == "verified"
        # git-annex does not store the encryption of a remote made with --sameas; it is always none.
        and all(stored.parameters.get(key) == value for key, value in wanted.parameters.items() if key != "encryption")
        and facts.accepted(stored)
        and not given_token()
    )


def _given(stored: Stored) -> list[str]:
    return [f"{key}={value}" for key, value in {"encryption": "none", **stored.given}.items()]


def _enable(facts: Facts, wanted: Wanted, stored: Stored, restore: tuple[str, ...] | None) -> Plan:
    """Plan enabling a remote in remote.log; the user has to confirm what others wrote there."""
    parameters = dict(wanted.parameters)
    if stored.sameas is None:
        # It is stored in remote.log, and immutable.
        parameters.pop("encryption", None)
    expected = {**stored.given, **wanted.parameters}
    accepted = facts.verified.get(stored.uuid, {})
    unconfirmed = {
        key: value
        for key, value in stored.given.items()
        if key not in HARMLESS and not stored.private and expected[key] == value
        # What the user requested now, or accepted here before, needs no confirmation.
        and wanted.parameters.get(key) != value and accepted.get(key) != value
    }  # fmt: skip
    changed = any(stored.given.get(key, "") != value for key, value in parameters.items() if key != "encryption")
    step = Enable(
        wanted.name,
        tuple(f"{key}={value}" for key, value in parameters.items()),
        restore,
        shares=changed and not stored.private,
    )
    questions: tuple[str, ...] = ()
    if unconfirmed:
        shown = ", ".join(f"{key}={printable(value)}" for key, value in sorted(unconfirmed.items()))
        questions = (f"The configuration of {wanted.name} comes from the git-annex branch: {shown}. Use it?",)
    # Verify a configuration before giving it a token.
    then = (step,) if given_token() and stored.uuid not in facts.verified else ()
    return Plan((step, Verify(wanted.name, expected), *then), questions=questions)


def recreated(facts: Facts, name: str, stored: Stored | None) -> tuple[Step, ...]:
    """Return the steps that recreate a cluster remote as it is now."""
    if stored is None:
        return ()
    private = stored.private
    wanted = Wanted(name, stored.sameas, {"encryption": "none", **stored.given}, private)
    made: tuple[Step, ...]
    made = (initremote(wanted),) if private else (Enable(name, tuple(_given(stored)), None), Verify(name, stored.given))
    kept = ("annex-cost", "annex-sync")
    values = ((f"remote.{name}.{key}", facts.config.remote(name, key)) for key in kept)
    return made + tuple(step for key, value in values if value is not None for step in _fresh(key, value))


def _freed_name(facts: Facts, stored: Stored) -> tuple[Step, ...]:
    """Return the steps that make git-annex forget a private remote that was removed from git's configuration by hand.

    Otherwise git-annex refuses its name. It only knows that a remote is private if that is in the configuration.
    """
    uuid = stored.sameas or stored.uuid
    values = {
        "annex-private": "true",
        "annex-externaltype": "cluster",
        "annex-uuid": uuid.text,
        "annex-config-uuid": stored.uuid.text,
    }
    settings = [step for key, value in values.items() for step in facts.setting(f"remote.{stored.name}.{key}", value)]
    return (*settings, RemoveRemote(stored.name))
