from __future__ import annotations

import asyncio

import pytest

from webapp.ui.streams import coalesce


def run(coroutine):
    return asyncio.run(asyncio.wait_for(coroutine, 60))


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
