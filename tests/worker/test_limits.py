"""Limits of time and disk, with real stages that pass them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store import Store
from pipeline.store.run import DONE, FAILED, QUEUED, RUNNING
from pipeline.system import clock, hardware
from pipeline.system.files import write_whole
from pipeline.worker.limits import Limits
from pipeline.worker.loop import Worker
from tests.helpers.lab import until
from tests.helpers.planted import plant

Make = Callable[[str], Worker]


def add(store: Store, **recipe: object) -> str:
    return plant(store, "run", ["quantize", "finetune"], **recipe)


def ended(store: Store, served: Worker, run: str) -> Callable[[], bool]:
    def look() -> bool:
        served.step()
        return store.get(run).status not in (QUEUED, RUNNING)

    return look


def test_a_stage_that_takes_too_long_is_ended_with_the_reason(store: Store, stepper: Make) -> None:
    run, other = add(store, max_minutes=0.01), add(store)
    served = stepper("waits")
    until(ended(store, served, run), "the end of the run")
    stage = store.get(run).stages[0]
    assert (stage.status, stage.seconds is not None and stage.seconds >= 0.6) == (FAILED, True)
    assert stage.error == (
        "This run has taken longer than 0.01 minutes, its limit (max_minutes)."
        " Repeat it with a higher max_minutes: finished stages are reused."
    )
    until(lambda: served.step() or store.get(other).status == RUNNING, "the turn of the next run")


def test_a_stage_that_writes_too_much_is_ended_with_the_reason(store: Store, stepper: Make) -> None:
    run = add(store, max_gigabytes=0.001)
    served = stepper("waits")
    served.step()
    assert store.get(run).status == RUNNING
    (store.folder(run, "quantize") / "checkpoints").mkdir()
    (store.folder(run, "quantize") / "checkpoints" / "weights").write_bytes(b"\0" * 1_100_000)
    until(ended(store, served, run), "the end of the run")
    assert (store.get(run).stages[0].error or "").startswith("This run has written more than 0.001 GB")


def test_what_a_stage_writes_to_its_result_counts(store: Store) -> None:
    run = add(store, max_gigabytes=0.001)
    part = store.home / "artifacts" / "quantize-01.part"
    part.mkdir(parents=True)
    limits = Limits(store, run, "quantize")
    assert limits.passed(0.0) is None
    folder = store.folder(run, "quantize")
    folder.mkdir()
    (folder / "output.txt").write_text(part.name)
    (part / "weights").write_bytes(b"\0" * 1_100_000)
    assert "max_gigabytes" in (Limits(store, run, "quantize").passed(0.0) or "")


def test_the_stages_before_count_and_what_was_reused_takes_no_disk(store: Store) -> None:
    run = add(store, max_minutes=1.0, max_gigabytes=1.0)
    store.claim("cpu")
    made = [{"kind": "a", "path": "/a", "bytes": 2_000_000_000}]
    store.finish(run, "quantize", DONE, seconds=50.0, reused=True, artifacts=made)
    limits = Limits(store, run, "finetune")
    assert limits.passed(9.0) is None
    assert "max_minutes" in (limits.passed(11.0) or "")


def test_an_adopted_stage_is_timed_by_the_clock_nobody_can_set(store: Store, stepper: Make) -> None:
    """It began under another worker an hour ago, as the monotonic clock has it."""
    run = add(store, max_minutes=30.0)
    first = stepper("waits")
    first.step()
    folder = store.folder(run, "quantize")
    until((folder / "ready.json").exists, "the beginning of the stage")
    pid = first.jobs["cpu"].process.pid  # type: ignore[union-attr]
    mark = clock.mark()
    write_whole(folder / "process.json", {"pid": pid, **mark, "monotonic": mark["monotonic"] - 3600})
    second = stepper("finishes")
    second.recover()
    until(ended(store, second, run), "the end of the run")
    assert "30 minutes" in (store.get(run).stages[0].error or "")
    first.jobs["cpu"].process.wait()  # type: ignore[union-attr]


@pytest.mark.parametrize(("slot", "gpu"), [("cuda:0", b"0"), ("cpu", b"")])
def test_runs_for_the_processor_go_beside_those_on_a_gpu(
    store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Make, slot: str, gpu: bytes
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 1)
    runs = {"cpu": add(store, runs_on="cpu"), "cuda:0": add(store)}
    waiting = add(store, runs_on="cpu")
    served = stepper("waits")
    served.step()
    assert [store.get(run).status for run in (*runs.values(), waiting)] == [RUNNING, RUNNING, QUEUED]
    sign = store.folder(runs[slot], "quantize") / "ready.json"
    until(sign.exists, "the beginning of the stage")
    environment = Path(f"/proc/{served.jobs[slot].process.pid}/environ").read_bytes().split(b"\0")  # type: ignore[union-attr]
    assert b"CUDA_VISIBLE_DEVICES=" + gpu in environment
