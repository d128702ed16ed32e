"""Limit the bandwidth of sessions (`annex-bwlimit`, `annex-bwlimit-upload`, `annex-bwlimit-download`)."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import anyio

from cluster_remote.cluster.wrapping import Wrapper
from cluster_remote.p2p.key import UUID, AssociatedFile, Key
from cluster_remote.p2p.session import (
    Download,
    Present,
    Progress,
    Session,
    Source,
    SourceReading,
    Stored,
    Upload,
    WrappedSource,
)

__all__ = ["Rates", "Throttled"]


@dataclass(frozen=True)
class Rates:
    """Maximum bytes per second; None for no limit."""

    up: float | None = None
    down: float | None = None


class _Pacing:
    """Sleep as needed to keep the average since the start below the rate."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._began = anyio.current_time()
        self._passed = 0

    async def passed(self, count: int) -> None:
        self._passed += count
        await anyio.sleep_until(self._began + self._passed / self._rate)


class Throttled(Wrapper):
    """Apply the remote's bandwidth limits."""

    def __init__(self, inside: Session, rates: Rates) -> None:
        super().__init__(inside)
        self._rates = rates

    @asynccontextmanager
    async def upload(self, key: Key, file: AssociatedFile) -> AsyncIterator[Present | Upload]:
        async with self.inside.upload(key, file) as offer:
            limited = self._rates.up is not None and isinstance(offer, Upload)
            yield _SlowUpload(offer, self._rates.up) if limited else offer  # type: ignore[arg-type]

    async def store(
        self, key: Key, file: AssociatedFile, source: Source, progress: Progress | None = None
    ) -> Present | Stored:
        slowed = source if self._rates.up is None else _slowed(source, self._rates.up)
        return await self.inside.store(key, file, slowed, progress)

    @asynccontextmanager
    async def download(self, key: Key, file: AssociatedFile, offset: int = 0) -> AsyncIterator[Download]:
        async with self.inside.download(key, file, offset) as download:
            yield download if self._rates.down is None else _SlowDownload(download, self._rates.down)


class _SlowUpload(Upload):
    def __init__(self, inside: Upload, rate: float) -> None:
        self.offset = inside.offset
        self._inside = inside
        self._rate = rate

    async def send(self, source: Source, progress: Progress | None = None) -> Stored:
        return await self._inside.send(_slowed(source, self._rate), progress)

    async def check_arrived(self) -> Stored:
        return await self._inside.check_arrived()


def _slowed(source: Source, rate: float) -> Source:
    return WrappedSource(source, lambda reading: _SlowReading(reading, rate))


class _SlowReading(SourceReading):
    def __init__(self, inside: SourceReading, rate: float) -> None:
        self.length = inside.length
        self._inside = inside
        self._pacing = _Pacing(rate)

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        async for chunk in self._inside.chunks():
            await self._pacing.passed(len(chunk))
            yield chunk

    async def valid(self) -> bool:
        return await self._inside.valid()


class _SlowDownload(Download):
    def __init__(self, inside: Download, rate: float) -> None:
        self.length = inside.length
        self._inside = inside
        self._rate = rate

    @property
    def origin(self) -> UUID | None:
        return self._inside.origin

    async def chunks(self) -> AsyncIterator[bytes | memoryview]:
        pacing = _Pacing(self._rate)
        async for chunk in self._inside.chunks():
            await pacing.passed(len(chunk))
            yield chunk

    async def valid(self) -> bool:
        return await self._inside.valid()
