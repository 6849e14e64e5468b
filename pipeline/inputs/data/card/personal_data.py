"""Personal data in a text: e-mail addresses, phone numbers, card, account and social security numbers.

Of a text the first SEARCHED letters are looked at, and in these the first MOST_PIECES that may be one; of a
whole dataset MOST_IN_ALL. A phone number counts in international form (+49 30 …), or written in groups
(212-555-0123) as in North America: bare digits may be anything. What is found is never shown.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from pipeline.inputs.data.card.plain_faults import SEARCHED

MOST_PIECES = 8
MOST_IN_ALL = 500_000  # at a tenth of a millisecond
# A name of up to 64 letters: what stands before it is looked at once, and not from each letter again.
_EMAIL = re.compile(
    r"(?<![\w.+-])[A-Za-z0-9][\w.+-]{0,63}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.){1,4}[A-Za-z]{2,24}\b",
    re.ASCII,
)
_DIGITS = re.compile(r"\d[\d ().\-/]{5,}\d|[A-Z]\d\d", re.ASCII)  # in all that follow
_INTERNATIONAL = re.compile(r"(?<![\w+])\+ ?[1-9][\d ().\-/]{6,24}\d(?!\w)", re.ASCII)
_GROUPED = re.compile(
    r"(?<![\w.+/-])(?:1[ .-])?(?:\(\d{3}\) ?|\d{3}[ .-])\d{3}[ .-]\d{4}(?![\w/-]|\.\d)", re.ASCII
)
_IBAN = re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)", re.ASCII)
_CARD = re.compile(
    r"(?<![\w.-])[3-6]\d{3}([ -]?)(?:\d{4}\1\d{4}\1\d{4}|\d{6}\1\d{5})(?![\w-]|\.\d)", re.ASCII
)
_SSN = re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])", re.ASCII)
_CARD_BEGINS = re.compile(r"4|5[1-5]|2[2-7]|3[47]|6(?:011|5)")


class Search:
    """Says what personal data a text holds. `left` pieces may still be looked at."""

    def __init__(self) -> None:
        import phonenumbers
        import stdnum.iban
        import stdnum.luhn
        import stdnum.us.ssn

        self._phones = phonenumbers
        self._numbers = stdnum
        self.left = MOST_IN_ALL

    @property
    def is_over(self) -> bool:
        """Whether there was more to look at than MOST_IN_ALL pieces."""
        return self.left < 0

    def finds(self, text: str) -> list[str]:
        """The findings of a text, of `findings.PERSONAL`."""
        text = text[:SEARCHED]
        found = []
        if "@" in text and _EMAIL.search(text):
            found.append("emails")
        if not _DIGITS.search(text):
            return found
        if any(self._is_phone(piece, None) for piece in self._pieces(_INTERNATIONAL, text)) or any(
            self._is_phone(piece, "US") for piece in self._pieces(_GROUPED, text)
        ):
            found.append("phones")
        if self._has_number(text):
            found.append("id_numbers")
        return found

    def _pieces(self, like: re.Pattern[str], text: str) -> Iterator[str]:
        for number, match in enumerate(like.finditer(text)):
            if number == MOST_PIECES or self.left < 0:
                return
            self.left -= 1
            if self.left >= 0:
                yield match[0]

    def _is_phone(self, piece: str, region: str | None) -> bool:
        try:
            return bool(self._phones.is_valid_number(self._phones.parse(piece, region)))
        except self._phones.NumberParseException:
            return False

    def _has_number(self, text: str) -> bool:
        numbers = self._numbers
        return (
            any(numbers.iban.is_valid(piece) for piece in self._pieces(_IBAN, text))
            or any(self._is_card(piece) for piece in self._pieces(_CARD, text))
            or any(numbers.us.ssn.is_valid(piece) for piece in self._pieces(_SSN, text))
        )

    def _is_card(self, piece: str) -> bool:
        digits = re.sub(r"[ -]", "", piece)
        return bool(_CARD_BEGINS.match(digits)) and bool(self._numbers.luhn.is_valid(digits))
