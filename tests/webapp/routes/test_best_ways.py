"""The sentence on a scorecard: another process finds it, once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.runs import check_pool
from pipeline.runs.comparing import scorecard
from pipeline.store import Store
from tests.helpers import planted
from tests.helpers.lab import until
from webapp.routes import best_ways


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    best_ways._kept.clear()
    yield
    until(lambda: not best_ways._asked, "the thread's end")
    best_ways._kept.clear()


def rows(store: Store, group: str) -> list[scorecard.Row]:
    return scorecard.rows(store, group)


def test_it_is_asked_of_a_process_once_until_more_is_measured(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = planted.scorecard(store)
    asked: list[Any] = []

    def answer(function: str, given: dict[str, Any], share: str) -> str:
        asked.append((function, given))
        return "AWQ suits best."

    monkeypatch.setattr(check_pool, "answer", answer)
    measured = rows(store, group)
    assert best_ways.of(group, measured) is None  # nobody waits for it
    until(lambda: best_ways.of(group, measured) == "AWQ suits best.", "the sentence")
    assert asked == [("pipeline.runs.comparing.compare_ways:asked", {"group": group})]
    from dataclasses import replace

    more = [*measured[:2], replace(measured[0], algorithm="gptq", run="other")]
    assert best_ways.of(group, more) is None
    until(lambda: best_ways.of(group, more) is not None, "the next sentence")
    assert len(asked) == 2
    assert best_ways.of(group, measured[:1]) == ""  # one way alone is not the best
    assert len(asked) == 2


def test_one_that_fails_says_why_and_is_tried_again(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    group = planted.scorecard(store)
    measured = rows(store, group)

    def refuse(function: str, given: dict[str, Any], share: str) -> str:
        raise LabError("Many others check data just now; try again in a minute.")

    monkeypatch.setattr(check_pool, "answer", refuse)
    assert best_ways.of(group, measured) is None
    until(lambda: best_ways.of(group, measured) is not None, "the reason")
    said = "The ways could not be compared: Many others check data just now; try again in a minute."
    assert best_ways.of(group, measured) == said
    monkeypatch.setattr(best_ways, "AGAIN_SECONDS", 0.0)
    best_ways._kept.clear()
    assert best_ways.of(group, measured) is None
    until(lambda: group in best_ways._kept, "the next reason")
    assert best_ways.of(group, measured) is None


def test_the_real_process_answers(store: Store) -> None:
    """Nothing is kept by rows here, so nothing is said."""
    group = planted.scorecard(store)
    until(lambda: best_ways.of(group, rows(store, group)) == "", "an answer")
