"""Make text from a peer, a log or a file name safe to print.

Never print control characters from untrusted text: a terminal obeys them. Pass it through `printable`, or through
`visible` to keep its line breaks.
"""

from __future__ import annotations

__all__ = ["as_command", "few", "printable", "visible"]

# Names or UUIDs to list in a message.
_MOST_NAMED = 10


def printable(said: bytes | str, limit: int = 500) -> str:
    """Return the last `limit` characters of untrusted text as one line that is safe to print.

    Lines are joined by semicolons. Characters that a terminal might obey are escaped (`\\x1b`, `\\u202e`), and so are
    bytes that are not UTF-8 (`\\xff`).
    """
    text = said.decode("utf-8", "surrogateescape") if isinstance(said, bytes) else said
    if len(text) <= limit and text.isprintable() and text == text.strip():
        return text
    # Escaping only makes text longer, so earlier characters would be cut off anyway.
    cut = len(text) > limit
    lines = (visible(line.strip()) for line in text[-limit:].splitlines())
    joined = "; ".join(line for line in lines if line)
    return joined if len(joined) <= limit and not cut else "…" + joined[-limit:]


def visible(text: str) -> str:
    """Return text with every character that a terminal might obey escaped; line breaks are kept."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c == "\n" else _escaped(c) for c in text)


def as_command(command: str, name: str, *arguments: str, options: str = "") -> str:
    """Return a command for users to paste, in which the name and each of `arguments` is one word, and never an option.

    `command` and `options` are shown as they are.
    """
    import shlex  # The special remote seldom shows a command, and starts faster without it.

    first, *others = map(shlex.quote, (name, *arguments))
    is_option = any(word.startswith("-") for word in (name, *arguments))
    words = [command, options, "--", first, *others] if is_option else [command, first, options, *others]
    return " ".join(filter(None, words))


def few(names: list[str]) -> str:
    """Return the first names of a list, and the number of the others: a peer or a log can have thousands."""
    more = len(names) - _MOST_NAMED
    return ", ".join(names[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _escaped(c: str) -> str:
    code = ord(c)
    if c == "\t" or (c.isspace() and code > 0x9F):
        # Not printable according to Python: spaces of other widths, line and paragraph separators.
        return " "
    if 0xDC80 <= code <= 0xDCFF:
        return f"\\x{code - 0xDC00:02x}"
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
