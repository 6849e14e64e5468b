"""Who makes room for whom: what others keep is not pushed out by many that come at once."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pipeline.runs import crowds
from pipeline.runs.crowds import DAY, Kept, making_room

NOW = 100 * DAY
MOST = 6


def days(**ages: tuple[float, float]) -> list[Kept]:
    """By name, how many days ago each came and was used."""
    return [
        Kept(Path(name), NOW - came * DAY, NOW - used * DAY)
        for name, (came, used) in sorted(ages.items(), reverse=True)
    ]


def order(kept: list[Kept], rest: float = 0.0) -> str:
    return " ".join(str(one.path) for one in making_room(kept, MOST, NOW, rest))


def test_the_longest_unused_goes_first() -> None:
    kept = days(a=(9, 3), b=(8, 7), c=(0.3, 0.3), d=(0.2, 0.1), e=(0.1, 0.05))
    assert order(kept) == "b a c d e"
    assert order(kept, 0.2 * DAY) == "b a c", "what is in use stays"
    assert order([]) == ""


def test_of_a_crowd_any_may_go_first_and_what_was_there_stays() -> None:
    old = {"a": (9, 9), "b": (8, 0.5)}
    crowd = {"c": (0.9, 0.4), "d": (0.3, 0.3), "e": (0.2, 0.1), "f": (0.1, 0.2)}
    assert sorted(order(days(**old, **crowd))) == sorted("c d e f")
    assert order(days(**old, **{**crowd, "c": (1.1, 0.4)})) == "a b c d f e", "half is no crowd"


@pytest.mark.parametrize("came", [0.1, 0.9])
def test_who_comes_alone_goes_after_those_who_came_together(came: float) -> None:
    """Else whoever fills all places has the others' removed by adding a few more."""
    ages = {f"x{number}": (0.5 + number / 100_000, 0.5) for number in range(40)}
    assert order(days(**ages, alone=(came, 0.6))).endswith(" alone")


def test_among_those_who_came_together_it_is_chance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crowds, "_chance", random.Random(0))
    kept = days(**{f"x{number}": (0.5, 0.5) for number in range(41)})
    places = [[str(one.path) for one in making_room(kept, MOST, NOW)].index("x7") for _ in range(200)]
    assert 15 < sum(places) / len(places) < 25


def test_use_keeps_half_of_the_places_in_a_crowd() -> None:
    """Whoever uses all that he added keeps no more, and what came last is used last."""
    crowd = {name: (0.1 - number / 100, 0.0) for number, name in enumerate("cdefg")}
    used = {name: (came, came / 100) for name, (came, _) in crowd.items()}
    assert {*order(days(a=(9, 9), **used), rest=DAY / 2).split()} == {"c", "d"}
    assert {*order(days(a=(9, 0.0), **used), rest=DAY / 2).split()} == {"c", "d"}
    long_ago = {**used, "g": (0.06, 0.06)}
    assert {*order(days(a=(9, 9), **long_ago), rest=DAY / 20).split()} == {"c", "g"}


def test_what_is_needed_never_goes_but_counts() -> None:
    """Runs have these."""
    kept = days(a=(9, 9), b=(0.2, 0.2), c=(0.1, 0.1))
    needed = Kept(Path("d"), NOW, NOW - 9 * DAY, needed=True)
    assert order([*kept, needed]) == "a b c"
    assert {*order([*kept, needed, needed]).split()} == {"b", "c"}


def test_all_places_of_one_count() -> None:
    """A dataset has one for each name."""
    kept = days(a=(9, 9), b=(0.2, 0.2), c=(0.1, 0.15))
    assert {*order([one._replace(places=2) for one in kept]).split()} == {"b", "c"}
    assert order([one._replace(places=2) for one in kept], rest=DAY) == "b"
