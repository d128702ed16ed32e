"""Peers that are reached through a child process: git-annex-shell on this machine, or ssh to another one."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Mapping, Sequence

import anyio

from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.errors import Unreachable, printable
from cluster_remote.transport.descriptor import DescriptorConnection

__all__ = ["ProcessTransport"]

# Bytes of a child's standard error that are kept for the error message; the last ones matter.
_KEPT = 4096
# Seconds between two looks at whether a child has ended, at first; doubled up to the second figure.
_FIRST_LOOK, _LONGEST_LOOK = 0.001, 0.05


class ProcessTransport(Transport):
    """Runs a program and speaks with its standard input and output.

    `name` is for people; no secret may be in `command`, which everyone on the machine can see.
    """

    def __init__(self, command: Sequence[str], *, name: str, environment: Mapping[str, str], hint: str = "") -> None:
        self.command = list(command)
        self.name = name
        self._environment = dict(environment)
        self._hint = hint

    async def connect(self) -> DescriptorConnection:
        try:
            child = subprocess.Popen(  # noqa: ASYNC220 -- returns as soon as the program has started
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=self._environment,
            )
        except OSError as error:
            hint = f"; {self._hint}" if self._hint else ""
            raise Unreachable(f"cannot run {self.command[0]!r}: {error.strerror}{hint}") from None
        return _ProcessConnection(child)


class _ProcessConnection(DescriptorConnection):
    def __init__(self, child: subprocess.Popen[bytes]) -> None:
        assert child.stdin is not None
        assert child.stdout is not None
        super().__init__(os.dup(child.stdout.fileno()), os.dup(child.stdin.fileno()))
        child.stdin.close()
        child.stdout.close()
        self._child = child
        self._words = bytearray()
        # A thread, so that a talkative child is never blocked. It ends with the child; a daemon, because something
        # that the child left running (a shared ssh connection) may keep the pipe open.
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _listen(self) -> None:
        stderr = self._child.stderr
        assert stderr is not None
        with stderr:
            while data := stderr.read(_KEPT):
                self._words += data
                del self._words[:-_KEPT]

    async def last_words(self) -> str:
        # The reason that a child gives when it ends comes over another pipe than its end does.
        with anyio.move_on_after(0.5):
            while self._listener.is_alive():
                await anyio.sleep(_FIRST_LOOK)
        return printable(bytes(self._words))

    async def aclose(self, patience: float) -> None:
        await super().aclose(patience)
        if not await self._ended(patience):
            self._child.terminate()
            if not await self._ended(patience):
                self._child.kill()
                # Nothing survives this but a process stuck inside the kernel, and nobody waits for that.
                await self._ended(5.0)

    async def _ended(self, patience: float) -> bool:
        pause = _FIRST_LOOK
        with anyio.CancelScope(shield=True), anyio.move_on_after(patience):
            while self._child.poll() is None:
                await anyio.sleep(pause)
                pause = min(2 * pause, _LONGEST_LOOK)
        return self._child.poll() is not None
