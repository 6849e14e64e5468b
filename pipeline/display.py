"""How texts, sizes, durations and times are shown, on the page and in a terminal alike.

Text from data, models, files and people is valid Unicode, short, without control characters: `valid` is for
pages, `plain` for texts of several lines, `line` and what follows for messages. What cannot be shown is
written as JSON writes it, so that JSON that is printed stays JSON. Nothing is built whole before it is cut.
"""

from __future__ import annotations

import json
import re
import reprlib
import time
import unicodedata
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import islice
from typing import Any

LONGEST_LINE = 300  # characters of a path, or of what a library says,
LONGEST_VALUE = 80  # of a value,
LONGEST_NAME = 60  # of a key or a field's name
MOST_NAMED = 10
CUT = "[cut at the limit]"
_SENTENCE = re.compile(r"[.!?](?=\s)")
_HARMFUL_ASCII = re.compile("[\0-\x08\x0b-\x1f\x7f]")
_HIDDEN = ("Cc", "Cf", "Zl", "Zp")  # categories: control and format characters, separators of lines,
# but for tab, line feed, and signs of Arabic, Syriac and Kaithi that are seen.
_SEEN = frozenset(
    "\t\n\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
# Joiners and non-joiners: of letters in Persian, Hindi and others, and of emoji such as a family.
_JOINERS = "\u200c\u200d"
# Tags that follow a black flag, as in the flag of Scotland.
_REGION = re.compile("[\U000e0030-\U000e0039\U000e0061-\U000e007a]{2,6}\U000e007f")
_BRIEF = {"\n": "\\n", "\t": "\\t", "\r": "\\r"}


def valid(text: str) -> str:
    """The text with U+FFFD in place of half surrogate pairs, which no page and no file can hold."""
    if text.isascii():
        return text
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def plain(text: str) -> str:
    """A text that cannot move a terminal's cursor, turn direction or hide: ESC is written as `\\u001b`."""
    text = valid(text)
    harmful = _HARMFUL_ASCII if text.isascii() else _harmful()
    return harmful.sub(lambda run: run[0] if _is_joined(run) else _escaped(run[0]), text)


def answer(side: Mapping[str, Any]) -> str:
    """The `text` of an answer, with a mark if it was `cut` at the length limit."""
    return f"{side['text']} … {CUT}" if side.get("cut") else str(side["text"])


def line(given: Any, most: int = LONGEST_LINE) -> str:
    """A path or a message on one line: invisible characters are escaped, and a long text is cut."""
    if not isinstance(given, str):
        return value(given)
    return cut("".join(c if c.isprintable() else _written(c) for c in given[: most + 1]), most)


def file_name(name: str) -> str:
    """A name somebody gave, as a name for a file of ours: `_` replaces invisible characters."""
    return "".join(letter if letter.isprintable() else "_" for letter in name)


def short(given: Any) -> str:
    """`line` for a key, a field's name or a short piece of data."""
    return line(given, LONGEST_NAME)


def quoted(given: Any) -> str:
    """`short`, in quotes."""
    return f"'{short(given)}'"


def names(given: Iterable[Any]) -> str:
    """Some names with commas between them, and how many more there are."""
    every = list(given)
    more = [f"{len(every) - MOST_NAMED:,} more"] if len(every) > MOST_NAMED else []
    return ", ".join([*map(short, every[:MOST_NAMED]), *more])


def value(given: Any) -> str:
    """A value as Python writes it, `LONGEST_VALUE` characters or fewer."""
    return cut(_repr.repr(given), LONGEST_VALUE)


def cut(text: str, most: int) -> str:
    """A text, cut after `most` characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def head(text: str, most: int) -> str:
    """The first part of a text, without the word that would be cut: it may be half a secret."""
    return text if len(text) <= most else f"{text[:most].rpartition(' ')[0]}…"


def sentences(text: str, most: int) -> str:
    """The first whole sentences of a text on one line, or words of a long one; no full stop at the end."""
    text = " ".join(text.split())
    if len(text) > most:
        ends = [found.end() for found in _SENTENCE.finditer(text, 0, most)]
        text = text[: ends[-1]] if ends else f"{text[: most - 1].rpartition(' ')[0] or text[: most - 1]}…"
    return text.rstrip(". ")


def duration(seconds: float | None) -> str:
    """A duration a person reads at a glance: `4.2 s`, `3 min 05 s`, `2 h 10 min`; "" for None."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def about(seconds: float) -> str:
    """An estimated duration, in minutes, hours or days."""
    if seconds < 90:
        return "a minute"
    if seconds > 48 * 3600:
        return f"{seconds / 86400:,.0f} days"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def size(count: float | None) -> str:
    """Bytes as `3.2 MB`; "" for None."""
    if count is None:
        return ""
    if count < 1000:
        return f"{count:.0f} B"
    for power, unit in ((1, "kB"), (2, "MB")):
        if count < 999.95 * 1000**power:
            return f"{count / 1000**power:.1f} {unit}"
    return f"{count / 1000**3:.1f} GB"


def parameters(count: int) -> str:
    """A number of a model's parameters as people say it: `494 M`, `3.8 B`."""
    return f"{count / 1e6:.0f} M" if count < 999.5e6 else f"{count / 1e9:.1f} B"


def moment(seconds: float | None) -> str:
    """A time of day on this machine: `2026-11-22 14:30`; "" for None."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(seconds)) if seconds else ""


def number(given: Any) -> str:
    """A measured number to four digits; anything else unchanged."""
    if isinstance(given, bool) or not isinstance(given, float):
        return given if isinstance(given, str) else json.dumps(given, allow_nan=False, ensure_ascii=False)
    return f"{given:.4g}"


def measure(name: str, given: Any) -> str:
    """A measured value in the unit its name says: bytes and seconds as a person reads them."""
    if isinstance(given, bool) or not isinstance(given, (int, float)):
        return number(given)
    if "bytes" in name.split("_"):
        return size(given)
    if name.endswith("seconds"):
        return duration(given)
    return f"{given:,}" if isinstance(given, int) else number(given)


@cache
def _harmful() -> re.Pattern[str]:
    """A pattern for the characters that are not shown; all of them lie in these planes of Unicode."""
    ranges: list[list[int]] = []
    for number in (*range(0x20000), *range(0xE0000, 0xE1000)):
        if unicodedata.category(chr(number)) in _HIDDEN and chr(number) not in _SEEN:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
    return re.compile("[" + "".join(rf"\U{first:08x}-\U{last:08x}" for first, last in ranges) + "]+")


def _is_joined(run: re.Match[str]) -> bool:
    """Whether invisible characters belong to the character before them."""
    before = run.string[run.start() - 1] if run.start() else ""
    if len(run[0]) == 1 and run[0] in _JOINERS:  # at the start, it may belong to text shown earlier
        return not before or before > "\xff"
    return before == "\U0001f3f4" and _REGION.fullmatch(run[0]) is not None


def _escaped(text: str) -> str:
    """As JSON escapes it: characters beyond 16 bits become two escapes."""
    units = text.encode("utf-16-be")
    return "".join(f"\\u{high:02x}{low:02x}" for high, low in zip(units[::2], units[1::2], strict=True))


def _written(letter: str) -> str:
    number = ord(letter)
    return _BRIEF.get(letter) or (f"\\u{number:04x}" if number < 0x10000 else f"\\U{number:08x}")


class _Repr(reprlib.Repr):
    """Cuts before it writes, so that a huge nested list costs no more than a small one."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 2
        self.maxlist = self.maxtuple = self.maxdict = self.maxset = self.maxfrozenset = 4
        self.maxstring = self.maxother = LONGEST_VALUE

    def repr_int(self, x: int, level: int) -> str:
        """Describe very large numbers: Python refuses to print them."""
        return f"a number of {x.bit_length():,} bits" if x.bit_length() > 10_000 else repr(x)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        """Unsorted, because sorting reads all of it."""
        if level <= 0 and x:
            return "{...}"
        pairs = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in islice(x.items(), 4)]
        return f"{{{', '.join([*pairs, *(['...'] if len(x) > 4 else [])])}}}"

    def repr_set(self, x: set[Any], level: int) -> str:
        return f"a set of {len(x):,}"

    def repr_bytes(self, x: bytes, level: int) -> str:
        return repr(x[:LONGEST_VALUE])


_repr = _Repr()
