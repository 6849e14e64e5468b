"""Threads for what would make the page's event loop wait: a few for each kind of work.

asyncio's own threads are few (six on two cores) and for everything: whoever floods one kind of work with
requests stops all others. So each kind has its own here, and `run` takes the kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

LOOKUPS = ThreadPoolExecutor(4, "look-ups")  # routes that only read
STORE = ThreadPoolExecutor(4, "store")  # and those that write: each may wait until others have written
UPLOADS = ThreadPoolExecutor(2, "uploads")
LOOKS = ThreadPoolExecutor(1, "looks-at-uploads")  # at all of them: one at a time is enough
COMPARE = ThreadPoolExecutor(4, "compare")
SERVING = ThreadPoolExecutor(2, "serving")
UPKEEP = ThreadPoolExecutor(1, "upkeep")  # of the worker, of idle models and of the disk: one after the other


async def run(threads: ThreadPoolExecutor, work: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
    """What `work` returns in one of these threads. Raises what it raises."""
    return await asyncio.wrap_future(threads.submit(work, *given, **options))
