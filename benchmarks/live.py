"""The live page under load: how old the newest line is that a viewer sees, and what that costs.

python -m benchmarks.live [--seconds 20] [--rates 100 2000] [--viewers 1 5 20]

The real app over a home of its own, a run whose log and events another process writes, one real browser, and
for the other viewers HTTP clients in a process of their own that ask as often as the page does. Every line
has a number and the time it was written, so that lost, doubled and late ones are seen.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil

from pipeline import settings
from pipeline.stages import events, recipe
from pipeline.store import Store
from pipeline.store.run import PROCESS
from pipeline.system import clock, files, locks

STAGE = "finetune"
FLUSH_SECONDS = 0.02
PERIOD_SECONDS = 0.22  # as the page asks while lines come
WARM_SECONDS = 4.0
LONG_LINES = 200_000
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
HEAD = (
    " lines/s viewers   browser p50/p95   clients p50/p95   server    tab  lost/doubled   load\n"
    "                                ms                ms  of a core"
)
spawn = multiprocessing.get_context("spawn")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rates", type=int, nargs="*", default=[100, 2000])
    parser.add_argument("--viewers", type=int, nargs="*", default=[1, 5, 20])
    args = parser.parse_args()
    from playwright.sync_api import sync_playwright

    load = f"load average before: {os.getloadavg()[0]:.2f}"
    with serving() as app, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=FLAGS)
        print(HEAD, flush=True)
        for rate in args.rates:
            for viewers in args.viewers:
                print(flow(app, browser, rate, viewers, args.seconds), flush=True)
        print(*long_log(app, browser), *restart(app, browser), load, sep="\n", flush=True)
        browser.close()


class App:
    """The app as a process, and the store under it."""

    def __init__(self, home: Path) -> None:
        self.store = Store(home)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        command = [sys.executable, "-m", "webapp", "--port", str(self.port)]
        environment = settings.child_environment(OLIVE_LAB_HOME=str(self.store.home))
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        self.usage = psutil.Process(self.process.pid)
        while True:
            try:
                return socket.create_connection(("127.0.0.1", self.port)).close()
            except ConnectionRefusedError:
                time.sleep(0.02)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()

    def plant(self) -> str:
        """A run that fine-tunes, as the worker would have started it."""
        given = recipe.load(settings.SAMPLES / "travel.yaml").to_dict()
        run = self.store.add("load", given, Path(given["data"]), {STAGE: given[STAGE], "optimize": {}})
        self.store.claim("cpu")
        folder = self.store.folder(run, STAGE)
        folder.mkdir()
        files.write_whole(folder / PROCESS, {"pid": 0, **clock.mark()})
        (folder / "log.txt").touch()
        return run


@contextmanager
def serving() -> Iterator[App]:
    """The app over an empty home, whose worker's lock is held here: nothing runs for real."""
    with tempfile.TemporaryDirectory() as home:
        lock = locks.take(Path(home) / "worker.lock")
        assert lock is not None
        app = App(Path(home))
        try:
            yield app
        finally:
            app.stop()
            os.close(lock)


# -- other processes -----------------------------------------------------------------------------------


def write(folder: Path, rate: int, stop: Event) -> None:
    """Write numbered lines at an even rate, and a step's event each second, until told to stop."""
    began, number, step = time.time(), 0, 0
    with (folder / "log.txt").open("a") as log:
        while not stop.wait(FLUSH_SECONDS):
            due = int((time.time() - began) * rate)
            now = int(time.time() * 1000)
            log.writelines(
                f"{n} {now} loss 1.234 of a step that was trained just now\n" for n in range(number, due)
            )
            log.flush()
            number = due
            if time.time() - began > step:
                step += 1
                facts = {"loss": 3 / step, "learning_rate": 1e-4, "tokens_per_second": 400.0, "progress": 0.1}
                events.append(
                    folder / "events.jsonl", {"step": step, "elapsed": step, "memory_bytes": 2e9, **facts}
                )


def clients(url: str, count: int, stop: Event, results: Any) -> None:
    """So many viewers that ask as the page does; put (ages in ms, lost, doubled)."""
    results.put(asyncio.run(_clients(url, count, stop)))


async def _clients(url: str, count: int, stop: Event) -> tuple[list[float], int, int]:
    import httpx

    ages: list[float] = []
    viewers: list[dict[str, Any]] = [{"next": -1, "at": 0.0, "lost": 0, "doubled": 0} for _ in range(count)]

    async def view(viewer: dict[str, Any]) -> None:
        log, told = -65536, 0
        async with httpx.AsyncClient(timeout=15) as client:
            while not stop.is_set():
                asked = time.monotonic()
                reply = (await client.get(f"{url}?stage={STAGE}&log={log}&events={STAGE}:{told}")).json()
                log, told = reply["log"]["next"], reply["events"][STAGE]["next"]
                for line in reply["log"]["text"].splitlines():
                    number, at, _ = line.split(" ", 2)
                    if viewer["next"] >= 0:
                        viewer["lost"] += max(int(number) - viewer["next"], 0)
                        viewer["doubled"] += int(number) < viewer["next"]
                    viewer["next"], viewer["at"] = int(number) + 1, float(at)
                await asyncio.sleep(max(PERIOD_SECONDS - (time.monotonic() - asked), 0.05))

    async def sample() -> None:
        while not stop.is_set():
            await asyncio.sleep(0.05)
            ages.extend(time.time() * 1000 - viewer["at"] for viewer in viewers if viewer["at"])

    await asyncio.gather(sample(), *(view(viewer) for viewer in viewers))
    settled = ages[count * int(WARM_SECONDS / 0.05) :]
    return settled, sum(v["lost"] for v in viewers), sum(v["doubled"] for v in viewers)


@contextmanager
def process(target: Any, *args: Any) -> Iterator[Any]:
    started = spawn.Process(target=target, args=args)
    started.start()
    try:
        yield started
    finally:
        started.join(30)


# -- what is measured ----------------------------------------------------------------------------------


def flow(app: App, browser: Any, rate: int, viewers: int, seconds: float) -> str:
    """A row of the table: one browser and `viewers` - 1 clients while lines come at an even rate."""
    run, stop, results = app.plant(), spawn.Event(), spawn.Queue()
    page = opened(app, browser, run)
    url = f"{app.url}runs/{run}/live"
    with process(write, app.store.folder(run, STAGE), rate, stop):
        others = [process(clients, url, viewers - 1, stop, results)] if viewers > 1 else []
        for other in others:
            other.__enter__()
        time.sleep(WARM_SECONDS)
        page.evaluate("bench.watch()")
        before = cpu(app.usage), sum(map(cpu, tabs())), time.perf_counter()
        time.sleep(seconds)
        took = time.perf_counter() - before[2]
        server, tab = (cpu(app.usage) - before[0]) / took, (sum(map(cpu, tabs())) - before[1]) / took
        ages = aged(page.evaluate("bench.seen"))
        stop.set()
    told, lost, doubled = results.get(timeout=30) if others else ([], 0, 0)
    page.context.close()
    cells = [f"{rate:8}{viewers:8}", f"{middle(ages):>16}", f"{middle(told) if told else '':>16}"]
    cells += [f"{server:7.1%}{tab:7.1%}", f"{f'{lost}/{doubled}':>12}{os.getloadavg()[0]:7.2f}"]
    return "  ".join(cells)


def long_log(app: App, browser: Any) -> list[str]:
    """How the page answers with 200,000 lines in it."""
    run = app.plant()
    page = opened(app, browser, run)
    began = time.perf_counter()
    with (app.store.folder(run, STAGE) / "log.txt").open("a") as log:
        for number in range(LONG_LINES):
            log.write(f"{number} {int(time.time() * 1000)} loss 1.234 of a step that was trained just now\n")
    until(lambda: page.evaluate("bench.newest()") == LONG_LINES - 1)
    shown = time.perf_counter() - began
    scroll = page.evaluate("bench.scroll()")
    rare, every = page.evaluate("bench.find", f"{LONG_LINES // 2} "), page.evaluate("bench.find", "loss")
    rows = page.evaluate("document.querySelectorAll('.lab-line').length")
    heap = page.evaluate("performance.memory.usedJSHeapSize") / 1e6
    page.context.close()
    return [
        f"\n{LONG_LINES:,} lines: shown after {shown:.1f} s; {rows} rows in the document; heap {heap:.0f} MB",
        f"jump to a place, until it is seen: {middle(scroll)} ms (p50/p95)",
        *(
            f"find, {found}: {took:.0f} ms, longest frame {longest:.0f} ms"
            for took, longest, found in (rare, every)
        ),
    ]


def restart(app: App, browser: Any) -> list[str]:
    """How long the page takes to be current again after the server was away, and what it lost."""
    run, stop = app.plant(), spawn.Event()
    page = opened(app, browser, run)
    with process(write, app.store.folder(run, STAGE), 2000, stop):
        until(lambda: page.evaluate("bench.newest()") > 2000)
        app.stop()
        time.sleep(5)
        page.evaluate("bench.watch()")
        app.start()
        urlopen(f"{app.url}activity.json").close()
        began = time.time() * 1000
        until(lambda: any(when - at < 100 for when, at in page.evaluate("bench.seen")))
        took = max(next(when for when, at in page.evaluate("bench.seen") if when - at < 100) - began, 0)
        stop.set()
    written = (app.store.folder(run, STAGE) / "log.txt").read_text().count("\n")
    until(lambda: page.evaluate("bench.newest()") == written - 1)
    seen = page.evaluate("bench.read()")
    page.context.close()
    lost, doubled = written - len(set(seen)), len(seen) - len(set(seen))
    return [
        f"server away for 5 s at 2,000 lines/s: the page is current {took:.0f} ms after its first answer;",
        f"{lost} of {written:,} lines lost, {doubled} doubled, in order: {seen == sorted(seen)}",
    ]


def opened(app: App, browser: Any, run: str) -> Any:
    page = browser.new_context(viewport={"width": 1280, "height": 1400}).new_page()
    page.goto(f"{app.url}?run={run}")
    page.wait_for_selector(f"text=Log of {STAGE}")  # it has asked, so that it gets all lines from here on
    page.evaluate(Path(__file__).with_suffix(".js").read_text())
    return page


def tabs() -> list[psutil.Process]:
    """The browser's processes that draw pages."""
    found = psutil.Process().children(recursive=True)
    return [p for p in found if p.name().startswith("chrom") and "--type=renderer" in p.cmdline()]


def aged(seen: list[list[float]]) -> list[float]:
    """How old the newest line in sight was, in ms, each 5 ms: it grows until the next one is seen."""
    return [
        age for (when, at), (until, _) in pairwise(seen) for age in range(int(when - at), int(until - at), 5)
    ]


def cpu(of: psutil.Process) -> float:
    times = of.cpu_times()
    return float(times.user + times.system)


def middle(values: list[float]) -> str:
    cuts = statistics.quantiles(values, n=20)
    return f"{cuts[9]:.0f}/{cuts[18]:.0f}"


def until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("the page did not get there")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
