"""A download over HTTP ends one byte short if it proves invalid, however it arrives."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import pytest

from cluster_remote.gateway.httpbodies import until_valid
from cluster_remote.p2p.session import Download

pytestmark = pytest.mark.anyio


class Parts(Download):
    """A download that arrives in these parts, each in the same buffer."""

    def __init__(self, parts: Sequence[bytes], valid: bool) -> None:
        self.length = sum(map(len, parts))
        self._parts = parts
        self._valid = valid
        self._ended = False

    async def chunks(self) -> AsyncIterator[memoryview]:
        buffer = bytearray(10)
        for part in self._parts:
            buffer[: len(part)] = part
            yield memoryview(buffer)[: len(part)]
        self._ended = True

    async def valid(self) -> bool:
        assert self._ended
        return self._valid


@pytest.mark.parametrize(
    "parts", [[b"content"], [b"c", b"ontent"], [b"conten", b"t"], [b"content", b""], [b"", b"c", b"", b"ontent", b""]]
)
async def test_a_download_is_whole_only_if_it_is_valid(parts: list[bytes]) -> None:
    assert b"".join([part async for part in until_valid(Parts(parts, True))]) == b"content"
    assert b"".join([part async for part in until_valid(Parts(parts, False))]) == b"conten"


async def test_empty_content_has_no_bytes() -> None:
    assert b"".join([part async for part in until_valid(Parts([], True))]) == b""
