"""The page beside others that poll: how long `GET /` takes, and what a poll costs.

python -m benchmarks.page [--pages 24] [--busy 0 2] [--times 40]

The real app over a home with a run that fine-tunes and twenty that wait. Clients in a process of their own
ask as so many open pages do, for the run, the queue and what has ended; `--busy` loops take the processor
besides. Ratios are of medians, in one run of this.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import time
from collections import Counter
from contextlib import ExitStack
from multiprocessing.synchronize import Event
from typing import Any
from urllib.request import Request, urlopen

from benchmarks.live import PERIOD_SECONDS, STAGE, App, cpu, process, serving, spawn, write
from pipeline import settings
from pipeline.stages import recipe

QUEUE_SECONDS, ACTIVITY_SECONDS = 2.0, 5.0  # as the page asks
WAITING = 20
LINES_A_SECOND = 20
WARM_SECONDS = 3.0
BETWEEN_SECONDS = 0.1
HEAD = f"{'':34}{'median':>9}{'max':>9}{'ratio':>8}{'server':>9}{'polls/s':>9}{'ms a poll':>11}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pages", type=int, default=24)
    parser.add_argument("--busy", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--times", type=int, default=40)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with serving() as app:
        run = app.plant()
        given = recipe.load(settings.SAMPLES / "travel.yaml")
        stages = {STAGE: given.to_dict()[STAGE]}
        for number in range(WAITING):
            app.store.add(f"waits {number}", given.to_dict(), settings.SAMPLES / "travel.jsonl", stages)
        print(HEAD, flush=True)
        first, alone = beside(app, run, 0, 0, args.times, None)
        print(first, flush=True)
        for busy in args.busy:
            print(beside(app, run, args.pages, busy, args.times, alone)[0], flush=True)
    print(f"load average before: {load:.2f}")


def beside(app: App, run: str, pages: int, busy: int, times: int, alone: float | None) -> tuple[str, float]:
    """A row of the table, and the median of `GET /` in ms, beside so many pages and busy loops."""
    stop, ready, results = spawn.Event(), spawn.Event(), spawn.Queue()
    with ExitStack() as others:
        others.callback(stop.set)
        others.enter_context(process(write, app.store.folder(run, STAGE), LINES_A_SECOND, stop))
        for _ in range(busy):
            others.enter_context(process(turn, stop))
        if pages:
            others.enter_context(process(poll, app.url, run, pages, stop, ready, results))
        others.callback(stop.set)  # before the processes are waited for
        if pages and not ready.wait(120):
            raise SystemExit("no page was answered")
        fetch(app.url)
        time.sleep(WARM_SECONDS)
        took = [fetch(app.url) for _ in range(times)]
        used, began = cpu(app.usage), time.perf_counter()
        time.sleep(WARM_SECONDS)  # the polls alone
        seconds = time.perf_counter() - began
        server = (cpu(app.usage) - used) / seconds
    rate = sum(results.get(timeout=60).values()) if pages else 0.0
    middle = statistics.median(took)
    name = f"{pages} pages, {busy} busy loops" if pages else "nobody else"
    ratio = f"{middle / alone:8.1f}" if alone else f"{'':8}"
    each = f"{1000 * server / rate:11.1f}" if rate else ""
    return f"GET /, ms: {name:23}{middle:9.0f}{max(took):9.0f}{ratio}{server:9.1%}{rate:9.0f}{each}", middle


def fetch(url: str) -> float:
    """Milliseconds until the whole page is here."""
    began = time.perf_counter()
    with urlopen(Request(url, headers={"Accept-Encoding": "gzip, deflate, br"}), timeout=120) as reply:
        reply.read()
    took = (time.perf_counter() - began) * 1000
    time.sleep(BETWEEN_SECONDS)
    return took


# -- other processes -----------------------------------------------------------------------------------


def turn(stop: Event) -> None:
    """Take a core."""
    while not stop.is_set():
        sum(range(10_000))


def poll(url: str, run: str, pages: int, stop: Event, ready: Event, results: Any) -> None:
    """Ask as so many open pages do; put how many answers came a second, by what was asked for."""
    results.put(asyncio.run(_poll(url, run, pages, stop, ready)))


async def _poll(url: str, run: str, pages: int, stop: Event, ready: Event) -> dict[str, float]:
    import httpx

    answers: Counter[str] = Counter()
    began = time.monotonic()

    async def again(client: httpx.AsyncClient, name: str, period: float, path: dict[str, str]) -> None:
        while not stop.is_set():
            asked = time.monotonic()
            reply = await client.get(f"{url}{path['now']}")
            reply.raise_for_status()
            answers[name] += 1
            ready.set()
            if name == "live":
                told = reply.json()
                log, seen = told["log"]["next"], told["events"][STAGE]["next"]
                path["now"] = f"runs/{run}/live?stage={STAGE}&log={log}&events={STAGE}:{seen}"
            await asyncio.sleep(max(period - (time.monotonic() - asked), 0.05))

    async def page() -> None:
        # The server closes a connection that was idle for five seconds; a browser then asks again.
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(keepalive_expiry=2)) as client:
            await asyncio.gather(
                again(client, "live", PERIOD_SECONDS, {"now": f"runs/{run}/live?stage={STAGE}"}),
                again(client, "queue", QUEUE_SECONDS, {"now": "queue.json"}),
                again(client, "activity", ACTIVITY_SECONDS, {"now": "activity.json?after=&were="}),
            )

    await asyncio.gather(*(page() for _ in range(pages)))
    return {name: count / (time.monotonic() - began) for name, count in answers.items()}


if __name__ == "__main__":
    main()
