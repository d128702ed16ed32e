"""Reach peers through a child process: git-annex-shell on this machine, or ssh to another one."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path

import anyio

from cluster_remote.annex.child import StderrTail, pipes_of, until
from cluster_remote.annex.disk import ask_disk
from cluster_remote.limits import why_refused
from cluster_remote.p2p.client import Transport
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.errors import Unreachable
from cluster_remote.p2p.exhaustion import exhausted_resource
from cluster_remote.p2p.text import printable
from cluster_remote.transport.mountcheck import MountCheck
from cluster_remote.transport.starting import start_in_turn

__all__ = ["ProcessTransport"]

# Seconds to wait for the end of a child's standard error.
_STDERR_REST = 0.5


class ProcessTransport(Transport):
    """Run a program and talk to it over standard input and output.

    `name` is for display; `command` must not contain secrets, because every local user can see it. `directory` is the
    directory that the program works on if it is on this machine; `check` raises Unreachable if it must not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        name: str,
        environment: Mapping[str, str],
        hint: str = "",
        directory: str | None = None,
        check: Callable[[], None] | None = None,
        token: str | None = None,
    ) -> None:
        self.command = list(command)
        self.name = name
        self.token = token
        self._environment = dict(environment)
        self._hint = hint
        self._directory = directory
        self._check = check

    def turn(self) -> AbstractAsyncContextManager[None]:
        """See Transport."""
        return nullcontext() if self._directory is None else start_in_turn()

    async def connect(self) -> DescriptorConnection:
        mount_check = None if self._directory is None else MountCheck(self._directory)
        try:
            if mount_check is not None:
                await mount_check.begin()
            if self._check is not None:
                await ask_disk(self._check)
            return _ProcessConnection(self._start(), mount_check)
        except BaseException:
            if mount_check is not None:
                mount_check.end()
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        try:
            return subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                env=self._environment,
            )
        except OSError as error:
            if exhausted_resource(error):
                # This says nothing about the peer.
                raise
            hint = f"; {self._hint}" if self._hint and isinstance(error, FileNotFoundError) else ""
            raise Unreachable(f"cannot run {self.command[0]!r}: {why_refused(error)}{hint}") from None


class _ProcessConnection(DescriptorConnection):
    def __init__(self, child: subprocess.Popen[bytes], mount_check: MountCheck | None) -> None:
        self._mount_check = mount_check
        super().__init__(*pipes_of(child))
        self._child = child
        self._stderr = StderrTail(child)

    def ended(self) -> bool:
        # If the disk was unmounted, a newly started program finds no repository and says so. If a mount does not
        # answer, only that program waits for it.
        return super().ended() or (self._mount_check is not None and not self._mount_check.is_unchanged())

    async def stderr_tail(self) -> str:
        # Standard error is a pipe of its own, so the child's message may arrive after the end of its output.
        await self._stderr.wait(_STDERR_REST)
        return printable(self._stderr.last)

    async def aclose(self, grace: float) -> None:
        if self._mount_check is not None:
            self._mount_check.end()
        await super().aclose(grace)
        if await self._has_ended(grace):
            return
        with _Descendants() as descendants:
            for number in (signal.SIGTERM, signal.SIGKILL):
                if self._child.poll() is None:
                    descendants.add_new(self._child.pid)
                self._child.send_signal(number)
                descendants.send_signal(number)
                # Only a process stuck in the kernel survives SIGKILL; do not wait for it.
                if await self._has_ended(grace, descendants):
                    break

    async def _has_ended(self, grace: float, descendants: _Descendants | None = None) -> bool:
        def ended() -> bool:
            return self._child.poll() is not None and (descendants is None or descendants.ended())

        with anyio.CancelScope(shield=True):
            await until(ended, grace)
        return ended()


class _Descendants:
    """The running descendants of a child, to be ended with it.

    GIT_SSH_COMMAND runs in a shell, and the user's ssh may be a script: killing just our child would leave a stuck ssh
    behind. A new process group would help too, but a background ssh cannot ask for a password. Daemonised processes,
    such as the master of a shared ssh connection, are not included.

    They are identified by process descriptors, which never refer to another process. On systems without these, only
    the child itself is ended.
    """

    def __init__(self) -> None:
        self._descriptors: dict[int, int] = {}

    def __enter__(self) -> _Descendants:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def add_new(self, pid: int) -> None:
        """Add the new descendants of `pid`, a child that has not been reaped."""
        if not hasattr(os, "pidfd_open"):
            return
        for descendant in _descendants_of(pid):
            if descendant not in self._descriptors:
                # It may have just ended, or the kernel is too old.
                with suppress(OSError):
                    self._descriptors[descendant] = os.pidfd_open(descendant)

    def send_signal(self, number: signal.Signals) -> None:
        for descriptor in self._descriptors.values():
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)

    def ended(self) -> bool:
        """Return whether all of them have ended, which makes their descriptors readable."""
        poll = select.poll()
        for descriptor in self._descriptors.values():
            poll.register(descriptor, select.POLLIN)
        return len(poll.poll(0)) == len(self._descriptors)


def _descendants_of(pid: int) -> list[int]:
    """Return a process's descendants within its process group, as listed by Linux."""
    group = os.getpgid(pid)
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            status = (entry / "stat").read_bytes()
        except OSError:
            continue
        # After the program name in parentheses, which may contain any characters: state, parent, process group.
        _state, parent, process_group = status[status.rindex(b")") + 1 :].split()[:3]
        if int(process_group) == group:
            parents[int(entry.name)] = int(parent)
    found: list[int] = []
    generation = {pid}
    while generation:
        generation = {child for child, parent in parents.items() if parent in generation}
        found += generation
    return found
