"""Logins for HTTP: those of git's credential helpers, asked for as git-annex asks for them."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster_remote.annex.errors import AnnexError
from cluster_remote.p2p.key import decode, encode

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository

__all__ = ["GitCredentials", "Login"]

# Seconds for a credential helper, which may have to ask the user in a window of its own.
_HELPER = 120.0


@dataclass(frozen=True)
class Login:
    """A user name and a password for HTTP's basic authentication."""

    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> bytes:
        """The value of the Authorization header."""
        return b"Basic " + base64.b64encode(encode(f"{self.user}:{self.password}"))


class GitCredentials:
    """Give the login that a token or one of git's credential helpers has for a server.

    `protocol` and `host` are what git is asked for (annex+https, HOST:PORT), with the path that git-annex itself asks
    for (observed with git-annex 10.20261026). Helpers are told whether the server took what they gave. git cannot ask
    on the terminal here, since this is not the program that the user has started. Without a `repository` there is only
    the token.
    """

    def __init__(self, repository: Repository | None, protocol: str, host: str, token: str | None = None) -> None:
        self._repository = repository
        self._description = f"protocol={protocol}\nhost={host}\npath=git-annex\n"
        # Our own gateway takes the token as a password, whatever the user name.
        self._token = None if token is None else Login("token", token)

    async def login(self, refused: Sequence[Login]) -> Login | None:
        """Return the next login to try; None if there are no more. `refused` are those that the server rejected."""
        if self._token is not None and self._token not in refused:
            return self._token
        filled = await self._git("fill", self._description)
        values = dict(line.partition("=")[::2] for line in filled.splitlines())
        if "username" not in values or "password" not in values:
            return None
        login = Login(values["username"], values["password"])
        return None if login in refused else login

    async def accepted(self, login: Login) -> None:
        """Tell the helpers that the server took a login."""
        await self._tell("approve", login)

    async def rejected(self, login: Login) -> None:
        """Tell the helpers that the server did not take a login."""
        await self._tell("reject", login)

    async def _tell(self, verb: str, login: Login) -> None:
        if login != self._token:
            await self._git(verb, f"{self._description}username={login.user}\npassword={login.password}\n")

    async def _git(self, verb: str, description: str) -> str:
        if self._repository is None:
            return ""
        try:
            done = await self._repository.run(
                "git", "credential", verb, input=encode(f"{description}\n"), timeout=_HELPER, accept=range(256)
            )
        except AnnexError:
            # A helper that hangs or a git that is missing has no login to give; the server's answer is the news.
            return ""
        return decode(done.stdout)
