"""cluster-remote doctor: find mistakes in the installation and the setup."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.errors import AnnexError, NotARepository, NotInitialised
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.completion import remotes
from cluster_remote.cli.exitcodes import FAILED, NOT_USABLE
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json
from cluster_remote.cli.render import emit, show_problems, table
from cluster_remote.cli.target import cluster_view, every_cluster, view_named
from cluster_remote.diagnosis.checkup import Checkup
from cluster_remote.diagnosis.diagnostics import (
    diagnose,
    find_notes,
    notes_on_contents,
    problems_at_nodes,
    problems_of_servers,
)
from cluster_remote.diagnosis.facts import gather, servers
from cluster_remote.diagnosis.programs import find_programs, problems_of_programs
from cluster_remote.diagnosis.state import Status
from cluster_remote.diagnosis.survey import survey
from cluster_remote.p2p.session import Session
from cluster_remote.p2p.text import printable
from cluster_remote.transport.address import Ssh

__all__ = ["doctor"]

# Keys to ask each node about.
_SAMPLE = 100


def doctor(
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME]",
            help="A cluster remote (default: all of this repository, and the repository itself).",
            autocompletion=remotes,
            show_default=False,
        ),
    ] = "",
    timeout: Annotated[float, typer.Option(min=0.1, help="Seconds to wait for each server.")] = 10,
    as_json: Json = False,
) -> None:
    """Find mistakes in the installation and in the setup of cluster remotes, each with the command that fixes it.

    Asks the nodes about a sample of keys; cluster-remote check asks about all of them. Changes nothing. Outside a
    repository it checks only the programs.

    Exit codes: 0 nothing found, 1 problems found, 2 wrong usage, 4 nothing found, but not in a repository,
    130 interrupted.

    Example: cluster-remote doctor mycluster
    """

    outcome = run(_doctor, name, timeout)
    emit(outcome, as_json, _show)
    if not outcome.healthy:
        raise typer.Exit(FAILED)
    if outcome.repository is None:
        raise typer.Exit(NOT_USABLE)


async def _doctor(name: str, timeout: float) -> Checkup:
    programs = await find_programs()
    broken = [each for each in problems_of_programs(programs, needs_ssh=False) if each.kind == "program-missing"]
    try:
        if programs.paths["git"] is None:
            raise NotARepository
        repository = await Repository.find()
        await repository.find_uuid()
    except (NotARepository, NotInitialised):
        if name:
            raise
        findings = tuple(problems_of_programs(programs, needs_ssh=False))
        return Checkup(not findings, None, programs.listed(), (), findings, ())
    directory = str(repository.directory)
    if broken:
        # Nothing else can be checked without these.
        return Checkup(False, directory, programs.listed(), (), tuple(broken), ())
    facts = await gather(repository, name)

    async def reach(name: str) -> Session:
        return (await view_named(name)).session()

    tried = await servers(facts, reach, timeout)
    seen = await _status(name, timeout) if facts.cluster_remotes else Status(True, ())
    needs_ssh = any(
        remote.settings is not None and isinstance(remote.settings.address, Ssh) for remote in facts.cluster_remotes
    )
    findings = (
        *problems_of_programs(programs, needs_ssh=needs_ssh),
        *diagnose(facts),
        *problems_of_servers(facts, tried),
        *problems_at_nodes(facts, tried, seen),
    )
    return Checkup(
        not findings,
        directory,
        programs.listed(),
        tuple(tried),
        findings,
        (*find_notes(facts), *notes_on_contents(facts, seen)),
    )


async def _status(name: str, timeout: float) -> Status:
    """Survey the nodes. Skips remotes that cannot be used: `diagnose` finds these."""
    try:
        views = [await cluster_view(name, timeout)] if name else (await every_cluster(timeout))[0]
    except (BadSettings, AnnexError):
        return Status(True, ())
    return await survey(views, timeout=timeout, sample=_SAMPLE)


def _show(outcome: Checkup, console: Console) -> None:
    rows = [
        (each.name, each.version or ("" if each.path else "not found"), each.path or "") for each in outcome.programs
    ]
    console.print(table(("program", "version", "path"), rows))
    if outcome.servers:
        console.print()
        console.print(
            table(
                ("remote", "leads to", "protocol", "git-annex there"),
                (
                    (
                        each.remote,
                        each.address or "the nodes, without a server",
                        "no answer" if each.error else each.version,
                        each.git_annex or "",
                    )
                    for each in outcome.servers
                ),
            )
        )
    console.print()
    show_problems(outcome.findings, console)
    for note in outcome.notes:
        console.print(f"Note: {printable(note, 2000)}")
    if outcome.repository is None:
        console.print("This is not a git-annex repository, so only the programs were checked.")
    elif outcome.healthy:
        console.print(Text("No problems found.", style="green"))
