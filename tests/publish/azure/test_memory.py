"""However large the model, the processes that move it stay small."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from benchmarks.azure import Watch
from pipeline import settings
from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import publisher as azureml
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import ENDED, Run
from pipeline.system import checksums
from tests.helpers.azure.bench import Bench
from tests.helpers.lab import until

MIB = 1 << 20
SIZE = 300 * MIB
MOST_MIB = 250


def test_a_large_file_goes_there_and_back_in_little_memory(
    bench: Bench, store: Store, finished: Run, where: Place, tmp_path: Path
) -> None:
    bench.azure.blob_port = bench.emulator_port
    folder = Path(str(finished.artifact("onnx")))
    with (folder / "more.bin").open("wb") as file:
        for _ in range(SIZE // MIB):
            file.write(os.urandom(MIB))
    checksums.write(folder)
    watch = Watch("pipeline.worker.stage_process")
    stage = submit.publish(store, finished, "azureml", azureml.Options(name="trips"))
    until(lambda: store.get(finished.id).stage(stage).status in ENDED, "the end", 120)
    ended = store.get(finished.id).stage(stage)
    assert (ended.status, ended.error) == ("done", None)
    assert ended.metrics["bytes_sent"] > SIZE
    assert 50 < watch.most() < MOST_MIB
    watch = Watch("pipeline pull")
    command = [settings.python(), "-m", "pipeline", "pull", "azureml:trips:1", "--to", str(tmp_path / "here")]
    done = subprocess.run(command, capture_output=True, cwd=settings.ROOT, env=settings.child_environment())
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "here" / "more.bin").stat().st_size == SIZE
    assert 50 < watch.most() < MOST_MIB
