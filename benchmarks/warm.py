"""What a warm process and its forks take, beside processes that import for themselves.

`python -m benchmarks.warm [--forks 5]`
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from pipeline import settings
from pipeline.system import hardware, own_process
from pipeline.worker.ahead import warm

IMPORTS = "from pipeline.worker.ahead import warm; warm.prepare_all()"
PAUSE = 0.01


def fork(number: str, _: str) -> int:
    """In a fork: the memory that is its own, in the file that it is named after."""
    import torch

    facts = [psutil.Process().memory_full_info().uss]
    torch.ones(512, 512) @ torch.ones(512, 512)
    facts.append(psutil.Process().memory_full_info().uss)
    (settings.home() / number).write_text(json.dumps(facts))
    return 0


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forks", type=int, default=5)
    forks = parser.parse_args().forks
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        environment = settings.stage_environment(hardware.on_gpu(), OLIVE_LAB_HOME=str(home))
        began = time.monotonic()
        with own_process.start(["-c", IMPORTS], environment, stdout=subprocess.DEVNULL) as alone:
            _, _, used = os.wait4(alone.pid, 0)
            alone.returncode = 0
        print(
            f"alone    {time.monotonic() - began:.1f} s, {used.ru_utime + used.ru_stime:.1f} s of processor"
        )
        began = time.monotonic()
        made = warm.Warm(["-m", "benchmarks.warm"], environment, home / "log")
        while not made.ready():
            assert made.process.returncode is None, (home / "log").read_text()
            time.sleep(PAUSE)
        taken = time.monotonic() - began
        process = psutil.Process(made.process.pid)
        times, memory = process.cpu_times(), process.memory_full_info()
        print(
            f"warm     {taken:.1f} s, {times.user + times.system:.1f} s of processor,"
            f" {memory.rss / 1e6:.0f} MB, of these its own {memory.uss / 1e6:.0f} MB,"
            f" {process.num_threads()} thread"
        )
        seconds, own, busy = zip(*(_forked(made, home, number) for number in range(forks)), strict=True)
        print(
            f"a fork   {1000 * statistics.median(seconds):.0f} ms ({1000 * min(seconds):.0f} to"
            f" {1000 * max(seconds):.0f}), of its own {statistics.median(own) / 1e6:.0f} MB,"
            f" after a product of matrices {statistics.median(busy) / 1e6:.0f} MB"
        )
        made.dismiss()


def _forked(made: warm.Warm, home: Path, number: int) -> tuple[float, int, int]:
    """Seconds until there is a fork, and bytes of its own before and after it computes."""
    marked = {**made.environment, settings.EVENTS: str(home / "events.jsonl")}
    with (home / "lock").open("w") as lock, (home / "log").open("a") as log:
        began = time.monotonic()
        forked = made.fork(warm.Request(str(number), "none", marked), lock.fileno(), log.fileno())
        seconds = time.monotonic() - began
    forked.wait()
    own, busy = json.loads((home / str(number)).read_text())
    return seconds, own, busy


if __name__ == "__main__":
    if warm.FLAG in sys.argv:
        sys.exit(warm.serve(sys.argv[2], fork))
    main()
