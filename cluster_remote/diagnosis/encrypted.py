"""Derive the encrypted keys under which nodes store content, so that it can be copied between nodes without decryption.

git-annex derives an encrypted key from the repository's key and the remote's cipher. A shared cipher is in remote.log,
readable with the repository; other ciphers require gpg, and are left to git-annex. (git-annex's pages "encryption" and
"chunking"; observed with git-annex 10.20261026.)
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import anyio

from cluster_remote.access.view import View
from cluster_remote.access.ways import Serverless
from cluster_remote.annex import logformat
from cluster_remote.annex.branchlog import read_files
from cluster_remote.annex.locations import Batches, Located
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID, Key, decode

__all__ = ["Cipher", "view_of_nodes"]

# The bytes of a cipher that keys are derived with; the rest encrypts contents.
_MAC_KEY_LENGTH = 256
_DIGESTS = {"HMACSHA1": "sha1", "HMACSHA224": "sha224", "HMACSHA256": "sha256", "HMACSHA384": "sha384",
            "HMACSHA512": "sha512"}  # fmt: skip
_AHEAD = 2


@dataclass(frozen=True)
class Cipher:
    """The part of a remote's shared cipher that keys are derived with. `remote` is the remote's UUID."""

    remote: UUID
    mac: str
    secret: bytes = field(repr=False)

    def name(self, key: Key) -> Key:
        """Return the key under which the nodes have the content of `key`, which may be a chunk's."""
        return Key(f"GPG{self.mac}--{hmac.new(self.secret, bytes(key), _DIGESTS[self.mac]).hexdigest()}")

    @asynccontextmanager
    async def named(self, repository: Repository, batches: Batches) -> AsyncIterator[Batches]:
        """Replace the keys that the remote has, by the location log, by their encrypted keys, which no log lists."""
        send, receive = anyio.create_memory_object_stream[list[Located]](_AHEAD)

        async def work() -> None:
            async with send:
                async for batch in batches:
                    held = [each for each in batch if self.remote in each.holders]
                    logs = await _chunk_logs(repository, held)
                    names = [
                        Located(self.name(key), frozenset(), file=each.file)
                        for each, log in zip(held, logs, strict=True)
                        for key in _stored_keys(each.key, log, self.remote)
                    ]
                    if names:
                        await send.send(names)

        async with anyio.create_task_group() as tasks, receive:
            tasks.start_soon(work)
            yield receive
            tasks.cancel_scope.cancel()


def view_of_nodes(view: View) -> tuple[View, Cipher | None]:
    """Return a view of the nodes behind an encrypted remote without a server, and the remote's cipher.

    Any other view is returned unchanged; so is one whose cipher cannot be read.
    """
    settings, way = view.settings, view.way
    if settings is None or settings.encryption != "shared" or not isinstance(way, Serverless):
        return view, None
    parameters = view.logs.remotes.get(settings.uuid, {})
    mac = parameters.get("mac", "HMACSHA1")
    try:
        secret = base64.b64decode(parameters["cipher"], validate=True)[:_MAC_KEY_LENGTH]
    except (KeyError, ValueError):
        return view, None
    if mac not in _DIGESTS or len(secret) < _MAC_KEY_LENGTH:
        return view, None
    cluster = way.membership.cluster
    nodes = replace(view, settings=None, known_uuid=cluster, server=cluster)
    return nodes, Cipher(settings.uuid, mac, secret)


async def _chunk_logs(repository: Repository, keys: list[Located]) -> list[bytes]:
    levels = await repository.log_levels()
    paths = [decode(logformat.branch_path(each.key, levels=levels)) + ".cnk" for each in keys]
    files = await read_files(repository, paths) if paths else {}
    return [files[path] for path in paths]


def _stored_keys(key: Key, log: bytes, remote: UUID) -> Iterator[Key]:
    """Yield the keys under which git-annex stores content, by its chunk log: those of its chunks, or its own."""
    lines = ((clock, *rest.rpartition(" ")[::2]) for clock, rest in logformat.dated(log))
    chunked = False
    for where, count in logformat.newest(lines).items():
        uuid, _, size = where.partition(":")
        if uuid == remote.text and size.isdecimal() and count.isdecimal() and int(count) > 0:
            chunked = True
            fields, _, name = key.text.partition("--")
            for number in range(1, int(count) + 1):
                yield Key(f"{fields}-S{size}-C{number}--{name}")
    if not chunked:
        yield key
