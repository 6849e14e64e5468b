"""What is said of held-out prompts: found once, and never waited for by many."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pipeline.errors import LabError
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers import planted
from webapp.tabs.comparing import held_out


@pytest.fixture
def run(store: Store) -> Iterator[Run]:
    held_out._kept.clear()
    yield store.get(planted.finished(store))
    held_out._kept.clear()


def test_rows_are_looked_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(submit, "one_prompt", lambda run: asked.append(run.id) or True)
    assert [held_out.said(run), held_out.said(run)] == [held_out.SEEN] * 2
    assert asked == [run.id]
    assert held_out.said(None) == held_out.UNSEEN


def test_what_nobody_could_say_is_asked_again(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(run: Run) -> bool:
        raise LabError("Many others check data just now; try again in a minute.")

    monkeypatch.setattr(submit, "one_prompt", refuse)
    assert held_out.said(run) == held_out.UNSEEN
    monkeypatch.setattr(submit, "one_prompt", lambda run: True)
    assert held_out.said(run) == held_out.SEEN


def test_no_more_than_a_few_wait_at_a_time(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is an event's thread, which others need."""
    inside = []

    def asks_while_asked(run: Run) -> bool:
        inside.append(held_out.said(run) if len(inside) < held_out.MOST_AT_ONCE else "too many")
        return True

    monkeypatch.setattr(submit, "one_prompt", asks_while_asked)
    assert held_out.said(run) == held_out.SEEN
    assert inside == [held_out.UNSEEN, held_out.SEEN]
