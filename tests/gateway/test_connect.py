"""CONNECT: a client's git and the gateway's own repository, also if one of them misbehaves."""

from __future__ import annotations

import socket
import stat
from collections.abc import Callable

import anyio
import pytest

from cluster_remote.annex.repository import Repository as AnnexRepository
from cluster_remote.annex.repository import foreign_environment
from cluster_remote.gateway import connect
from cluster_remote.gateway.connect import GitService
from cluster_remote.p2p.descriptor import DescriptorConnection
from cluster_remote.p2p.relay import ClientGone, ClientMisbehaved
from cluster_remote.p2p.stream import MessageStream
from tests.p2p.conversation import Conversation
from tests.support.environment import Environment
from tests.support.processes import wait_until
from tests.support.repositories import Repository, make_repository

pytestmark = pytest.mark.anyio

ZERO = "0" * 40


@pytest.fixture
def repository(environment: Environment) -> Repository:
    # Asks git once in the life of a process; it has to be the real one, not what a test puts in its place.
    foreign_environment()
    return make_repository(environment, environment.directory / "gateway", "gateway")


class Talk(Conversation):
    """A client's side of CONNECT."""

    outcome: BaseException | None = None

    async def git(self, *packets: bytes) -> None:
        """Send packets as git does."""
        data = b"".join(b"%04x" % (len(packet) + 4) + packet if packet else b"0000" for packet in packets)
        await self.say(f"DATA {len(data)}", data)

    async def everything(self) -> tuple[bytes, int | None]:
        """Return everything git sent, and its exit code; None if there is none."""
        said = b""
        while (line := await self.hear()) is not None:
            word, _, number = line.partition(" ")
            if word == "CONNECTDONE":
                return said, int(number)
            assert word == "DATA"
            said += await self.hear_bytes(int(number))
        return said, None


async def relay(
    repository: Repository,
    service: str,
    talk: Callable[[Talk], object],
    *,
    refusal: str | None = None,
    timeout: float = 20.0,
    silence: float = 60.0,
    notes: list[str] | None = None,
) -> BaseException | None:
    """Run a service with `talk` at the other end; return the exception it raised."""
    here, there = (DescriptorConnection(fd, fd) for fd in (one.detach() for one in socket.socketpair()))
    place = AnnexRepository(repository.path / ".git", repository.path, repository.path)
    prepared: list[bool] = []

    async def prepare() -> None:
        prepared.append(True)

    git = GitService(place, prepare, None if notes is None else notes.append, silence=silence)
    client = Talk(here)

    async def run() -> None:
        try:
            await git(MessageStream(there, timeout), service, refusal)
        except (ClientGone, ClientMisbehaved) as error:
            client.outcome = error
        finally:
            await there.aclose(0)

    with repository.environment.applied(repository.path), anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await talk(client)  # type: ignore[misc]
            await here.aclose(0)
    assert bool(prepared) == (service == "git-upload-pack" and refusal is None)
    repository.environment.assert_no_process_left()
    return client.outcome


async def test_an_empty_fetch_ends_with_gits_exit_code(repository: Repository) -> None:
    head = repository.git("rev-parse", "HEAD").stdout.strip()

    async def talk(client: Talk) -> None:
        await client.git(b"")
        said, code = await client.everything()
        assert head in said
        assert code == 0
        assert await client.hear() is None

    assert await relay(repository, "git-upload-pack", talk) is None


async def test_a_refusal_is_passed_on_in_gits_words(repository: Repository) -> None:
    async def talk(client: Talk) -> None:
        assert await client.everything() == (b"0013ERR not for you", 1)

    assert await relay(repository, "git-receive-pack", talk, refusal="not for you") is None


async def test_an_unknown_service_is_a_protocol_error(repository: Repository) -> None:
    async def talk(client: Talk) -> None:
        assert await client.hear() is None

    outcome = await relay(repository, "git-upload-archive", talk)
    assert isinstance(outcome, ClientMisbehaved)
    assert "no such service" in str(outcome)


async def test_a_git_failure_reaches_the_client_and_the_log(repository: Repository) -> None:
    (repository.path / ".git" / "HEAD").write_text("nonsense")
    notes: list[str] = []

    async def talk(client: Talk) -> None:
        said, code = await client.everything()
        assert said == b""
        assert code == 128

    assert await relay(repository, "git-upload-pack", talk, notes=notes) is None
    assert notes[0].startswith("git-upload-pack exited with code 128: ")


async def test_a_missing_git_is_reported_to_the_client_and_explained_in_the_log(repository: Repository) -> None:
    notes: list[str] = []
    repository.environment.env["PATH"] = "/nonexistent"

    async def talk(client: Talk) -> None:
        said, code = await client.everything()
        assert (said[4:], code) == (b"ERR the gateway cannot start git-receive-pack", 1)

    # What git calls its own variables was asked for before.
    assert await relay(repository, "git-receive-pack", talk, notes=notes) is None
    assert "cannot be started" in notes[0]


@pytest.mark.parametrize("said", ["VERSION 4", "SUCCESS", "CHECKPRESENT WORM-s1--x", "BLAH"])
async def test_any_message_but_data_ends_the_connection(repository: Repository, said: str) -> None:
    async def talk(client: Talk) -> None:
        await client.say(said)
        _said, code = await client.everything()
        assert code is None

    assert isinstance(await relay(repository, "git-upload-pack", talk), ClientMisbehaved)


async def test_a_client_that_vanishes_during_a_push_leaves_nothing_behind(repository: Repository) -> None:
    async def talk(client: Talk) -> None:
        await client.git(f"{ZERO} {'1' * 40} refs/heads/pushed\0report-status".encode(), b"")
        # The beginning of a pack that never ends.
        pack = b"PACK" + (2).to_bytes(4, "big") + (1000).to_bytes(4, "big")
        await client.say(f"DATA {len(pack) + 1000}", pack)

    assert isinstance(await relay(repository, "git-receive-pack", talk), ClientGone)
    assert repository.git("rev-parse", "--verify", "pushed", check=False).returncode != 0
    assert not list((repository.path / ".git/objects").glob("*incoming*"))


async def test_a_client_that_stalls_within_a_message_is_disconnected(repository: Repository) -> None:
    async def talk(client: Talk) -> None:
        await client.say("DATA 1000", b"00")
        _said, code = await client.everything()
        assert code is None

    outcome = await relay(repository, "git-receive-pack", talk, timeout=0.5)
    assert isinstance(outcome, ClientGone)
    assert "no progress" in str(outcome)


async def test_a_client_that_does_not_read_is_disconnected(repository: Repository) -> None:
    environment = repository.environment
    environment.program("git", "#!/bin/sh\nexec head -c 50000000 /dev/zero\n")

    async def talk(client: Talk) -> None:
        with anyio.fail_after(20):
            while client.outcome is None:
                await anyio.sleep(0.05)

    outcome = await relay(repository, "git-receive-pack", talk, timeout=0.5)
    assert isinstance(outcome, ClientGone)


async def test_a_conversation_silent_on_both_sides_times_out(repository: Repository) -> None:
    async def talk(client: Talk) -> None:
        _said, code = await client.everything()
        assert code is None

    outcome = await relay(repository, "git-upload-pack", talk, silence=1.0)
    assert isinstance(outcome, ClientMisbehaved)
    assert "sent anything for 1 seconds" in str(outcome)


async def test_a_git_process_that_does_not_exit_is_killed(
    repository: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connect, "_EXIT_WAIT", 0.3)
    environment = repository.environment
    started = environment.home / "started"
    environment.program("git", f'#!/bin/sh\ntrap "" TERM\ntouch {started}\nwhile :; do sleep 0.1; done\n')

    async def talk(client: Talk) -> None:
        while not started.exists():
            await anyio.sleep(0.02)

    assert isinstance(await relay(repository, "git-receive-pack", talk), ClientGone)


async def test_gits_output_is_delivered_after_it_stops_reading(repository: Repository) -> None:
    environment = repository.environment
    environment.program("git", "#!/bin/sh\nexec <&-\nsleep 0.5\necho done\nexit 7\n")

    async def talk(client: Talk) -> None:
        for _ in range(20):
            await client.say("DATA 100000", bytes(100_000))
        assert await client.everything() == (b"done\n", 7)

    assert await relay(repository, "git-receive-pack", talk) is None


async def test_a_fully_received_push_completes_after_the_client_is_gone(repository: Repository) -> None:
    """git-annex's hook in the repository may take its time."""
    hook = repository.path / ".git" / "hooks" / "post-receive"
    ran = repository.environment.home / "hook-ran"
    hook.write_text(f"#!/bin/sh\nsleep 1\ntouch {ran}\n")
    hook.chmod(hook.stat().st_mode | stat.S_IXUSR)
    head = repository.git("rev-parse", "HEAD").stdout.decode().strip()
    ref = repository.path / ".git/refs/heads/pushed"

    async def talk(client: Talk) -> None:
        pack = repository.git("pack-objects", "--stdout", input=b"").stdout
        await client.git(f"{ZERO} {head} refs/heads/pushed\0report-status".encode(), b"")
        await client.say(f"DATA {len(pack)}", pack)
        with anyio.fail_after(20):
            while not ref.exists():
                await anyio.sleep(0.01)

    assert isinstance(await relay(repository, "git-receive-pack", talk), ClientGone)
    assert wait_until(ran.exists)
    assert ref.read_text().strip() == head
