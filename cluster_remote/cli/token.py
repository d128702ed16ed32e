"""cluster-remote token: manage access to this repository's gateway."""

from __future__ import annotations

import re
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Literal

import typer
from rich.console import Console

from cluster_remote.access.settings import BadSettings
from cluster_remote.annex.branchlog import BranchLogs
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.completion import behind_gateway
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.options import Json
from cluster_remote.cli.render import emit, table
from cluster_remote.cli.target import annex_repository
from cluster_remote.gateway.listeners import parse_listen
from cluster_remote.gateway.tokens import Token, Tokens, for_node
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode

__all__ = ["KnownToken", "KnownTokens", "NewToken", "app", "create", "list_tokens", "revoke"]

app = typer.Typer(
    name="token",
    help="Create, list and revoke the tokens that clients of this repository's gateway need.",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
)


@dataclass(frozen=True)
class KnownToken:
    """A token, without its text."""

    id: Annotated[str, "for token revoke"]
    mode: Annotated[Literal["read-write", "append-only", "read-only"], "what it allows"]
    note: Annotated[str, "who it is for"]
    created: Annotated[int, "seconds since 1970"]
    expires: Annotated[int | None, "seconds since 1970; null: never"]
    only: Annotated[
        str | None, "UUID of the one repository or cluster it gives access to; null: the clusters and nodes"
    ]
    git: Annotated[bool, "whether it gives access to the gateway's git repository"]
    own: Annotated[bool, "whether it gives access to the contents in the gateway's own repository"]


@dataclass(frozen=True)
class KnownTokens:
    """The tokens of a gateway, oldest first."""

    tokens: list[KnownToken]


@dataclass(frozen=True)
class NewToken:
    """A newly created token."""

    token: KnownToken
    text: Annotated[str, "the token itself, which is not stored"]
    link: Annotated[str | None, "with --link: what git annex p2p --link takes"]


@app.command()
def create(
    read_only: bool = typer.Option(False, "--read-only", help="Allow the client only to read."),
    append_only: bool = typer.Option(False, "--append-only", help="Allow the client to store, but not to remove."),
    note: str = typer.Option("", metavar="TEXT", help="Who it is for; shown by token list and in the gateway's log."),
    link: bool = typer.Option(False, "--link", help="Print a link for git annex p2p --link; requires --address."),
    address: str = typer.Option(
        "", metavar="ADDRESS", help="The gateway's address as the client sees it: unix: or tcp://."
    ),
    node: str = typer.Option(
        "",
        metavar="NAME|UUID",
        help="Give access only to this repository behind the gateway, and by default not to git.",
        autocompletion=behind_gateway,
    ),
    git: bool = typer.Option(
        None,
        "--git/--no-git",
        help="Allow fetching from (and pushing to) the gateway's git repository.",
        show_default=False,
    ),
    own_repository: bool = typer.Option(
        False, "--own-repository", help="Also give access to the contents in the gateway's own repository."
    ),
    expires: str = typer.Option("", metavar="TIME", help="When it expires: 30d (m, h, d, w) or 2027-01-31."),
    as_json: Json = False,
) -> None:
    """Create a token and print it. Only a hash of it is stored, so it cannot be shown again.

    Example: cluster-remote token create --read-only --note "the laptop"
    """

    if read_only and append_only:
        raise BadSettings("--read-only and --append-only exclude each other")
    if link != bool(address):
        raise BadSettings("--link and --address ADDRESS must be given together: a link says where the gateway is")
    repository = annex_repository()
    gateway = str(parse_listen(address)) if link else ""
    wanted = run(_repository_behind, repository, node) if node else None
    mode = Mode.READ_ONLY if read_only else Mode.APPEND_ONLY if append_only else Mode.READ_WRITE
    until = _expiry(expires) if expires else None
    try:
        token, text = Tokens.of(repository).create(
            mode,
            note,
            expires=until,
            only=wanted,
            git=git if git is not None else wanted is None,
            own=own_repository,
        )
    except ValueError as error:
        raise BadSettings(f"--note: {error}") from None
    linked = None
    if link and wanted is None:
        linked = f"p2p-annex::cluster:{gateway}:{text}"
    elif link:
        assert wanted is not None
        linked = f"p2p-annex::cluster:{gateway}?node={wanted}:{for_node(text, wanted)}"
    emit(NewToken(_known(token), text, linked), as_json, _show_new)


@app.command("list")
def list_tokens(as_json: Json = False) -> None:
    """List the tokens: ID, permissions, creation time and note. The tokens themselves are not stored.

    Example: cluster-remote token list
    """
    found = Tokens.of(annex_repository()).all()
    emit(KnownTokens([_known(token) for token in found]), as_json, _show_known)


@app.command()
def revoke(
    token: str = typer.Argument(..., metavar="ID", help="The ID that token list shows."),
    as_json: Json = False,
) -> None:
    """Revoke a token. Clients connected with it are disconnected within a second.

    Example: cluster-remote token revoke 1a2b3c4d
    """
    emit(_known(Tokens.of(annex_repository()).revoke(token)), as_json, _show_revoked)


def _known(token: Token) -> KnownToken:
    only = None if token.only is None else token.only.text
    return KnownToken(token.id, token.mode.value, token.note, token.created, token.expires, only, token.git, token.own)


_UNITS = {"m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def _expiry(text: str) -> int:
    """Parse a duration such as `30d`, or a date; return seconds since 1970. Raises BadSettings."""
    if match := re.fullmatch(r"([0-9]{1,6})([mhdw])", text):
        return int(time.time()) + int(match[1]) * _UNITS[match[2]]
    try:
        moment = int(datetime.strptime(text, "%Y-%m-%d").astimezone().timestamp())
    except ValueError:
        raise BadSettings(
            f"--expires: {text!r} is neither a duration (90m, 12h, 30d, 4w) nor a date (2027-01-31)"
        ) from None
    if moment <= time.time():
        raise BadSettings(f"--expires: {text} is in the past")
    return moment


def _show_new(new: NewToken, console: Console) -> None:
    console.print(new.link or new.text)


def _show_known(known: KnownTokens, console: Console) -> None:
    def at(moment: int | None) -> str:
        return "never" if moment is None else f"{datetime.fromtimestamp(moment).astimezone():%Y-%m-%d %H:%M}"

    def scope(token: KnownToken) -> str:
        parts = [token.only or "the cluster and its nodes"]
        return ", ".join([*parts, *(["git"] if token.git else []), *(["own repository"] if token.own else [])])

    if known.tokens:
        rows = (
            (token.id, token.mode, scope(token), at(token.created), at(token.expires), token.note)
            for token in known.tokens
        )
        console.print(table(("id", "allows", "to", "since", "expires", "note"), rows))
    else:
        console.print("There are no tokens; cluster-remote token create creates one.")


def _show_revoked(token: KnownToken, console: Console) -> None:
    console.print(f"{token.id} is revoked" + (f" ({token.note})" if token.note else ""))


async def _repository_behind(repository: Repository, text: str) -> UUID:
    """Return a repository or cluster behind this gateway, by name or UUID. Raises BadSettings, AnnexError."""
    proxied = (await BranchLogs.read(repository, ["proxy.log"])).proxied
    names = {**proxied.get(repository.uuid, {}), "here": repository.uuid}
    for name, uuid in names.items():
        if text in (name, str(uuid)):
            return uuid
    raise BadSettings(f"there is no {text!r} behind this gateway; choose from {', '.join(sorted(names))}")
