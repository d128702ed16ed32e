"""Run the user's commands around the use of a remote (`annex-start-command`, `annex-stop-command`)."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field

import anyio

from cluster_remote.annex.errors import AnnexError
from cluster_remote.annex.repository import Repository
from cluster_remote.cluster.wrapping import Wrapper
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.session import Session

__all__ = ["Commands", "WithCommands"]

# Seconds for a start or stop command; waking up a machine takes a while.
_COMMAND = 300.0


@dataclass
class Commands:
    """The commands to run before a remote's first use and after its last. Shared by all sessions with it.

    As in git-annex (observed with 10.20261026), the start command runs once per process, regardless of other users of
    the remote, and the stop command in the last process, as determined by the lock file.
    """

    repository: Repository
    uuid: UUID
    start: str | None
    stop: str | None
    _users: int = 0
    _descriptor: int | None = None
    _mutex: anyio.Lock = field(default_factory=anyio.Lock)

    async def begin(self) -> None:
        """Run the start command on first use. Raises Unreachable if the lock file cannot be created."""
        async with self._mutex:
            self._users += 1
            if self._descriptor is None:
                self._descriptor = self._open_lock_file()
                await self._run(self.start)

    async def end(self) -> None:
        """Run the stop command after the last use, here and in other processes."""
        async with self._mutex:
            self._users -= 1
            if self._users or self._descriptor is None:
                return
            descriptor, self._descriptor = self._descriptor, None
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                await self._run(self.stop)
            except OSError:
                # Another process still uses the remote, and will stop it.
                pass
            finally:
                os.close(descriptor)

    def _open_lock_file(self) -> int:
        file = self.repository.annex_dir / "remotes" / f"{self.uuid}.lck"
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise Unreachable(f"cannot open {file}: {error.strerror}") from None
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            # Another process is running the stop command. The start command, which comes next, may run at any time.
            pass
        return descriptor

    async def _run(self, command: str | None) -> None:
        if command is not None:
            try:
                # As in git-annex, the exit code does not matter: what counts is whether the remote answers.
                await self.repository.run("sh", "-c", command, timeout=_COMMAND, accept=range(256))
            except AnnexError as error:
                raise Unreachable(str(error)) from None


class WithCommands(Wrapper):
    """Run the remote's start command before its first use, and the stop command after its last."""

    def __init__(self, inside: Session, commands: Commands) -> None:
        super().__init__(inside)
        self._commands = commands
        self._begun = False

    async def _before(self) -> None:
        if not self._begun:
            self._begun = True
            await self._commands.begin()

    async def aclose(self) -> None:
        await super().aclose()
        if self._begun:
            self._begun = False
            await self._commands.end()
