"""What the Data tab shows of the first dataset to every page that opens: looked at once, and few wait."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from webapp.tabs import data

FOUND = ({"text": "144 rows"}, None, "rows", "example", *data.LISTS, "upload", "choice", "use")


@pytest.fixture(autouse=True)
def fresh(home: Path) -> Iterator[None]:
    data._looked_at.clear()
    yield
    data._looked_at.clear()


def test_it_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    monkeypatch.setattr(data, "found", lambda *given: looks.append(given) or FOUND)
    first, second = data.arrive(), data.arrive()
    assert first[1:] == second[1:] == (*FOUND[:-3], "use")
    assert len(looks) == 1


def test_what_is_wrong_is_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[Any] = []
    wrong = (None, "it cannot be read yet", *FOUND[2:])
    monkeypatch.setattr(data, "found", lambda *given: looks.append(given) or wrong)
    assert data.arrive()[1:] == data.arrive()[1:] == (*wrong[:-3], "use")
    assert len(looks) == 2


def test_few_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is one of the threads that all quick events share."""
    inside: list[Any] = []

    def found(*_: Any) -> Any:
        inside.append(None)
        if len(inside) < 5:
            inside.append(data.arrive())
        return FOUND

    monkeypatch.setattr(data, "found", found)
    assert data.arrive()[1:] == (*FOUND[:-3], "use")
    told = [shown for shown in inside if shown is not None]
    assert len(inside) - len(told) == data.MOST_FIRST_LOOKS
    assert "once more" in told[0][1]["text"]
