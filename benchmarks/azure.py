"""Publishing a large model to a local Azure, and pulling it: seconds and memory of the processes that do it.

python -m benchmarks.azure [--gib 3]

Needs what `make azure-test` installs. The workspace's container is Azurite's, on this machine and over TLS,
so the figures say what the lab costs, not what a line to Azure does.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.system import checksums
from pipeline.worker import loop
from tests.helpers.azure.bench import Bench, missing
from tests.helpers.azure.fake_arm import GROUP, SUB, WORKSPACE

MIB = 1 << 20


def main() -> int:
    """Print one row for each step."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=3.0, help="size of the model (default: %(default)s)")
    args = parser.parse_args()
    if why := missing():
        print(why, file=sys.stderr)
        return 2
    # Names under .localhost are this machine, for this process as for those it starts.
    runpy.run_path(str(settings.ROOT / "tests" / "helpers" / "azure" / "names" / "sitecustomize.py"))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "azure")
        os.environ.update(bench.environment, OLIVE_LAB_HOME=str(Path(folder) / "home"))
        bench.forget()
        bench.azure.blob_port = bench.emulator_port  # past the proxy, which is for faults
        try:
            _measure(Path(folder), int(args.gib * 1024) * MIB)
        finally:
            for process in loop._workers:
                process.terminate()
                process.wait()
            bench.close()
    return 0


def _measure(folder: Path, size: int) -> None:
    from pipeline.inputs import azure_workspace
    from pipeline.publish.azure import publisher as azureml
    from pipeline.runs import submit
    from pipeline.store import Store
    from tests.helpers import exports
    from tests.helpers.lab import finish_all, plant

    store = Store(settings.home())
    model = exports.write(store.home / "artifacts" / "optimize-0" / "model")
    with (model / "more.bin").open("wb") as file:
        for _ in range(size // MIB):
            file.write(os.urandom(MIB))
    checksums.write(model)
    artifact = {"name": "model", "kind": "onnx", "path": str(model), "bytes": size}
    run = finish_all(store, plant(store, "large"), {"optimize": {"artifacts": [artifact]}})
    azure_workspace.remember(store.home, azure_workspace.Place("cli", SUB, GROUP, WORKSPACE))
    for what, check in (("publish", False), ("again", False), ("and checked", True)):
        began = time.monotonic()
        watch = Watch("pipeline.worker.stage_process")
        stage = submit.publish(store, run, "azureml", azureml.Options(name="large", check=check))
        while store.get(run.id).stage(stage).status not in ("done", "failed"):
            time.sleep(0.1)
        ended = store.get(run.id).stage(stage)
        _row(what, time.monotonic() - began, watch.most(), ended.error or _facts(ended.metrics))
    began = time.monotonic()
    watch = Watch("pipeline pull")
    command = [
        settings.python(),
        "-m",
        "pipeline",
        "pull",
        "azureml:large:1",
        "--to",
        str(folder / "here"),
        "--json",
    ]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        cwd=settings.ROOT,
        env=settings.child_environment(),
    )
    said = json.loads(done.stdout)["compared"] if done.returncode == 0 else done.stderr
    _row("pull", time.monotonic() - began, watch.most(), said)


def _facts(metrics: dict[str, Any]) -> str:
    sent = f"{metrics['bytes_sent'] / MIB:.0f} MiB sent in {metrics['upload_seconds']:.1f} s"
    return f"{sent}, version {metrics['version']}, verified {metrics['verified']}"


def _row(what: str, seconds: float, memory: float, more: str) -> None:
    print(f"{what:12} {seconds:7.1f} s  {memory:6.0f} MiB  {more}", flush=True)


class Watch:
    """The most memory that a process with `words` in its command has had, while it is watched."""

    def __init__(self, words: str) -> None:
        self._words, self._over, self._most = words.encode(), threading.Event(), 0.0
        self._home = f"OLIVE_LAB_HOME={settings.home()}".encode()  # others may be at work beside this
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def most(self) -> float:
        """In MiB; ends the watch."""
        self._over.set()
        self._thread.join()
        return self._most

    def _look(self) -> None:
        while not self._over.wait(0.05):
            for entry in Path("/proc").glob("[0-9]*"):
                try:
                    ours = self._home in (entry / "environ").read_bytes().split(b"\0")
                    if ours and self._words in (entry / "cmdline").read_bytes().replace(b"\0", b" "):
                        status = (entry / "status").read_text()
                        peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
                        self._most = max(self._most, int(peak.split()[1]) / 1024)
                except (OSError, StopIteration):
                    continue  # it has ended meanwhile


if __name__ == "__main__":
    sys.exit(main())
