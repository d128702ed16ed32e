"""Handle INITREMOTE: check that the remote is what it claims to be, and that it works."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster_remote.access.configuration import awaits_verification
from cluster_remote.access.identity import wanted_server
from cluster_remote.access.settings import TOKEN, BadSettings
from cluster_remote.access.tokens import given_token, store_token
from cluster_remote.annex.verification import verified
from cluster_remote.p2p.errors import AuthenticationFailed, ConnectionLost, SessionError, WrongRepository
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.text import as_command
from cluster_remote.remote.identity import Commands, check_server
from cluster_remote.transport.address import BadAddress

if TYPE_CHECKING:
    from cluster_remote.remote.context import Context

__all__ = ["initialise", "refuse_embedding"]


def refuse_embedding(embedcreds: str) -> None:
    """Refuse to store the token in the git-annex branch, which is shared. Raises BadSettings.

    The parameter may have come through the branch, from someone who wants to read the tokens of others there.
    """
    if embedcreds not in {"", "no"}:
        raise BadSettings(
            f"embedcreds={embedcreds} would store the token in the git-annex branch, readable by everyone; it "
            "belongs in .git/annex/creds: use embedcreds=no"
        )


async def initialise(context: Context) -> str:
    """Check the remote and store its token; return a message for the user, if any.

    A configuration that came through the git-annex branch and was never verified here gets no connection and no token.
    Raises BadSettings, SessionError, AnnexError.
    """
    settings = context.settings
    await context.read_repository()
    token = given_token() if settings.address is not None and settings.address.wants_token else None
    if awaits_verification(settings, context.logs, verified(context.repository)):
        message = (
            f"nothing was contacted, because this configuration came through the git-annex branch: check it, and "
            f"confirm that it is safe: {as_command('git annex verifyremote', settings.name)}"
        )
        if token is not None:
            message += f". The token was not used; provide it after that: {settings.new_token_command}"
        return message
    await _check(context)
    if token is not None:
        assert settings.address is not None
        store_token(context.repository, settings.uuid, settings.address, token)
    return ""


async def _check(context: Context) -> None:
    """Connect, and refuse what would make the location log wrong. Raises BadSettings, SessionError, AnnexError."""
    settings = context.settings
    commands = Commands.of(settings, context.config, context.logs)
    if settings.address is None:
        await _check_serverless(commands, context)
        return
    wanted = wanted_server(settings, context.logs, context.config.clusters())
    if settings.tracking == "nodes" and not settings.sameas and not settings.is_alias:
        # git-annex has just generated the UUID, or the remote must not take over this one.
        wanted = None
    try:
        server = await _identify_server(context, wanted)
    except (AuthenticationFailed, BadAddress) as error:
        # The address is known to be right; only the token can be wrong now.
        raise BadSettings(f"{error}: {TOKEN}=… {commands.again()}") from None
    except WrongRepository:
        raise
    except SessionError as error:
        raise BadSettings(f"{error}. Once the url is right and reachable: {commands.again()}") from None
    if settings.uuid == server == context.repository.uuid:
        # git annex move would leave no copy, whatever answers at the address.
        raise BadSettings(
            f"{settings.uuid} is this repository itself, which cannot be a remote of its own; give the url of a "
            "gateway, or the UUID of its cluster"
        )
    check_server(commands, server, context.logs)


async def _identify_server(context: Context, wanted: UUID | None) -> UUID:
    try:
        return await _ask(context, wanted)
    except (WrongRepository, ConnectionLost):
        if wanted is None:
            raise
        # git-annex-shell exits if it does not serve the requested repository. Find out which one it serves.
        try:
            server = await _ask(context, None)
        except SessionError:
            server = wanted
        if server == wanted or context.settings.tracking == "remote":
            raise
        return server


async def _ask(context: Context, wanted: UUID | None) -> UUID:
    session = await context.session_with(wanted)
    try:
        return await session.open()
    finally:
        await session.aclose()


async def _check_serverless(commands: Commands, context: Context) -> None:
    settings = commands.settings
    clusters = context.config.clusters()
    if not clusters:
        raise BadSettings(
            "there is no url, and this repository has no cluster of its own; give the url of a gateway, or create a "
            "cluster of this repository's remotes: cluster-remote setup NAME --node REMOTE --node REMOTE"
        )
    own = set(clusters.values())
    if settings.is_alias:
        server = wanted_server(settings, context.logs, clusters)
        if server not in own:
            raise BadSettings(
                f"the cluster {settings.cluster} is not set up in this repository: "
                + as_command("cluster-remote setup", settings.name)
            )
        check_server(commands, server, context.logs)
        return
    fits = settings.uuid in own if settings.tracking == "nodes" else settings.encryption != "none"
    if not fits or settings.sameas != (settings.tracking == "nodes"):
        raise BadSettings(
            "without a url, the remote must be the same as the cluster of this repository: "
            + commands.same_as(sorted(own))
        )
    session = await context.session_with(None if settings.tracking == "remote" else settings.uuid)
    try:
        await session.open()
    finally:
        await session.aclose()
