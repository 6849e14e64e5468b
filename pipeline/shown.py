"""Text from data, models and users as it is shown: always valid Unicode, never longer than it helps."""

from __future__ import annotations

LONGEST_NAME = 60
_KEPT = "\n\t"


def valid(text: str) -> str:
    """The text with U+FFFD in place of half surrogate pairs, which no page and no file can hold."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain(text: str) -> str:
    """The text for a terminal: line ends and tabs stay, other control characters are written out."""
    return "".join(c if c in _KEPT or not _controls(c) else _written_out(c) for c in valid(text))


def name(text: str) -> str:
    """A field's name or a short piece of data, in quotes, on one line, long ones cut."""
    cut = text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "…"
    return f"'{''.join(_written_out(c) if _controls(c) else c for c in valid(cut))}'"


def _controls(letter: str) -> bool:
    """Control characters, line and paragraph separators, and those that turn the direction of text."""
    return letter < " " or "\x7f" <= letter <= "\x9f" or letter in "\u2028\u2029" or _turns(letter)


def _turns(letter: str) -> bool:
    return "\u202a" <= letter <= "\u202e" or "\u2066" <= letter <= "\u2069"


def _written_out(letter: str) -> str:
    return f"\\x{ord(letter):02x}" if letter < "\x80" else f"\\u{ord(letter):04x}"
