"""cluster-remote: the table of its commands, each of which is imported when it is wanted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from typing import Any

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from cluster_remote import __version__
from cluster_remote.cli.interrupts import Interrupted, only_the_first_counts

__all__ = ["app", "every_command", "run"]

_COMMANDS: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "Set up": {
        "setup": ("setup:setup", "Make a cluster and a remote for it, join one, or mend it."),
        "node": ("node:app", "Add, take out and replace nodes of a cluster."),
        "rename": ("remove:rename", "Give a cluster remote another name."),
        "remove": ("remove:remove", "Take a cluster remote out of this repository."),
    },
    "Look and mend": {
        "status": ("status:status", "Show the state of a cluster, and what is wrong with it."),
        "check": ("check:check", "Ask every node what it has, and compare with the location log."),
        "repair": ("repair:repair", "Bring content to the nodes that lack it."),
        "doctor": ("doctor:doctor", "Look for mistakes in the installation and the settings."),
        "ping": ("ping:ping", "See whether a gateway answers, and how fast."),
    },
    "Serve others": {
        "serve": ("serve:serve", "Serve the cluster of this repository to others."),
        "token": ("token:app", "Create, list and revoke the tokens of clients."),
    },
    "Ask one server or node": {
        "present": ("requests:present", "Ask whether a content is there."),
        "put": ("requests:put", "Store one content there."),
        "get": ("requests:get", "Fetch one content from there into a file."),
        "drop": ("requests:drop", "Remove one content there, WITHOUT checking other copies."),
        "lock": ("requests:lock", "Keep a content from being removed for a while."),
    },
    "Try out": {
        "demo": ("demo:demo", "Build a cluster in a temporary directory, and use it."),
        "trace": ("trace:trace", "Run a command and show what is said in the P2P protocol."),
        "bench": ("bench:bench", "Measure transfers, beside git-annex's own gateway."),
    },
}
"""By group: where each command is, and what `--help` says of it; its own help says it at length."""


class Later(TyperCommand):
    """A command that is not imported before somebody runs it or asks for its help."""

    def __init__(self, group: str, name: str, where: str, summary: str) -> None:
        super().__init__(name, short_help=summary, rich_help_panel=group)
        self._where = where

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        # All that is done with a command by its group is done with its context.
        return _imported(str(self.name), self._where).make_context(*arguments, **options)


class Commands(TyperGroup):
    """All commands, in groups. Ctrl-C ends one with an exception of ours: typer would end it without a word."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        for group, commands in _COMMANDS.items():
            for name, (where, summary) in commands.items():
                self.add_command(Later(group, name, where, summary))

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        # rich_help_panel is for typer's own layout, which we do not use.
        groups: dict[str, list[tuple[str, str]]] = {}
        room = formatter.width - 6 - max(map(len, self.commands))
        for name, command in self.commands.items():
            groups.setdefault(getattr(command, "rich_help_panel", "") or "Others", []).append(
                (name, command.get_short_help_str(room))
            )
        for title, rows in groups.items():
            with formatter.section(title):
                formatter.write_dl(rows)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise Interrupted from None


def _imported(name: str, where: str) -> Any:
    """Import a command, or a group of commands."""
    module, _, attribute = where.partition(":")
    found = getattr(importlib.import_module(f"cluster_remote.cli.{module}"), attribute)
    if not isinstance(found, typer.Typer):
        single = typer.Typer(add_completion=False, rich_markup_mode=None)
        single.command(name)(found)
        found = single
    command = typer.main.get_command(found)
    _use_words(command)
    return command


_WORDS = {"timeout": "SECONDS"}


def _use_words(command: Any) -> None:
    """Make the help of a command call values by words, not by the types of Python."""
    for each in getattr(command, "commands", {}).values():
        _use_words(each)
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            # Newer versions of typer show the type even beside a metavar.
            parameter.display_type_rich = lambda ctx: None
        elif parameter.metavar is None:
            parameter.metavar = _WORDS.get(parameter.name, parameter.name.upper())


app = typer.Typer(
    name="cluster-remote",
    cls=Commands,
    help="A git-annex cluster as one remote: set it up, look at it, try it out.\n\n"
    "Exit codes: 0 all is well, 1 what was asked for did not succeed, 2 wrong usage, 3 a server cannot be reached, "
    "4 not in a repository that can do this, 130 interrupted.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"git-annex-remote-cluster {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Show the version."),
) -> None:
    """A git-annex cluster as one remote: set it up, look at it, try it out."""


def run() -> int:
    """Runs the command line of this process; gives the exit code. No traceback reaches a user."""
    only_the_first_counts()
    try:
        outcome = app(standalone_mode=False)
        sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 -- every failure ends here, as words
        from cluster_remote.cli.failure import report

        return report(error)
    return outcome if isinstance(outcome, int) else 0


def every_command() -> dict[str, Any]:
    """Import all commands and return them by their full names, such as `node add`."""
    found: dict[str, Any] = {}
    for commands in _COMMANDS.values():
        for name, (where, _) in commands.items():
            command = _imported(name, where)
            parts = getattr(command, "commands", None)
            found |= {name: command} if parts is None else {f"{name} {part}": each for part, each in parts.items()}
    return found
