"""What another user of the machine can do: files, directories and locks that are not ours."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import tempfile
from pathlib import Path

import pytest

from cluster_remote.annex.credentials import read_credentials, write_credentials
from cluster_remote.annex.errors import CredentialsUnreadable
from cluster_remote.annex.private import make_private_directory
from cluster_remote.annex.repository import Repository
from cluster_remote.cli.trace import _writable
from cluster_remote.gateway.errors import CannotListen, GatewayError, TokensUnusable
from cluster_remote.gateway.listeners import listen
from cluster_remote.gateway.slotfiles import take_lock
from cluster_remote.gateway.tokens import Tokens
from cluster_remote.p2p.key import UUID
from cluster_remote.p2p.server import Mode
from cluster_remote.transport import sharedssh
from cluster_remote.transport.address import Unix
from tests.support.environment import open_umask
from tests.support.forked import run_forked
from tests.support.repositories import Cluster

STRANGER = 65534
NODE = UUID("11111111-2222-4333-8444-555555555555")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files to another user")


def test_nobody_else_s_lock_keeps_a_gateway_from_starting(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        (listener,) = listen(Unix(str(tmp_path / "gw")))
        listener.close()
    finally:
        os.close(descriptor)
    assert list(tmp_path.iterdir()) == []


def test_the_socket_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    with open_umask():
        (listener,) = listen(Unix(str(tmp_path / "made" / "gw")))
    try:
        assert stat.S_IMODE((tmp_path / "made" / "gw").stat().st_mode) == 0o600
        assert stat.S_IMODE((tmp_path / "made").stat().st_mode) == 0o700
    finally:
        listener.close()


def test_a_directory_that_all_can_write_to_is_no_place_for_a_socket(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(CannotListen, match="every user can write"):
        listen(Unix(str(tmp_path / "gw")))
    tmp_path.chmod(0o1777)
    (listener,) = listen(Unix(str(tmp_path / "gw")))
    listener.close()


@as_root
def test_a_directory_of_somebody_else_is_no_place_for_a_socket_or_tokens(tmp_path: Path) -> None:
    os.chown(tmp_path, STRANGER, STRANGER)
    with pytest.raises(CannotListen, match="belongs to user 65534"):
        listen(Unix(str(tmp_path / "gw")))
    with pytest.raises(TokensUnusable, match="belongs to user 65534"):
        Tokens(tmp_path / "tokens").create(Mode.READ_WRITE)


def test_tokens_that_others_can_change_are_refused(tmp_path: Path) -> None:
    tokens = Tokens(tmp_path / "own" / "tokens")
    _, text = tokens.create(Mode.READ_WRITE)
    tokens.file.chmod(0o666)
    with pytest.raises(TokensUnusable, match="can be changed by other users"):
        tokens.check(text)
    tokens.file.chmod(0o600)
    tokens.file.parent.chmod(0o777)
    with pytest.raises(TokensUnusable, match="can be changed by other users"):
        tokens.create(Mode.READ_WRITE)
    with pytest.raises(TokensUnusable, match="can be changed by other users"):
        tokens.check(text)


def test_tokens_behind_a_link_or_in_a_pipe_let_nobody_in(tmp_path: Path) -> None:
    """A link could lead to a file of ours that says what a client wants, such as a content it has stored."""
    stored = Tokens(tmp_path / "elsewhere" / "tokens")
    _, text = stored.create(Mode.READ_WRITE)
    (tmp_path / "own").mkdir(mode=0o700)
    tokens = Tokens(tmp_path / "own" / "tokens")
    tokens.file.symlink_to(stored.file)
    with pytest.raises(TokensUnusable):
        tokens.check(text)
    tokens.file.unlink()
    os.mkfifo(tokens.file, 0o600)
    with pytest.raises(TokensUnusable, match="not a regular file"):
        tokens.check(text)


def test_a_link_in_the_place_of_a_lock_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "own").mkdir(mode=0o700)
    (tmp_path / "own" / "tokens.lock").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(TokensUnusable):
        Tokens(tmp_path / "own" / "tokens").create(Mode.READ_WRITE)
    (tmp_path / "own" / "lock-0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(GatewayError):
        take_lock(tmp_path / "own", 1, None, "")
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize(("owner", "mode"), [(None, 0o777), (None, 0o770), (STRANGER, 0o700)])
def test_sockets_of_ssh_are_in_no_directory_of_somebody_else(
    monkeypatch: pytest.MonkeyPatch, owner: int | None, mode: int
) -> None:
    """Whoever listens on such a socket gets what ssh reads and writes."""
    # The path of a socket must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as directory:
        monkeypatch.setenv("XDG_RUNTIME_DIR", directory)
        monkeypatch.setattr(sharedssh, "_directories", [])
        usual = sharedssh._directory()
        assert usual is not None
        assert Path(usual.path).parent == Path(directory)
        usual.close()
        if owner is not None:
            if os.geteuid():
                pytest.skip("only root can give files to another user")
            os.chown(directory, owner, owner)
        Path(directory).chmod(mode)
        monkeypatch.setattr(sharedssh, "_directories", [])
        made = sharedssh._directory()
        assert made is not None
        assert not Path(made.path).is_relative_to(directory)
        made.close()


def test_a_saved_trace_is_for_its_owner_alone_whatever_the_umask(cluster: Cluster, tmp_path: Path) -> None:
    new, old = tmp_path / "new", tmp_path / "old"
    old.touch()
    old.chmod(0o666)
    with open_umask():
        for file in (new, old):
            run_forked(cluster.gateway.environment, "trace", "--save", file, "true", cwd=tmp_path)
    assert [stat.S_IMODE(file.stat().st_mode) for file in (new, old)] == [0o600, 0o600]
    assert new.read_text().startswith("{")


def test_a_trace_is_saved_with_a_warning_where_files_have_no_modes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(descriptor: int, mode: int) -> None:
        # As FAT does, unless it is mounted with `quiet`: then this changes nothing.
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "fchmod", refuse)
    for mode, words in ((0o644, "other users may be able to read it"), (0o600, "")):
        file = tmp_path / f"{mode:o}"
        file.touch()
        file.chmod(mode)
        with _writable(file, "--save", private=True) as opened:
            opened.write("a trace")
        assert file.read_text() == "a trace"
        warning = capsys.readouterr().err
        assert words in warning
        assert warning.count("\n") == bool(words)


@as_root
def test_a_trace_is_saved_in_no_file_of_somebody_else(cluster: Cluster, tmp_path: Path) -> None:
    file = tmp_path / "trace"
    file.touch()
    os.chown(file, STRANGER, STRANGER)
    done = run_forked(cluster.gateway.environment, "trace", "--save", file, "true", cwd=tmp_path, check=False)
    assert done.returncode == 2
    assert file.read_bytes() == b""


def test_credentials_are_written_to_no_file_that_lies_there_already(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    creds = tmp_path / "annex" / "creds"
    creds.mkdir(parents=True)
    repository = Repository(tmp_path, tmp_path, tmp_path)
    monkeypatch.setattr(os, "urandom", lambda count: bytes(count))
    prepared = creds / f"{NODE}-token.{bytes(8).hex()}.new"
    prepared.touch()
    with pytest.raises(CredentialsUnreadable):
        write_credentials(repository, NODE, "token", "user", "secret")
    prepared.unlink(missing_ok=True)
    with open_umask():
        write_credentials(repository, NODE, "token", "user", "secret")
    (file,) = creds.iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert read_credentials(repository, NODE, "token") == ("user", "secret")


def test_directories_that_are_made_are_for_their_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    with open_umask():
        make_private_directory(tmp_path / "one" / "two")
    assert [stat.S_IMODE((tmp_path / each).stat().st_mode) for each in ("one", "one/two")] == [0o700, 0o700]
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_private_directory(tmp_path / "file")
