"""The Runs tab with many runs: milliseconds of its handlers, on the server.

python -m benchmarks.history [--runs 1000]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.runs import disk
from pipeline.stages.recipe import load
from pipeline.store import Store
from pipeline.store.run import DONE

KINDS = {
    "quantize": ["checkpoint"],
    "finetune": ["adapter"],
    "optimize": ["onnx", "onnx_adapter"],
    "evaluate": ["answers"],
}
MEASURED = {"eval_loss_before": 3.1, "eval_loss_after": 1.4, "olive_seconds": 9.1, "peak_memory_bytes": 10**9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    count = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OLIVE_LAB_HOME"] = folder
        store = Store(Path(folder))
        plant(store, count)
        with settings.importing_gradio():
            from webapp.tabs import runs
        one = store.list(1)[0].id
        print(f"{count} runs, ms{'':17}{'median':>8}{'max':>8}")
        told("the whole table", lambda: runs.listed("", "", "", "", ""))
        told("words and a tag", lambda: runs.listed("travel mountains", "", "keep", "", ""))
        told("words that one run has", lambda: runs.listed("mountain77", "", "", "", ""))
        told("storage of a run", lambda: disk.of(store, one))
        told("what could be freed", lambda: disk.unused(store))


def plant(store: Store, count: int) -> None:
    """Finished runs of four stages, a third of which share their results."""
    recipe = load(settings.SAMPLES / "travel.yaml").to_dict()
    for n in range(count):
        name = f"travel {n}"
        given = {**recipe, "name": name}
        run = store.add(
            name, given, Path(recipe["data"]), {s: recipe[s] for s in KINDS}, owner=f"owner {n % 3}"
        )
        store.claim("cpu")
        for stage, kinds in KINDS.items():
            folder = store.home / "artifacts" / f"{stage}-{n % max(count * 2 // 3, 1):016x}"
            made = [{"name": k, "kind": k, "path": str(folder / k), "bytes": 10**8} for k in kinds]
            store.finish(run, stage, DONE, seconds=3.2, metrics=MEASURED, artifacts=made)
            store.claim_next(run, "cpu")
        store.annotate(run, notes=f"about mountains, mountain{n}", tags=["keep" if n % 7 == 0 else "try"])


def told(what: str, call: Callable[[], Any]) -> None:
    """Time a call ten times and print it."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - began)
    print(f"{what:28}{statistics.median(seconds) * 1e3:8.0f}{max(seconds) * 1e3:8.0f}")


if __name__ == "__main__":
    main()
