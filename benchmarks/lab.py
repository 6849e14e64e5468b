"""The sample lab: seconds and bytes of each stage, and what the app adds to bare `olive run`.

    python -m benchmarks.lab [--pairs 3] [--set finetune.max_steps=60]

The overhead compares, stage by stage and in turn, a stage's time in the store (process start, checks,
hashing and bookkeeping included) with `olive run` of the very workflow that the stage left behind.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline import settings
from pipeline.display import size as as_size
from pipeline.store import Store
from pipeline.store.run import DONE, Run
from pipeline.system import locks
from pipeline.worker.loop import WORKER_LOCK

SAMPLE = settings.SAMPLES / "travel.yaml"
COMPARED = ("quantize", "finetune")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3, help="pairs measured for the overhead")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder)):
        whole = run_lab(Path(folder), args.set)
        print(f"{'stage':10}{'seconds':>9}{'size':>12}")
        for stage in whole.stages:
            print(f"{stage.name:10}{stage.seconds:9.1f}{as_size(stage.bytes):>12}")
        print(f"{'all':10}{sum(s.seconds or 0 for s in whole.stages):9.1f}")
        ratios = overhead(Path(folder), args.pairs)
    print(f"\n{'stage through the app / bare olive run':44}{'min':>8}{'median':>8}{'max':>8}")
    for name, values in ratios.items():
        print(f"{name:44}{min(values):8.3f}{statistics.median(values):8.3f}{max(values):8.3f}")


@contextmanager
def serving(home: Path, *, ahead: bool = False) -> Iterator[None]:
    """A worker that ends with the block, so that the home can be removed; `ahead` as the app starts one."""
    command = [sys.executable, "-m", "pipeline", "worker", *(["--ahead"] if ahead else [])]
    worker = subprocess.Popen(command, env=settings.child_environment(OLIVE_LAB_HOME=str(home)))
    try:
        while not locks.held(home / WORKER_LOCK):
            time.sleep(0.05)
        yield
    finally:
        worker.terminate()
        worker.wait()


def run_lab(home: Path, changes: list[str]) -> Run:
    """Run the sample recipe in this home by the command line and return the finished run."""
    sets = [part for change in changes for part in ("--set", change)]
    environment = {**os.environ, "OLIVE_LAB_HOME": str(home)}
    command = [sys.executable, "-m", "pipeline", "run", str(SAMPLE), *sets]
    subprocess.run(command, env=environment, check=True, stdout=sys.stderr)
    found = Store(home).list()[0]
    assert found.status == DONE
    return found


def overhead(home: Path, pairs: int) -> dict[str, list[float]]:
    """Ratios app / bare of the compared stages, with few training steps so that overhead can show."""
    ratios: dict[str, list[float]] = {stage: [] for stage in COMPARED}
    for _ in range(pairs):
        for made in (home / "artifacts").glob("*-*"):
            if not made.name.startswith("optimize"):
                shutil.rmtree(made)
        found = run_lab(home, ["finetune.max_steps=10", "optimize=null", "evaluate=null"])
        for name in COMPARED:
            stage = found.stage(name)
            assert stage.finished is not None
            assert stage.started is not None
            ratios[name].append((stage.finished - stage.started) / bare(home, found.id, name))
    return ratios


def bare(home: Path, run: str, stage: str) -> float:
    """Seconds that `olive run` takes for the workflow which that stage left, into a folder of its own."""
    left = Store(home).folder(run, stage)
    with tempfile.TemporaryDirectory() as folder:
        workflow = json.loads((left / "workflow.json").read_text())
        workflow["output_dir"], workflow["cache_dir"] = f"{folder}/output", f"{folder}/cache"
        for step in workflow["passes"].values():
            if "training_args" in step:
                step["training_args"]["output_dir"] = f"{folder}/checkpoints"
        config = Path(folder) / "workflow.json"
        config.write_text(json.dumps(workflow))
        command = [sys.executable, "-m", "olive", "run", "--config", str(config), "--package-config"]
        started = time.perf_counter()
        subprocess.run(
            [*command, str(left / "package.json")],
            env=settings.child_environment(),
            cwd=folder,
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
