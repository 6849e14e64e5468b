"""Whose turn it is."""

from __future__ import annotations

from pipeline.store.turns import Waiting
from pipeline.store.turns import in_turn as runs_in_turn


def in_turn(waiting: list[Waiting]) -> list[str]:
    return [run.id for run in runs_in_turn(waiting)]


def test_one_persons_runs_begin_in_their_order() -> None:
    assert in_turn([Waiting("b", "ann", 2), Waiting("a", "ann", 1), Waiting("c", "ann", 3)]) == [
        "a",
        "b",
        "c",
    ]


def test_people_take_turns_however_many_runs_one_has_queued() -> None:
    many = [Waiting(f"a{n}", "ann", n) for n in range(3)]
    assert in_turn([*many, Waiting("b", "bob", 10)]) == ["a0", "b", "a1", "a2"]


def test_who_was_served_last_waits() -> None:
    assert in_turn([Waiting("a", "ann", 1, served=7), Waiting("b", "bob", 2, served=3)]) == ["b", "a"]


def test_an_interrupted_run_comes_first() -> None:
    waiting = [Waiting("a", "ann", 1), Waiting("b", "ann", 5, urgent=True), Waiting("c", "bob", 2)]
    assert in_turn(waiting) == ["b", "a", "c"]


def test_nothing_waits() -> None:
    assert in_turn([]) == []
