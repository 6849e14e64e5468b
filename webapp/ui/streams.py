"""Streams put together, and slowed down to what a page can draw."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from typing import TypeVar

T = TypeVar("T")


async def coalesce(source: AsyncIterator[T], *seconds: float) -> AsyncGenerator[list[T], None]:
    """Yield what arrived, in order: the first of it at once, then each time what came in so many `seconds`,
    the last of them from then on. Closing this closes `source`.

    A browser that gets every token separately spends a whole core on drawing.
    """
    clock = asyncio.get_running_loop().time
    waits = itertools.chain(seconds, itertools.repeat(seconds[-1]))
    batch: list[T] = []
    due = clock()
    waiting: asyncio.Future[T] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(source))
            timeout = max(due - clock(), 0) if batch else None
            await asyncio.wait({waiting}, timeout=timeout)
            if waiting.done():
                finished, waiting = waiting, None
                try:
                    batch.append(finished.result())
                except StopAsyncIteration:
                    break
                except Exception:
                    if batch:
                        yield batch
                    raise
            if batch and clock() >= due:
                yield batch
                batch, due = [], clock() + next(waits)
        if batch:
            yield batch
    finally:
        await _close(source, waiting)


async def merged(sources: Sequence[AsyncGenerator[T, None]], at_once: int) -> AsyncGenerator[T, None]:
    """Yield what comes from several, `at_once` of them at a time. Closing this closes them.

    Raises what the first of them raises that fails.
    """
    pieces: asyncio.Queue[T | None] = asyncio.Queue()
    room = asyncio.Semaphore(at_once)

    async def read(source: AsyncGenerator[T, None]) -> None:
        async with room, contextlib.aclosing(source):
            async for piece in source:
                pieces.put_nowait(piece)

    tasks = [asyncio.ensure_future(read(source)) for source in sources]
    ended = asyncio.gather(*tasks)
    ended.add_done_callback(lambda _: pieces.put_nowait(None))
    try:
        while (piece := await pieces.get()) is not None:
            yield piece
        ended.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(ended, *tasks, return_exceptions=True)


async def _close(source: AsyncIterator[T], waiting: asyncio.Future[T] | None) -> None:
    if waiting is not None:
        waiting.cancel()
        await asyncio.wait({waiting})
    if isinstance(source, AsyncGenerator):
        await source.aclose()
