"""Tokens: each belongs to the address that the user gave it for, and goes to no other.

The environment variable is for the moment at which an address is given: on the command line, or by initremote. From
then on a remote has its own, with git-annex's other credentials.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

from cluster_remote.access.settings import TOKEN
from cluster_remote.annex.credentials import read_credentials, write_credentials
from cluster_remote.transport.address import gateway_of

if TYPE_CHECKING:
    from cluster_remote.annex.repository import Repository
    from cluster_remote.p2p.key import UUID
    from cluster_remote.transport.address import Address

__all__ = ["given_token", "store_token", "stored_token"]

# What stood in place of the address before that was kept with the token.
_BEFORE = "token"


def given_token() -> str | None:
    """The token in the environment, for an address that this user gives at the same time."""
    return os.environ.get(TOKEN) or None


def stored_token(repository: Repository, uuid: UUID, address: Address) -> str | None:
    """The token that was given for this address, of the remote with that UUID. Raises CredentialsUnreadable.

    The nodes behind one gateway share its token.
    """
    gateway = str(gateway_of(address))
    stored = read_credentials(repository, uuid, _setting(gateway))
    return stored[1] if stored is not None and stored[0] in (gateway, _BEFORE) else None


def store_token(repository: Repository, uuid: UUID, address: Address, token: str) -> None:
    """Keeps a token for this address with git-annex's other credentials. Raises CredentialsUnreadable."""
    gateway = str(gateway_of(address))
    write_credentials(repository, uuid, _setting(gateway), gateway, token)


def _setting(gateway: str) -> str:
    """The name under which git-annex would keep the credentials.

    It files them by the UUID of the repository, which two remotes for one cluster share; so the address is in the name.
    """
    return "token-" + hashlib.sha256(gateway.encode("utf-8", "surrogateescape")).hexdigest()[:16]
