"""Get logins for HTTP from git's credential helpers, in the same way as git-annex."""

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

# Seconds for a credential helper, which may have to ask the user in its own window.
_HELPER = 120.0


@dataclass(frozen=True)
class Login:
    """A user name and a password for HTTP's basic authentication."""

    user: str
    password: str = field(repr=False)

    @property
    def header(self) -> bytes:
        """Return the value of the Authorization header."""
        return b"Basic " + base64.b64encode(encode(f"{self.user}:{self.password}"))


class GitCredentials:
    """Provide the login for a server: a token, or the login that git's credential helpers have.

    `wanted` is what git is asked for, one line for each field (git-credential(1)). Helpers are told whether the server
    accepted their login. git cannot prompt on the terminal here, because the user has not started this program.
    Without a `repository`, there is only the token.
    """

    def __init__(self, repository: Repository | None, wanted: str, token: str | None = None) -> None:
        self._repository = repository
        self._wanted = wanted
        # Our own gateway accepts the token as the password, with any user name.
        self._token = None if token is None else Login("token", token)

    async def login(self, refused: Sequence[Login]) -> Login | None:
        """Return the next login to try; None if there are no more. `refused` are those that the server rejected."""
        if self._token is not None and self._token not in refused:
            return self._token
        filled = await self._git("fill", self._wanted)
        values = dict(line.partition("=")[::2] for line in filled.splitlines())
        if "username" not in values or "password" not in values:
            return None
        login = Login(values["username"], values["password"])
        return None if login in refused else login

    async def accepted(self, login: Login) -> None:
        """Tell the helpers that the server accepted a login."""
        await self._tell("approve", login)

    async def rejected(self, login: Login) -> None:
        """Tell the helpers that the server rejected a login."""
        await self._tell("reject", login)

    async def _tell(self, verb: str, login: Login) -> None:
        if login != self._token:
            await self._git(verb, f"{self._wanted}username={login.user}\npassword={login.password}\n")

    async def _git(self, verb: str, description: str) -> str:
        if self._repository is None:
            return ""
        try:
            done = await self._repository.run(
                "git", "credential", verb, input=encode(f"{description}\n"), timeout=_HELPER, accept=range(256)
            )
        except AnnexError:
            # A helper that hangs, or a missing git, means that there is no login. The server's error is more useful.
            return ""
        return decode(done.stdout)
