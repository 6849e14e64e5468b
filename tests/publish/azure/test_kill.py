"""A publish that is killed in the middle goes on where it was, and never leaves half a version."""

from __future__ import annotations

import os
import signal
import threading
from pathlib import Path

import pytest

from pipeline.inputs.azure_workspace import Place
from pipeline.publish.azure import publisher as azureml
from pipeline.runs import submit
from pipeline.store import Store
from pipeline.store.run import ENDED, Run
from pipeline.system import checksums
from tests.helpers.azure.bench import Bench
from tests.helpers.azure.proxy import Spoil
from tests.helpers.lab import processes, until

BLOCK = 4 << 20
WEIGHTS = r"^PUT .*/model\.weights\.bin\?comp=block&"


@pytest.fixture
def large(finished: Run) -> Path:
    """The export with six and a half blocks more, in a file that is sent in the middle of the others.

    Of the first that are sent none is the short one, in whatever order they come.
    """
    folder = Path(str(finished.artifact("onnx")))
    (folder / "model.weights.bin").write_bytes(os.urandom(6 * BLOCK + BLOCK // 2))
    checksums.write(folder)
    return folder


def hold(bench: Bench, skip: int) -> threading.Event:
    """Let so many blocks of the weights pass; the event says that the next one has come, and waits."""
    come = threading.Event()
    over = bench.proxy.over

    def wait() -> None:
        come.set()
        over.wait(240)

    bench.proxy.spoils.append(Spoil(WEIGHTS, "call", skip=skip, then=wait))
    return come


def ended(store: Store, run: Run, stage: str) -> str:
    until(lambda: store.get(run.id).stage(stage).status in ENDED, "the end of the stage", 180)
    return store.get(run.id).stage(stage).status


def let_go(bench: Bench) -> None:
    """Whoever is held up is gone; what it sent is thrown away with it."""
    bench.proxy.spoils.clear()
    bench.proxy.over.set()


@pytest.mark.parametrize("how", ["kill", "cancel"])
def test_a_publish_that_is_ended_goes_on_where_it_was(
    bench: Bench, store: Store, finished: Run, large: Path, where: Place, how: str
) -> None:
    come = hold(bench, skip=2)
    options = azureml.Options(name="trips", check=False)
    stage = submit.publish(store, finished, "azureml", options)
    assert come.wait(180)
    until(lambda: bench.proxy.sent(WEIGHTS) >= 2 * BLOCK, "two blocks", 120)
    child = [
        pid
        for pid in processes(store.home)
        if b"pipeline.worker.stage_process" in Path(f"/proc/{pid}/cmdline").read_bytes()
    ]
    if how == "kill":
        os.kill(child[0], signal.SIGKILL)
    else:
        store.request_cancel(finished.id)
    assert ended(store, finished, stage) == {"kill": "failed", "cancel": "canceled"}[how]
    assert not set(child) & set(processes(store.home))
    assert (bench.azure.models, bench.azure.count("^PUT")) == ({}, 0)
    let_go(bench)
    sent_before = bench.proxy.sent(WEIGHTS)
    finished_files = {line.split("?")[0] for line, _, _ in bench.proxy.passed if "comp=blocklist&st" in line and line.startswith("PUT")}  # noqa: E501  # fmt: skip
    assert finished_files
    bench.proxy.passed.clear()
    stage = submit.publish(store, finished, "azureml", options)
    assert ended(store, finished, stage) == "done", store.get(finished.id).stage(stage).error
    size = (large / "model.weights.bin").stat().st_size
    # What was held up may have got there after all, and then it is not sent again either.
    assert bench.proxy.sent(WEIGHTS) <= size - 2 * BLOCK
    assert sent_before + bench.proxy.sent(WEIGHTS) >= size - 2 * BLOCK
    sent_again = {line.split("?")[0] for line, _, _ in bench.proxy.passed if line.startswith("PUT")}
    assert not finished_files & sent_again
    assert list(bench.azure.models["trips"]) == ["1"]
    with bench.container() as container:
        stored = {Path(blob.name).name: blob.size for blob in container.list_blobs()}
    assert stored["model.weights.bin"] == size
