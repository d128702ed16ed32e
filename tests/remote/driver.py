"""git-annex's side of the external special remote protocol, for conversations git-annex itself never has."""

from __future__ import annotations

import os
import select
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import TracebackType

from tests.support.environment import Environment
from tests.support.forked import popen_forked
from tests.support.processes import end_group
from tests.support.repositories import Repository

PROGRAM = "git-annex-remote-cluster"
ANSWER_SECONDS = 60.0
ACCEPTED = {
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_KEY_0": "remote.driven.annex-verified",
    "GIT_CONFIG_VALUE_0": "verified",
}
"""The user has said that the remote is safe, as git-annex would note it."""

EXTENSIONS = "EXTENSIONS INFO GETGITREMOTENAME UNAVAILABLERESPONSE ASYNC"


@dataclass
class Driver:
    """Run the special remote in a repository and talk to it line by line.

    Attributes:
        repository: where it runs; nothing of git-annex's is changed there but by the program itself.
        uuid: what GETUUID is answered.
        config: what GETCONFIG is answered, the empty value for anything else.
        credentials: what GETCREDS is answered, and SETCREDS changes: user and password by setting.
        env: variables for the program besides those of the environment.
        forked: whether the program may share the memory of this process, which has imported it already.
        debug: the texts of its DEBUG messages.
        info: the texts of its INFO messages.
        progress: the numbers of its PROGRESS messages.
        complaints: what it wrote to standard error, once it has ended. `with` fails if there is anything.
    """

    repository: Repository
    uuid: str
    config: Mapping[str, str]
    credentials: dict[str, tuple[str, str]] = field(default_factory=dict)
    env: Mapping[str, str] = field(default_factory=dict)
    forked: bool = True
    debug: list[str] = field(default_factory=list)
    info: list[str] = field(default_factory=list)
    progress: list[int] = field(default_factory=list)
    complaints: str = ""

    def __enter__(self) -> Driver:
        self._complaints = tempfile.TemporaryFile()
        start = popen_forked if self.forked else Environment.popen
        self.process = start(
            self.repository.environment,
            PROGRAM,
            cwd=self.repository.path,
            env={**ACCEPTED, **self.env},
            stderr=self._complaints.fileno(),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self._out = self.process.stdin
        self._in = self.process.stdout.fileno()
        self._buffer = b""
        assert self.read() == "VERSION 1"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.hang_up()
        finally:
            end_group(self.process.pid)
            with self.process, self._complaints:
                self._complaints.seek(0)
                self.complaints = os.fsdecode(self._complaints.read())
        if error is None:
            assert not self.complaints, self.complaints

    def hang_up(self, within: float = ANSWER_SECONDS) -> int:
        """Close the program's input, as git-annex does when it is done; return the exit status."""
        if not self._out.closed:
            self._out.close()
        return self.process.wait(within)

    names_remotes = True
    """Whether it knows the remote's name; before 10.20260115 git-annex does not during INITREMOTE."""

    def say(self, line: str) -> None:
        """Send a line."""
        self._out.write(os.fsencode(line) + b"\n")
        self._out.flush()

    def read(self, within: float = ANSWER_SECONDS) -> str:
        """Read the next line; empty if the program has closed its output.

        Raises:
            AssertionError: there was none in time.
        """
        deadline = time.monotonic() + within
        while b"\n" not in self._buffer:
            readable, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            assert readable, f"no line within {within} s, after {self._buffer!r}"
            data = os.read(self._in, 1 << 16)
            if not data:
                assert not self._buffer, f"half a line at the end: {self._buffer!r}"
                return ""
            self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return os.fsdecode(line)

    def ask(self, line: str, within: float = ANSWER_SECONDS) -> str:
        """Send a request and return its answer; answer the program's questions and keep its messages meanwhile."""
        self.say(line)
        return self.answer(within)

    def answer(self, within: float = ANSWER_SECONDS) -> str:
        """Return the answer to the last request; see `ask`."""
        while True:
            line = self.read(within)
            word, _, rest = line.partition(" ")
            match word:
                case "GETCONFIG":
                    self.say(f"VALUE {self.config.get(rest, '')}")
                case "GETUUID":
                    self.say(f"VALUE {self.uuid}")
                case "GETGITDIR":
                    self.say("VALUE .git")
                case "GETGITREMOTENAME":
                    self.say("VALUE driven" if self.names_remotes else "ERROR cannot send this here")
                case "GETCREDS":
                    user, password = self.credentials.get(rest, ("", ""))
                    self.say(f"CREDS {user} {password}")
                case "SETCREDS":
                    setting, user, password = rest.split(" ")
                    self.credentials[setting] = (user, password)
                case "DEBUG":
                    self.debug.append(rest)
                case "INFO":
                    self.info.append(rest)
                case "PROGRESS":
                    self.progress.append(int(rest))
                case _:
                    return line

    def prepare(self) -> None:
        """Negotiate extensions and prepare the remote."""
        assert self.ask(EXTENSIONS).startswith("EXTENSIONS")
        assert self.ask("PREPARE") == "PREPARE-SUCCESS"
