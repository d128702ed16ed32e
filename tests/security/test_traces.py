"""A trace is sent to others, in a bug report: no token may be in it."""

from __future__ import annotations

import pytest

from cluster_remote.cli.trace import _without_token

SECRET = "abcdefghijklmnopqrstuvwxyz234567abcdefghijklmnopqrst"
OTHER = "Sesame0pen"


@pytest.mark.parametrize(
    "command",
    [
        ["env", f"CLUSTER_REMOTE_TOKEN={OTHER}", "git", "annex", "enableremote", "cl"],
        ["sh", "-c", f"CLUSTER_REMOTE_TOKEN='{OTHER}' git annex enableremote cl"],
        ["sh", "-c", f'export CLUSTER_REMOTE_TOKEN="{OTHER}"; git annex get .'],
        ["git", "annex", "p2p", "--link", f"p2p-annex::cluster:unix:/run/gw.sock:{OTHER}"],
        ["sh", "-c", f"echo {SECRET} | git annex p2p --link"],
        ["env", f"ALL_PROXY=socks5h://me:{OTHER}@proxy:1080", "git", "annex", "get", "."],
        ["git", "annex", "initremote", "cl", f"url=annex+https://me:{OTHER}@host/git-annex/"],
        ["git", "annex", "get", f"exported-{OTHER}-by-mistake"],
    ],
)
def test_no_token_is_in_the_command_that_is_kept(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    if "by-mistake" in command[-1]:
        monkeypatch.setenv("CLUSTER_REMOTE_TOKEN", OTHER)
    kept = " ".join(_without_token(command))
    assert OTHER not in kept
    assert SECRET not in kept
    assert "[token]" in kept


def test_a_command_without_a_token_is_kept_as_it_is() -> None:
    command = ["git", "annex", "copy", "--to", "mycluster", "photo.jpg"]
    assert list(_without_token(command)) == command
