"""Store tokens. Each belongs to the address that the user gave it for, and is sent to no other.

The environment variable only applies when an address is given, on the command line or to initremote. After that, a
remote uses its own token, stored with git-annex's other credentials.
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

# Stored instead of the address by versions that did not record it.
_NO_ADDRESS = "token"


def given_token() -> str | None:
    """Return the token in the environment, which is for an address given at the same time."""
    return os.environ.get(TOKEN) or None


def stored_token(repository: Repository, uuid: UUID, address: Address) -> str | None:
    """Return a remote's token for this address. Raises CredentialsUnreadable.

    The nodes behind one gateway share its token.
    """
    gateway = str(gateway_of(address))
    stored = read_credentials(repository, uuid, _setting(gateway))
    return stored[1] if stored is not None and stored[0] in (gateway, _NO_ADDRESS) else None


def store_token(repository: Repository, uuid: UUID, address: Address, token: str) -> None:
    """Store a token for this address with git-annex's other credentials. Raises CredentialsUnreadable."""
    gateway = str(gateway_of(address))
    write_credentials(repository, uuid, _setting(gateway), gateway, token)


def _setting(gateway: str) -> str:
    """Return the name under which git-annex stores the credentials.

    git-annex stores them by repository UUID, which two remotes for one cluster share; so the name contains the address.
    """
    return "token-" + hashlib.sha256(gateway.encode("utf-8", "surrogateescape")).hexdigest()[:16]
