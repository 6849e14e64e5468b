"""row_faults: slips in names are found, in bounded time."""

from __future__ import annotations

import pytest

from pipeline.inputs.data import row_faults
from pipeline.inputs.prompts import templates

LAB = "<|user|>\n{prompt}<|end|>\n<|assistant|>\n{response}<|end|>"


def test_long_keys_are_not_compared_letter_by_letter(monkeypatch: pytest.MonkeyPatch) -> None:
    """To normalize marks takes time by the square of their number, and nothing else runs meanwhile."""
    seen: list[str] = []
    monkeypatch.setattr(row_faults.unicodedata, "normalize", lambda form, text: seen.append(text) or text)
    for row in ({"a" + "\u0315\u0300" * 2000: "x"}, {"pr\u0315ompt": "x"}):
        assert len(list(row_faults.misfits(row, templates.parse(LAB)))) == 2
    assert max(map(len, seen)) <= row_faults.LONGEST_NEAR
