from __future__ import annotations

import asyncio
import itertools
import selectors

import pytest

from webapp.tabs.comparing import prompting
from webapp.ui.streams import coalesce


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


class Hurried(selectors.SelectSelector):
    """Waits for nothing: the time that a loop would wait has passed at once."""

    now = 0.0

    def select(self, timeout=None):
        self.now += timeout or 0
        return super().select(0)


def hurried(coroutine):
    """What a coroutine returns in a loop whose clock does not depend on the machine."""
    waits = Hurried()
    loop = asyncio.SelectorEventLoop(waits)
    loop.time = lambda: waits.now
    with asyncio.Runner(loop_factory=lambda: loop) as runner:
        return runner.run(coroutine)


async def drawn(tokens, each_second):
    """When an answer is drawn on the Compare tab, and what, by the clock of the loop."""
    clock = asyncio.get_running_loop().time

    async def answer():
        for token in range(tokens):
            yield token
            await asyncio.sleep(1 / each_second)

    batches = coalesce(answer(), *prompting.DRAW_SECONDS)
    return [(clock(), batch) async for batch in batches]


def test_an_answer_is_drawn_at_once_and_then_twice_a_second_at_least_and_seldom_more():
    """Each update takes 4 ms of the processor from the model: of 200 tokens in 1.5 s, five are enough."""
    updates = hurried(drawn(200, 130))
    assert [token for _, batch in updates for token in batch] == list(range(200))
    assert updates[0] == (0.0, [0])
    assert len(updates) <= 6
    many = [at for at, _ in hurried(drawn(1300, 130))]
    between = [later - at for at, later in itertools.pairwise(many)]
    assert max(between) <= 0.5
    assert sorted(between[:3]) == between[:3], "what has just begun is drawn more often"
    assert len(many) < 2.5 * many[-1]


def test_slow_tokens_are_drawn_as_they_come():
    assert [batch for _, batch in hurried(drawn(5, 1))] == [[0], [1], [2], [3], [4]]


def test_everything_arrives_once_in_order_and_in_few_batches():
    async def source():
        for n in range(200):
            await asyncio.sleep(0.001)
            yield n

    async def collect():
        return [batch async for batch in coalesce(source(), 0.05)]

    batches = run(collect())
    assert [n for batch in batches for n in batch] == list(range(200))
    assert len(batches) < 150


def test_the_first_is_shown_at_once_and_what_follows_together():
    """However long the time is in which pieces are collected: a reader waits for the first one."""

    async def source():
        yield "first"
        yield "second"
        yield "third"
        await asyncio.Event().wait()

    async def both():
        batches = coalesce(source(), 3600.0)
        first = await anext(batches)
        later = asyncio.ensure_future(anext(batches))
        await asyncio.sleep(0)
        is_late = not later.done()
        later.cancel()
        await asyncio.wait({later})
        return first, is_late

    assert run(both()) == (["first"], True)


def test_what_came_is_shown_though_no_more_comes():
    async def source():
        yield "first"
        await asyncio.sleep(30)

    async def first():
        batches = coalesce(source(), 0.01)
        batch = await anext(batches)
        await batches.aclose()
        return batch

    assert run(first()) == ["first"]


def test_closing_closes_the_source():
    closed = []

    async def source():
        try:
            while True:
                yield 1
                await asyncio.sleep(0.001)
        finally:
            closed.append(True)

    async def some():
        batches = coalesce(source(), 0.01)
        await anext(batches)
        await batches.aclose()

    run(some())
    assert closed == [True]


def test_an_error_comes_through_after_what_was_there():
    async def source():
        yield 1
        raise ValueError("over")

    async def collect():
        return [batch async for batch in coalesce(source(), 0.01)]

    with pytest.raises(ValueError, match="over"):
        run(collect())
