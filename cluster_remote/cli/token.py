"""cluster-remote token: who may come in to the gateway of this repository."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cluster_remote.access.settings import BadSettings
from cluster_remote.cli.completion import behind
from cluster_remote.cli.interrupts import run
from cluster_remote.cli.render import emit, table

if TYPE_CHECKING:
    from rich.console import Console

    from cluster_remote.annex.repository import Repository
    from cluster_remote.gateway.tokens import Token
    from cluster_remote.p2p.key import UUID

__all__ = ["KnownToken", "KnownTokens", "NewToken", "app", "create", "list_tokens", "revoke"]

app = typer.Typer(help="Tokens with which clients come in to the gateway of this repository.", no_args_is_help=True)


@dataclass(frozen=True)
class KnownToken:
    """A token, without its text."""

    id: Annotated[str, "what token revoke takes"]
    mode: Annotated[Literal["read-write", "append-only", "read-only"], "what it allows"]
    note: Annotated[str, "whom it is for"]
    created: Annotated[int, "seconds since 1970"]


@dataclass(frozen=True)
class KnownTokens:
    """The tokens of a gateway, oldest first."""

    tokens: list[KnownToken]


@dataclass(frozen=True)
class NewToken:
    """A token that has just been made."""

    token: KnownToken
    text: Annotated[str, "the token itself, which is kept nowhere"]
    link: Annotated[str | None, "with --link: what git annex p2p --link takes"]


@app.command()
def create(
    read_only: bool = typer.Option(False, "--read-only", help="Let the client only look and get."),
    append_only: bool = typer.Option(False, "--append-only", help="Let the client store, but not remove."),
    note: str = typer.Option("", metavar="TEXT", help="Whom it is for; shown by token list and in the gateway's log."),
    link: bool = typer.Option(False, "--link", help="Print what git annex p2p --link takes; needs --address."),
    address: str = typer.Option("", metavar="ADDRESS", help="Where the gateway is for the client: unix: or tcp://."),
    node: str = typer.Option(
        "",
        metavar="NAME|UUID",
        help="With --link: a repository behind the gateway, in place of the cluster.",
        autocompletion=behind,
    ),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object."),
) -> None:
    """Make a token, and print it: now or never, since only a hash of it is kept.

    Example: cluster-remote token create --read-only --note "the laptop"
    """

    from cluster_remote.cli.target import annex_repository
    from cluster_remote.gateway.listeners import parse_listen
    from cluster_remote.gateway.tokens import Tokens, for_node
    from cluster_remote.p2p.server import Mode

    if read_only and append_only:
        raise BadSettings("--read-only and --append-only do not go together")
    if link != bool(address):
        raise BadSettings("--link and --address ADDRESS go together: a link says where the gateway is")
    if node and not link:
        raise BadSettings("--node goes with --link; to a plain token a client adds /UUID for a node")
    repository = annex_repository()
    place = str(parse_listen(address)) if link else ""
    wanted = run(_repository_behind, repository, node) if node else None
    mode = Mode.READ_ONLY if read_only else Mode.APPEND_ONLY if append_only else Mode.READ_WRITE
    try:
        token, text = Tokens.of(repository).create(mode, note)
    except ValueError as error:
        raise BadSettings(f"--note: {error}") from None
    linked = None
    if link and wanted is None:
        linked = f"p2p-annex::cluster:{place}:{text}"
    elif link:
        assert wanted is not None
        linked = f"p2p-annex::cluster:{place}?node={wanted}:{for_node(text, wanted)}"
    emit(NewToken(_known(token), text, linked), as_json, _show_new)


@app.command("list")
def list_tokens(as_json: bool = typer.Option(False, "--json", help="Print a JSON object.")) -> None:
    """List the tokens: id, what each allows, since when, and its note. The tokens themselves are not kept.

    Example: cluster-remote token list
    """
    from cluster_remote.cli.target import annex_repository
    from cluster_remote.gateway.tokens import Tokens

    found = Tokens.of(annex_repository()).all()
    emit(KnownTokens([_known(token) for token in found]), as_json, _show_known)


@app.command()
def revoke(
    token: str = typer.Argument(..., metavar="ID", help="As token list shows it."),
    as_json: bool = typer.Option(False, "--json", help="Print a JSON object."),
) -> None:
    """Take a token away: it lets nobody in any more. Clients that are connected already stay until they leave.

    Example: cluster-remote token revoke 1a2b3c4d
    """
    from cluster_remote.cli.target import annex_repository
    from cluster_remote.gateway.tokens import Tokens

    emit(_known(Tokens.of(annex_repository()).revoke(token)), as_json, _show_revoked)


def _known(token: Token) -> KnownToken:
    return KnownToken(token.id, token.mode.value, token.note, token.created)


def _show_new(new: NewToken, console: Console) -> None:
    console.print(new.link or new.text)


def _show_known(known: KnownTokens, console: Console) -> None:
    from datetime import datetime

    def since(token: KnownToken) -> str:
        return f"{datetime.fromtimestamp(token.created).astimezone():%Y-%m-%d %H:%M}"

    if known.tokens:
        rows = ((token.id, token.mode, since(token), token.note) for token in known.tokens)
        console.print(table(("id", "allows", "since", "note"), rows))
    else:
        console.print("There are no tokens; cluster-remote token create makes one.")


def _show_revoked(token: KnownToken, console: Console) -> None:
    console.print(f"{token.id} lets nobody in any more" + (f" ({token.note})" if token.note else ""))


async def _repository_behind(repository: Repository, text: str) -> UUID:
    """A repository or cluster behind this gateway, by name or UUID. Raises BadSettings, AnnexError."""
    from cluster_remote.annex.branchlog import BranchLogs

    proxied = (await BranchLogs.read(repository, ["proxy.log"])).proxied
    names = {**proxied.get(repository.uuid, {}), "here": repository.uuid}
    for name, uuid in names.items():
        if text in (name, str(uuid)):
            return uuid
    raise BadSettings(f"there is no {text!r} behind this gateway; there is {', '.join(sorted(names))}")
