"""Text of others as it is shown: without control characters, bounded, and with nothing invented."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster_remote.p2p.text import printable, visible

hostile = st.text() | st.binary() | st.text("\x1b[]0;m\x07\x9b\u202e\udcff\r\n\t a")


@given(hostile, st.integers(1, 600))
def test_no_control_character_is_printed(said: str | bytes, limit: int) -> None:
    shown = printable(said, limit)
    assert shown.isprintable()
    assert len(shown) <= limit + 1
    assert printable(shown, limit + 1) == shown


@given(st.text())
def test_newlines_are_kept_in_multiline_text(text: str) -> None:
    shown = visible(text)
    assert shown.replace("\n", "").isprintable()
    assert shown.count("\n") == text.count("\n")


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (b"plain caf\xc3\xa9", "plain café"),
        (b"not text: \xff", r"not text: \xff"),
        ("title\x1b]0;PWNED\x07", r"title\x1b]0;PWNED\x07"),
        ("C1: \x9b31m", r"C1: \x9b31m"),
        ("turned \u202eround", r"turned \u202eround"),
        ("first\n\n  second\r\nthird\n", "first; second; third"),
        ("no-break\u00a0space", "no-break space"),
        ("", ""),
    ],
)
def test_odd_characters_are_escaped_visibly(said: str | bytes, shown: str) -> None:
    assert printable(said) == shown


def test_overlong_text_keeps_its_end() -> None:
    assert printable("x" * 1000 + "end", 5) == "…xxend"
