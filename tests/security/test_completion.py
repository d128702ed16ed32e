"""What the shell offers comes out of the git-annex branch too, and stands on a command line next."""

from __future__ import annotations

import shlex

import pytest

from cluster_remote.cli.completion import _offered

EVIL = [
    "$(touch pwned)",
    "`id`",
    "a;b",
    "two words",
    "it's",
    "-rf",
    "--upload-pack=x",
    "esc\x1b[31m",
    "line\nbreak",
    "plain",
]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_each_offer_is_one_word_and_no_option(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CLUSTER_REMOTE_COMPLETE", f"complete_{shell}")
    offers = _offered(EVIL, "")
    assert "plain" in offers
    for offer in offers:
        (word,) = shlex.split(offer)
        assert word in EVIL
        assert not word.startswith("-")
        assert offer.isprintable()
        # Only bash takes what it is given as it is.
        assert shell == "bash" or offer == word
    assert ("'$(touch pwned)'" in offers) is (shell == "bash")


def test_a_name_in_quotes_goes_on_by_its_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("_CLUSTER_REMOTE_COMPLETE", "complete_bash")
    assert _offered(EVIL, "two") == ["'two words'"]
