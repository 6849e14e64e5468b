"""A thousand runs in the queue: what the page asks of the server, and the verbs as whole processes.

python -m benchmarks.queue [--runs 1000] [--times 7]

Each in milliseconds: the least, the median, and for verbs the processor time of the median one.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import settings
from pipeline.stages.recipe import load
from pipeline.store import Store, backup
from pipeline.system import locks

STAGES = ("quantize", "finetune", "optimize", "evaluate")
SAMPLE = settings.SAMPLES / "travel.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--times", type=int, default=7)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OLIVE_LAB_HOME"] = folder
        store = Store(Path(folder))
        lock = locks.take(Path(folder) / "worker.lock")  # nothing is to run
        recipe = load(SAMPLE)
        data = Path(recipe.data)
        stages = {name: recipe.to_dict()[name] for name in STAGES}
        runs = [store.add(f"run {n}", recipe.to_dict(), data, stages) for n in range(args.runs)]
        print(f"{'':34}{'least':>8}{'median':>8}{'CPU':>8}")
        of_store(store, runs, args.times)
        of_page(store, runs, args.times)
        of_verbs(runs, args.times)
        if lock is not None:
            os.close(lock)


def of_store(store: Store, runs: list[str], times: int) -> None:
    """What everything else is made of."""
    shown("Store.list", times, store.list)
    shown("Store.get", times, lambda: store.get(runs[len(runs) // 2]))
    shown("Store.queue", times, store.queue)
    shown("opened and looked at as a whole", times, lambda: Store(store.home, check=True))
    shown("copied", times, lambda: backup.make(store.path))


def of_page(store: Store, runs: list[str], times: int) -> None:
    """The handlers and routes that the page calls, on the server's side."""
    with settings.importing_gradio():
        from starlette.testclient import TestClient

        from webapp import app
        from webapp.tabs import runs as tab

    request: Any = SimpleNamespace(query_params={})
    client = TestClient(app.create(), base_url="http://localhost")  # without its lifespan: no worker
    shown("page: arrive", times, lambda: app.arrive(request))
    shown("page: history", times, lambda: tab.listed("", "", "", "", ""))
    shown("page: one run", times, lambda: tab.details(runs[-1]))
    shown("route: status of the last in line", times, lambda: client.get(f"/runs/{runs[-1]}.json"))
    shown("route: status of the first", times, lambda: client.get(f"/runs/{runs[0]}.json"))


def of_verbs(runs: list[str], times: int) -> None:
    """Verbs as a terminal starts them."""
    ids = iter(runs)
    verbs: dict[str, Callable[[], list[str]]] = {
        "list": lambda: ["list"],
        "show": lambda: ["show", runs[-1]],
        "submit": lambda: ["submit", str(SAMPLE)],
        "cancel": lambda: ["cancel", next(ids)],
    }
    for name, arguments in verbs.items():
        shown(f"python -m pipeline {name}", times, partial(verb, arguments), cpu=True)
    shown("python -c pass", times, partial(python, "-c", "pass"), cpu=True)


def verb(arguments: Callable[[], list[str]]) -> None:
    python("-m", "pipeline", *arguments())


def python(*arguments: str) -> None:
    command = [sys.executable, *arguments]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True, cwd=settings.ROOT)


def shown(name: str, times: int, act: Callable[[], object], *, cpu: bool = False) -> None:
    """Time something and print it."""
    took = []
    for _ in range(times):
        used, began = children(), time.perf_counter()
        act()
        took.append(((time.perf_counter() - began) * 1000, (children() - used) * 1000))
    walls = [wall for wall, _ in took]
    processor = f"{statistics.median(used for _, used in took):8.0f}" if cpu else ""
    print(f"{name:34}{min(walls):8.1f}{statistics.median(walls):8.1f}{processor}", flush=True)


def children() -> float:
    """Processor seconds of the processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    main()
