"""Who makes room where there are too many of what anybody may add: datasets, conversations.

The app knows nobody, so one client can add as many as there may be at once. What others keep must not go for
that, and there has to be a place for what somebody else adds afterwards.
"""

from __future__ import annotations

import random
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

DAY = 86400.0
BURST = 300.0
_chance = random.SystemRandom()


class Kept(NamedTuple):
    """One that is there: when it came and was last used, in seconds since the epoch; how many places it has,
    and whether it is needed, so that it never goes."""

    path: Path
    arrived: float
    used: float
    places: int = 1
    needed: bool = False


def making_room(kept: Sequence[Kept], most: int, now: float, rest: float = 0.0) -> list[Kept]:
    """Those that may make room where there are `most` places, the first one first.

    That is who was unused for longest; nobody whose use is less than `rest` seconds ago. But where those who
    came within the last day have more than half of the places, they are a crowd: only these make room, and
    what was there before stays. First go those who came with the most others, within BURST seconds: whoever
    came alone that day is none of a client's thousand; among equals it is chance. And use then keeps those
    who were used last in half of the places, no more: a crowd could keep all of them by being used.
    """
    by_use = sorted((one for one in kept if not one.needed), key=lambda one: one.used)
    if _places(one for one in kept if one.arrived > now - DAY) <= most // 2:
        return [one for one in by_use if one.used <= now - rest]
    crowd = [one for one in by_use if one.arrived > now - DAY]
    resting = [one for one in crowd if one.used <= now - rest]
    over = _places(crowd) - _places(resting) - most // 2
    for one in crowd[len(resting) :]:
        if over > 0:
            resting.append(one)
            over -= one.places
    arrivals = sorted(one.arrived for one in crowd)

    def together(one: Kept) -> int:
        return bisect_right(arrivals, one.arrived + BURST) - bisect_left(arrivals, one.arrived - BURST)

    _chance.shuffle(resting)
    return sorted(resting, key=together, reverse=True)


def _places(kept: Iterable[Kept]) -> int:
    return sum(one.places for one in kept)
