"""Threads for what would make the page's event loop wait: a few for each kind of work.

asyncio's own threads are few (six on two cores) and for everything: whoever floods one kind of work with
requests stops all others. So each kind has its own here, and `run` takes the kind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from pipeline.errors import LabError
from pipeline.system import own_process

P = ParamSpec("P")
T = TypeVar("T")


class Threads(ThreadPoolExecutor):
    """Where the machine can start no more threads, those that there are do the work in turn; where there are
    none, `submit` raises LabError.

    Python's own raises in both cases, and keeps the work: it piles up, and is done later for nobody.
    """

    def _adjust_thread_count(self) -> None:
        """Called by `submit`, which has put the work in the queue."""
        try:
            with own_process.starting():
                super()._adjust_thread_count()
        except LabError:
            if not self._threads:
                self._work_queue.get_nowait()
                raise


LOOKUPS = Threads(4, "look-ups")  # routes that only read
STORE = Threads(4, "store")  # and those that write: each may wait until others have written
UPLOADS = Threads(2, "uploads")
LOOKS = Threads(1, "looks-at-uploads")  # at all of them: one at a time is enough
COMPARE = Threads(4, "compare")
SERVING = Threads(2, "serving")
UPKEEP = Threads(1, "upkeep")  # of the worker, of idle models and of the disk: one after the other


async def run(threads: ThreadPoolExecutor, work: Callable[P, T], *given: P.args, **options: P.kwargs) -> T:
    """What `work` returns in one of these threads. Raises what it raises, and LabError if there is none."""
    return await asyncio.wrap_future(threads.submit(work, *given, **options))
