"""Plain text: a text in two, its beginning and the rest; and the paragraphs of a text file as rows."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import islice

from pipeline.inputs.data.formats import markers
from pipeline.inputs.data.formats.limits import EndsHereError, Rows
from pipeline.inputs.data.formats.text_lines import TextLines

TEXT = "text"  # what the only column of a text file is called
SHARE = 4  # a quarter of a text is its beginning,
LONGEST_BEGINNING = 400  # letters at most: it is what a model is asked,
FEW = 3  # and so many words at least, where the rest has as many
NEAR = 2  # an end of a sentence or line so many times nearer to the start or farther away is taken instead
LOOKED_AT = 4 * LONGEST_BEGINNING  # letters in which to look for such places
MOST_JOINED = 200  # letters of lines that are too short, and joined with those below
# Where every tokenizer known to us has an end of a token, whether more follows or not: in front of a space
# that stands alone, or of the end of a line behind a letter (.\n is a token of many); and behind a line that
# ends otherwise.
_SPACE = re.compile(r"(?<=\S) (?=\S)")
_LINE = re.compile(r"(?<=[^\W_])(?=\r?\n)|(?<=[^\w\s]\n)(?=\S)")
# Writing without spaces: in front of a sign behind a letter, for the sign is the first of the next token.
_SIGN = re.compile(r"(?<=[\u3040-\u30fa\u3400-\u9fff\uac00-\ud7a3])(?=[、。，．；：！？…])")
_SENTENCE = re.compile(r"""[.!?…。！？]["'”’)\]]*\Z""")


def halves(text: str) -> tuple[str, str] | None:
    """The beginning of a text and the rest, which together are the text; None if it has no two words."""
    at = _cut(text)
    return (text[:at], text[at:]) if at else None


def _cut(text: str) -> int:
    """Where the beginning ends, 0 if it cannot: at a sentence or line near a quarter, else at a word."""
    end = len(text.rstrip())
    head = min(end, LOOKED_AT)
    words = list(_places(_SPACE, text, head))
    lines = list(_places(_LINE, text, head))
    every = sorted({*words, *lines}) or list(_places(_SIGN, text, head))
    every = every or list(islice(_places(_SPACE, text, end), 1)) or list(islice(_places(_LINE, text, end), 1))
    if not every:
        return 0
    least = every[min(FEW, (len(every) + 1) // 2) - 1]
    wanted = max(min(end // SHARE, LONGEST_BEGINNING), least)
    sentences = [at for at in words if _SENTENCE.search(text, max(0, at - 10), at)]
    for places in (sentences, lines):
        near = [at for at in places if max(least, wanted / NEAR) <= at <= wanted * NEAR]
        if near:
            return _nearest(near, wanted)
    return _nearest([at for at in every if at >= least], wanted)


def _places(kind: re.Pattern[str], text: str, end: int) -> Iterator[int]:
    """Where a text can be cut, but for marks that belong to the sign in front of them."""
    for found in kind.finditer(text, 0, end):
        at = found.start()
        behind = text[at + 1] if text[at] == " " else text[at]
        if behind in "\r\n" or unicodedata.category(behind)[0] not in "MC":
            yield at


def _nearest(places: Sequence[int], wanted: float) -> int:
    return min(places, key=lambda at: (abs(at - wanted), at))


def has_paragraphs(lines: TextLines) -> bool:
    """Whether blank lines stand between the lines of a text; reading says what is wrong with it."""
    said = blank = False
    try:
        for line in lines:
            lines.row_begins()
            if line.strip():
                if said and blank:
                    return True
                said, blank = True, False
            else:
                blank = True
    except EndsHereError:
        return False
    return False


def rows(lines: TextLines, paragraphs: bool) -> Rows:
    """The paragraphs or lines of a text, by the number of the line on which they begin.

    What is too short to be a row, such as a heading of one word, stays with what follows; the last one with
    what is above. Where the text begins with the marker of a conversation, a row is a conversation.
    """
    before: tuple[int, str] | None = None
    try:
        for number, text in _pieces(lines, paragraphs):
            if before is not None and not _stands_alone(text):
                before = (before[0], f"{before[1]}\n{chr(10) * paragraphs}{text}")
                continue
            if before is not None:
                yield before[0], {TEXT: before[1]}
            before = number, text
    except EndsHereError:
        if before is not None:
            yield before[0], {TEXT: before[1]}
        raise
    if before is not None:
        yield before[0], {TEXT: before[1]}


def _pieces(lines: TextLines, paragraphs: bool) -> Iterator[tuple[int, str]]:
    held: list[str] = []
    begins, blank, marked = 0, False, None
    talk = markers.Lines()
    for line in lines:
        text = line.removesuffix("\n")
        if not text.strip():
            blank = bool(held)
            continue
        if marked is None:
            marked = markers.begins(text)
        ends = talk.ends_before(text, blank) if marked else blank or not paragraphs
        if held and ends and (marked or _stands_alone("\n".join(held))):
            yield begins, "\n".join(held)
            held, blank = [], False
        if not held:
            lines.row_begins()
            begins = lines.number
        held += [*[""] * blank, text]
        blank = False
        talk.add(text)
    if held:
        yield begins, "\n".join(held)


def _stands_alone(text: str) -> bool:
    return len(text) > MOST_JOINED or halves(text) is not None
