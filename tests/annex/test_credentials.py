"""Credentials that git-annex keeps for a special remote."""

from __future__ import annotations

import pytest

from cluster_remote.annex.credentials import credentials_file, permissions_ok, read_credentials, read_p2p_token
from cluster_remote.annex.errors import CredentialsUnreadable
from cluster_remote.annex.repository import Repository
from cluster_remote.p2p.key import UUID
from tests.support.repositories import Repository as RealRepository

from .conftest import UUIDS, special_remote

# A special remote that stores credentials and does nothing else.
STORING = special_remote('say("SETCREDS token someuser p&ss wo%rd \\u00e9")')


def store(real: RealRepository, name: str, *more: str) -> None:
    """Have git-annex store the credentials."""
    real.environment.program("git-annex-remote-storing", STORING)
    real.annex("initremote", "--quiet", name, "type=external", "externaltype=storing", "encryption=none", *more)


def test_credentials_stored_by_git_annex_are_read(real: RealRepository, here: Repository) -> None:
    store(real, "gw")
    uuid = UUID(real.config("remote.gw.annex-uuid") or "")
    assert read_credentials(here, uuid, "token") == ("someuser", "p&ss wo%rd é")
    assert permissions_ok(credentials_file(here, uuid, "token"))


def test_remotes_that_share_a_uuid_share_their_credentials(real: RealRepository, here: Repository) -> None:
    """git-annex files them under the UUID that GETUUID answers; the one stored last counts for both."""
    store(real, "gw")
    uuid = UUID(real.config("remote.gw.annex-uuid") or "")
    credentials_file(here, uuid, "token").unlink()
    store(real, "again", "--sameas=gw")
    assert real.config("remote.again.annex-config-uuid") != str(uuid)
    assert read_credentials(here, uuid, "token") == ("someuser", "p&ss wo%rd é")


def test_missing_credentials_are_none(here: Repository) -> None:
    assert read_credentials(here, UUIDS[0], "token") is None


def test_malformed_credentials_are_an_error_that_does_not_quote_them(here: Repository) -> None:
    file = credentials_file(here, UUIDS[0], "token")
    file.parent.mkdir()
    for content in (b"", b"secret", b"secret\nsecret\n" * 10_000):
        file.write_bytes(content)
        with pytest.raises(CredentialsUnreadable, match="git annex enableremote") as caught:
            read_credentials(here, UUIDS[0], "token")
        assert "secret" not in str(caught.value)


def test_unreadable_credentials_are_an_error(here: Repository) -> None:
    credentials_file(here, UUIDS[0], "token").mkdir(parents=True)
    with pytest.raises(CredentialsUnreadable, match="cannot be read: Is a directory"):
        read_credentials(here, UUIDS[0], "token")


@pytest.mark.parametrize("setting", ["../x", "a/b", "\0"])
def test_a_setting_cannot_lead_to_another_file(here: Repository, setting: str) -> None:
    with pytest.raises(ValueError, match="cannot be the name of a credential"):
        credentials_file(here, UUIDS[0], setting)


@pytest.mark.parametrize(("mode", "ok"), [(0o600, True), (0o400, True), (0o640, False), (0o604, False), (0o620, False)])
def test_credentials_readable_by_others_are_reported(here: Repository, mode: int, ok: bool) -> None:
    file = credentials_file(here, UUIDS[0], "token")
    file.parent.mkdir()
    file.write_text("user\npassword\n")
    file.chmod(mode)
    assert permissions_ok(file) is ok
    assert read_credentials(here, UUIDS[0], "token") == ("user", "password")


@pytest.mark.parametrize(
    ("address", "name"),
    [("cluster:unix:/run/gw", "cluster%3Aunix%3A%2Frun%2Fgw"), ("abc.onion", "abc%2Eonion")],
)
def test_the_token_of_a_p2p_address_is_where_git_annex_keeps_it(
    real: RealRepository, here: Repository, address: str, name: str
) -> None:
    file = real.path / ".git/annex/creds" / name
    file.parent.mkdir(exist_ok=True)
    assert read_p2p_token(here, address) is None
    file.write_text("sesame0pen\n")
    assert read_p2p_token(here, address) == "sesame0pen"
    for junk in ("", "two words", "a/b", "\x1b[31m"):
        file.write_text(junk)
        assert read_p2p_token(here, address) is None
