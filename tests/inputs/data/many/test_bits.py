"""bits: a set of numbers."""

from __future__ import annotations

import random

import numpy as np

from pipeline.inputs.data.many.bits import Bits


def of(*numbers: int) -> Bits:
    found = Bits()
    for number in numbers:
        found.add(number)
    return found


def test_it_is_a_set() -> None:
    dice = random.Random(0)
    ours, theirs = ({dice.randrange(300) for _ in range(99)} for _ in range(2))
    found = of(*ours)
    assert list(found.numbers()) == sorted(ours)
    assert len(found) == len(ours)
    assert [number in found for number in range(400)] == [number in ours for number in range(400)]
    assert list(found.without(of(*theirs)).numbers()) == sorted(ours - theirs)
    assert list(found.others(301).numbers()) == sorted(set(range(301)) - ours)
    assert list(found.numbers(64, 128)) == sorted(number for number in ours if 64 <= number < 128)
    assert found[np.arange(400)].tolist() == [number in ours for number in range(400)]


def test_an_empty_one() -> None:
    assert not Bits()
    assert len(Bits()) == 0
    assert list(Bits().numbers()) == []
    assert not Bits()[np.arange(3)].any()
    assert not of(3).without(of(3))
    assert list(of(2).without(of(99)).numbers()) == [2]
