"""A real ssh server on the loopback interface, which runs commands as sshd would."""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shlex
import signal
import threading
from concurrent.futures import Future
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import anyio
import asyncssh

from .environment import Environment

CHUNK = 256 * 1024
START_SECONDS = 20.0

CLIENT_CONFIG = """\
Host {host}
\tHostName 127.0.0.1
\tPort {port}
Host *
\tUser {user}
\tIdentityFile "{identity}"
\tIdentitiesOnly yes
\tIdentityAgent none
\tUserKnownHostsFile "{known_hosts}"
\tGlobalKnownHostsFile /dev/null
\tStrictHostKeyChecking yes
\tPreferredAuthentications publickey
\tBatchMode yes
\tControlMaster no
\tControlPath none
\tConnectTimeout 10
\tLogLevel ERROR
"""


class SshServer:
    """Runs commands through `sh -c` in an environment's home directory for clients that have the one key.

    Attributes:
        port: the same for as long as the object lives, also after `stop` and `start`.
        host: a name that the client's configuration knows, with the port: `host:/dir` is an address.
        user: whom the client logs in as.
        client_command: a value for GIT_SSH_COMMAND.
        variables: what git and git-annex need in their environment to reach this server.
        connections: how many clients have connected so far.
        sessions: how many commands one connection may run at the same time.
    """

    host = "gateway.test"

    def __init__(self, environment: Environment) -> None:
        """Make keys and configuration in the environment's directory; `start` or `with` runs the server."""
        self.environment = environment
        self.user = getpass.getuser()
        self.port = 0
        self.connections = 0
        self.sessions = 10
        self._directory = environment.directory / "ssh"
        self._directory.mkdir()
        self._host_key = asyncssh.generate_private_key("ssh-ed25519")
        self._client_key = asyncssh.generate_private_key("ssh-ed25519")
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None

    @property
    def client_command(self) -> str:
        """How to run the system's ssh so that it reaches this server and looks at no other configuration."""
        return f"ssh -F {shlex.quote(str(self._directory / 'config'))}"

    @property
    def variables(self) -> dict[str, str]:
        """Variables for git and git-annex; the latter looks at GIT_SSH_COMMAND only if told to."""
        return {"GIT_SSH_COMMAND": self.client_command, "GIT_ANNEX_USE_GIT_SSH": "1"}

    def url(self, path: Path) -> str:
        """The address of a repository behind this server, as an ssh:// url."""
        return f"ssh://{self.user}@127.0.0.1:{self.port}{path}"

    def start(self) -> None:
        """Begin to serve.

        Raises:
            AssertionError: it does already, or could not begin within `START_SECONDS`.
        """
        assert self._thread is None, "the ssh server runs already"
        started: Future[None] = Future()
        self._thread = threading.Thread(target=self._run, args=(started,), name="ssh server", daemon=True)
        self._thread.start()
        started.result(START_SECONDS)

    def stop(self) -> None:
        """Stop: cut every connection, kill every command, and refuse new connections."""
        if self._thread is None:
            return
        assert self._loop is not None
        assert self._stop is not None
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(START_SECONDS)
        assert not self._thread.is_alive(), "the ssh server did not stop"
        self._thread = None

    def __enter__(self) -> SshServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def _run(self, started: Future[None]) -> None:
        try:
            asyncio.run(self._serve(started))
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    async def _serve(self, started: Future[None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        open_connections: set[asyncssh.SSHServerConnection] = set()
        commands: set[asyncio.Task[None]] = set()
        outer = self

        class Connection(asyncssh.SSHServer):  # type: ignore[misc]  # asyncssh is not checked
            """Counts connections, and remembers them so that they can be cut."""

            def connection_made(self, connection: asyncssh.SSHServerConnection) -> None:
                outer.connections += 1
                self._connection = connection
                self._commands = 0
                open_connections.add(connection)

            def session_requested(self) -> Any:
                if self._commands >= outer.sessions:
                    raise asyncssh.ChannelOpenError(asyncssh.OPEN_ADMINISTRATIVELY_PROHIBITED, "too many sessions")
                self._commands += 1
                return asyncssh.SSHServerProcess(self._run, None, 3, False)

            async def _run(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
                try:
                    await command(process)
                finally:
                    self._commands -= 1

            def connection_lost(self, error: Exception | None) -> None:
                open_connections.discard(self._connection)

        async def command(process: asyncssh.SSHServerProcess[bytes]) -> None:
            task = asyncio.current_task()
            assert task is not None
            commands.add(task)
            try:
                await self._run_command(process)
            finally:
                commands.discard(task)

        acceptor = await asyncssh.listen(
            "127.0.0.1",
            self.port,
            server_factory=Connection,
            server_host_keys=[self._host_key],
            authorized_client_keys=asyncssh.import_authorized_keys(
                self._client_key.export_public_key("openssh").decode()
            ),
            encoding=None,
            compression_algs=None,
            reuse_address=True,
        )
        try:
            self.port = acceptor.get_port()
            self._write_client_files()
            started.set_result(None)
            await self._stop.wait()
        finally:
            acceptor.close()
            for connection in tuple(open_connections):
                connection.abort()
            for task in tuple(commands):
                task.cancel()
            await asyncio.gather(*commands, return_exceptions=True)
            await acceptor.wait_closed()

    def _write_client_files(self) -> None:
        identity, known_hosts = self._directory / "id_ed25519", self._directory / "known_hosts"
        if not identity.exists():
            identity.touch(mode=0o600)
            identity.write_bytes(self._client_key.export_private_key("openssh"))
        public = self._host_key.export_public_key("openssh").decode().split()
        known_hosts.write_text(f"[127.0.0.1]:{self.port} {public[0]} {public[1]}\n")
        (self._directory / "config").write_text(
            CLIENT_CONFIG.format(
                host=self.host, port=self.port, user=self.user, identity=identity, known_hosts=known_hosts
            )
        )

    async def _run_command(self, process: asyncssh.SSHServerProcess[bytes]) -> None:
        """One command of a client, from its start until everything it wrote has been handed on."""
        if process.command is None:
            process.stderr.write(b"this server has no login shell\n")
            process.exit(1)
            return
        child = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            process.command,
            cwd=self.environment.home,
            env=self.environment.env,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        pipes: Any = cast(Any, child)._transport  # asyncio has no public name for it
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(_feed, process, child.stdin)
                async with anyio.create_task_group() as outputs:
                    outputs.start_soon(_copy, child.stdout, pipes.get_pipe_transport(1), process.stdout)
                    outputs.start_soon(_copy, child.stderr, pipes.get_pipe_transport(2), process.stderr)
                status = await child.wait()
                group.cancel_scope.cancel()
            if status < 0:
                process.exit_with_signal(signal.Signals(-status).name.removeprefix("SIG"))
            else:
                process.exit(status)
        finally:
            if child.returncode is None:
                # It may have ended already, and asyncio be about to say so: then there is no such group any more.
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(child.pid, signal.SIGKILL)
            # Before it is waited for: asyncio would wait for the end of what it wrote, which nobody reads any more.
            pipes.close()
            with anyio.CancelScope(shield=True):
                await child.wait()


async def _feed(process: asyncssh.SSHServerProcess[bytes], target: asyncio.StreamWriter) -> None:
    """Pass on what the client sends; close the command's input when the client closes or disconnects."""
    try:
        while chunk := await process.stdin.read(CHUNK):
            target.write(chunk)
            await target.drain()
    except (OSError, asyncssh.Error, asyncssh.SignalReceived, asyncssh.BreakReceived):
        # A cut connection, or a command that reads no more: there is nothing left to hand on.
        pass
    finally:
        target.close()


async def _copy(source: asyncio.StreamReader, pipe: asyncio.BaseTransport, target: asyncssh.SSHWriter[bytes]) -> None:
    """Pass on what a command writes; once the client is gone, writing fails for the command."""
    while chunk := await source.read(CHUNK):
        try:
            target.write(chunk)
            await target.drain()
        except (OSError, asyncssh.Error):
            pipe.close()
            return
