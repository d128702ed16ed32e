"""Share one ssh connection per server, as git-annex does (ssh_config(5): ControlMaster, ControlPersist).

Only this process uses its shared connections: their sockets are in a new private directory, so none can be stale or
belong to another process. Logins are made one at a time, because later ones can share the first one's connection. sshd
allows ten sessions per connection (sshd_config(5), MaxSessions); for more, another connection is shared.
"""

from __future__ import annotations

import atexit
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio
from anyio import CapacityLimiter
from anyio.lowlevel import RunVar

from cluster_remote.annex.private import others_can_replace
from cluster_remote.p2p.errors import NotReached, SessionError, TimedOut

__all__ = ["Server", "SharedConnection", "server_of"]

# Concurrent logins per server without sharing: sshd starts refusing at ten (sshd_config(5), MaxStartups), and other
# programs log in there too.
_LOGINS = 4
# sshd's default for MaxSessions. If a server allows fewer, ssh itself falls back to a connection of its own.
_SESSIONS = 10
# Seconds that a connection may be idle. Connections are closed at exit; this limit is for when we are killed.
_IDLE = 60
# Bytes of a socket's path: about 100 on all systems, of which ssh needs 17 for a temporary name.
_LONGEST_PATH = 100 - 17
_PREFIX = "cluster-remote-ssh-"
# Seconds for connections to close at exit, and between checks.
_CLOSING, _POLL = 1.0, 0.01


@dataclass(eq=False)
class SharedConnection:
    """A connection that ssh holds open in the background, with a socket at `path`.

    `sessions` are the ssh processes that use it; `starting` counts those that are being started.
    """

    path: str
    sessions: list[subprocess.Popen[bytes]] = field(default_factory=list)
    starting: int = 0

    @property
    def options(self) -> tuple[str, ...]:
        """Return the options for ssh to use this connection, and to open it if necessary."""
        return ("-S", self.path, "-o", "ControlMaster=auto", "-o", f"ControlPersist={_IDLE}")

    def has_room(self) -> bool:
        """Return whether the server allows one more session."""
        self.sessions = [each for each in self.sessions if each.poll() is None]
        return len(self.sessions) + self.starting < _SESSIONS

    def alive(self) -> bool:
        """Return whether the ssh that holds it is running. Never waits."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.setblocking(False)
            try:
                probe.connect(self.path)
            except OSError:
                return False
        return True


class Server:
    """The connections to one server as one user, with one set of options."""

    def __init__(self) -> None:
        self._logins = CapacityLimiter(_LOGINS)
        self._first = anyio.Lock()
        self._connections: list[SharedConnection] = []
        # The last failed login, and when it failed.
        self._failure: tuple[float, SessionError] | None = None
        self._can_share = True

    @asynccontextmanager
    async def turn(
        self, closing: Sequence[str] | None, environment: Mapping[str, str]
    ) -> AsyncIterator[SharedConnection | None]:
        """Wait for a turn to connect, and return the shared connection to use, if any.

        `closing` is the command that closes a shared connection, with an empty word where the path of its socket goes;
        None disables sharing. Raises SessionError if the login that this waited for has failed.
        """
        async with self._logins:
            if closing is None or not self._can_share or (directory := _directory()) is None:
                yield None
                return
            if (shared := self._free()) is None:
                asked = time.monotonic()
                async with self._first:
                    self._raise_failure_since(asked)
                    if self._can_share and (shared := self._free()) is None:
                        shared = SharedConnection(directory.new_path())
                        directory.closing[shared.path] = ([word or shared.path for word in closing], environment)
                        async with self._logging_in(shared):
                            yield shared
                        return
            if shared is None:
                yield None
                return
            shared.starting += 1
            try:
                yield shared
            except SessionError as error:
                if isinstance(error, TimedOut) or not shared.alive():
                    self._drop(shared)
                raise
            finally:
                shared.starting -= 1

    def _free(self) -> SharedConnection | None:
        for shared in tuple(self._connections):
            if shared.has_room():
                if shared.alive():
                    return shared
                self._drop(shared)
        return None

    def _drop(self, shared: SharedConnection) -> None:
        with suppress(ValueError):
            self._connections.remove(shared)

    def _raise_failure_since(self, moment: float) -> None:
        if self._failure is not None and self._failure[0] >= moment:
            error = self._failure[1]
            raise (TimedOut if isinstance(error, TimedOut) else NotReached)(str(error))

    @asynccontextmanager
    async def _logging_in(self, shared: SharedConnection) -> AsyncIterator[None]:
        try:
            yield
        except SessionError as error:
            if shared.alive():
                # The login succeeded; the fault is in the repository or the program there.
                self._connections.append(shared)
            else:
                self._failure = (time.monotonic(), error)
            raise
        if shared.alive():
            self._connections.append(shared)
        else:
            # This ssh does not share connections.
            self._can_share = False


class _Directory:
    """This process's directory of sockets. At exit, close the connections and remove it.

    `closing` maps each socket to the command that closes its connection, and the environment for it.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.closing: dict[str, tuple[Sequence[str], Mapping[str, str]]] = {}
        self._count = 0
        self._owner = os.getpid()
        atexit.register(self.close)

    def new_path(self) -> str:
        self._count += 1
        return os.path.join(self.path, str(self._count))  # noqa: PTH118 -- for ssh, which takes words

    def close(self) -> None:
        if os.getpid() != self._owner:
            return
        children = [
            subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            for path, (command, environment) in self.closing.items()
            if os.path.lexists(path)
        ]
        end = time.monotonic() + _CLOSING
        while any(child.poll() is None for child in children) and time.monotonic() < end:
            time.sleep(_POLL)
        for child in children:
            child.kill()
        shutil.rmtree(self.path, ignore_errors=True)


_servers: RunVar[dict[tuple[str, ...], Server]] = RunVar("cluster_remote_ssh_servers")
_directories: list[_Directory] = []


def server_of(login: tuple[str, ...]) -> Server:
    """Return the server for a login; `login` is the ssh command line, which determines the connection."""
    try:
        servers = _servers.get()
    except LookupError:
        servers = {}
        _servers.set(servers)
    return servers.setdefault(login, Server())


def _directory() -> _Directory | None:
    """Return this process's directory of sockets; None if every possible path is too long for a socket."""
    if not _directories:
        for parent in (os.environ.get("XDG_RUNTIME_DIR"), tempfile.gettempdir(), "/tmp"):
            # ssh expands % and $ in the path.
            if not parent or not parent.startswith("/") or re.search("[%$]", parent):
                continue
            if len(os.fsencode(parent)) + len(_PREFIX) + 20 > _LONGEST_PATH:
                continue
            with suppress(OSError):
                # ssh hands its standard input and output to whoever listens on the socket. mkdtemp makes a new
                # directory with mode 0700, or fails.
                if others_can_replace(Path(parent)):
                    continue
                _directories.append(_Directory(tempfile.mkdtemp(prefix=_PREFIX, dir=parent)))
                break
    return _directories[0] if _directories else None
