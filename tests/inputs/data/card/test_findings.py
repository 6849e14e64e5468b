"""findings: names in recipes, and lines by finding."""

from __future__ import annotations

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data.card import findings


def test_lines_have_findings() -> None:
    found = findings.Found()
    for line in (1, 3):
        found.add(line)
    found.add(4, findings.flags_of(["secrets", "cut"]))
    found.mark([0, 2], "leaks")
    assert found.counts() == {"leaks": 2, "cut": 1, "secrets": 1}
    assert list(found.lines_with(["secrets", "leaks"])) == [1, 4]
    assert list(found.lines_with(["emails"])) == []
    assert len(findings.NAMES) <= 16  # bits of a row


def test_names_of_a_recipe() -> None:
    assert findings.parse(" secrets,duplicates , ") == ("duplicates", "secrets")
    assert findings.parse("") == ()
    with pytest.raises(InputError, match=r"leave_out: 'dupes' is not allowed; allowed: duplicates, near_dup"):
        findings.parse("secrets,dupes")
