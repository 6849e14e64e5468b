"""A spare process takes the next stage; nobody keeps one without use."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from pipeline import settings
from pipeline.stages.all_stages import STAGES
from pipeline.store import Store
from pipeline.store.run import DONE, EVENTS
from pipeline.worker import loop, spare
from pipeline.worker import processes as processes_of
from pipeline.worker.job import lives
from pipeline.worker.loop import Worker
from tests.helpers.lab import CHILDREN, processes, until
from tests.helpers.planted import one_stage, plant


@pytest.fixture
def served(store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """A worker that makes spares at once, and whose stages wait until the test lets them go on."""
    monkeypatch.setattr(loop, "SPARE_SECONDS", 0.0)
    monkeypatch.setattr(loop, "affordable", lambda: True)
    made = Worker(store, child=[str(CHILDREN), "waits"])
    yield made
    for left in processes(store.home):
        os.kill(left, signal.SIGKILL)
    for one in [*made.spares.values(), *made.jobs.values()]:
        if one.process is not None:
            one.process.wait()


def step_until_ready(served: Worker, stage: str) -> spare.Spare:
    slot = served.slots[0]

    def ready() -> bool:
        served.step()
        return slot in served.spares and served.spares[slot].stage == stage and served.spares[slot].ready()

    until(ready, f"a spare for {stage}")
    return served.spares[slot]


def go(served: Worker, run: str, stage: str) -> None:
    """Let a stage end, and step until the worker has seen it."""
    (served.store.folder(run, stage) / "go").touch()

    def seen() -> bool:
        served.step()
        return served.store.get(run).stage(stage).status == DONE

    until(seen, f"the end of {stage}")


def test_the_next_stage_is_carried_out_by_the_spare(store: Store, served: Worker) -> None:
    run = plant(store)
    made = step_until_ready(served, "finetune")
    go(served, run, "quantize")
    assert served.jobs[served.slots[0]].process is made.process
    folder = store.folder(run, "finetune")
    until((folder / "ready.json").exists, "the beginning of finetune")
    assert lives(folder)
    go(served, run, "finetune")
    assert store.get(run).stage("finetune").metrics == {"stage": "finetune"}
    assert (folder / "log.txt").exists()
    assert not lives(folder)


def test_it_is_found_by_its_stages_mark_from_the_first_moment(store: Store, served: Worker) -> None:
    """Nobody sees in /proc what a process puts into its environment later, nor do those it forks have it."""
    run = plant(store)
    made = step_until_ready(served, "finetune")
    folder = store.folder(run, "finetune")
    assert f"OLIVE_LAB_EVENTS={folder / EVENTS}".encode() in processes_of._environment(made.process.pid)
    go(served, run, "quantize")
    assert served.jobs[served.slots[0]].process is made.process
    until((folder / "ready.json").exists, "the beginning of finetune")
    assert processes_of.end_all(folder) == 1
    assert made.process.wait(60) == -signal.SIGKILL


def test_what_an_earlier_attempt_left_is_ended_and_the_spare_is_not(store: Store, served: Worker) -> None:
    run = plant(store)
    made = step_until_ready(served, "finetune")
    mark = str(store.folder(run, "finetune") / EVENTS)
    left = subprocess.Popen(["sleep", "200"], env=settings.child_environment(OLIVE_LAB_EVENTS=mark))
    go(served, run, "quantize")
    assert left.wait(60) == -signal.SIGKILL
    assert served.jobs[served.slots[0]].process is made.process
    go(served, run, "finetune")


def test_a_spare_that_died_is_done_without(store: Store, served: Worker) -> None:
    run = plant(store)
    made = step_until_ready(served, "finetune")
    made.process.kill()
    made.process.wait()
    go(served, run, "quantize")
    assert served.jobs[served.slots[0]].process is not made.process
    go(served, run, "finetune")


def test_a_spare_that_is_not_ready_is_not_waited_for(
    store: Store, served: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spare.Spare, "ready", lambda _: False)
    run = plant(store)
    slot = served.slots[0]
    until(lambda: served.step() or slot in served.spares, "a spare")
    made = served.spares[slot]
    go(served, run, "quantize")
    assert made.process.poll() is not None
    assert served.jobs[slot].process is not made.process
    go(served, run, "finetune")


def test_after_a_canceled_run_the_spare_ends(store: Store, served: Worker) -> None:
    run = plant(store)
    made = step_until_ready(served, "finetune")
    store.request_cancel(run)

    def alone() -> bool:
        served.step()
        return not served.jobs and not served.spares

    until(alone, "the end of all")
    assert made.process.poll() is not None


def test_the_last_stage_and_qlora_need_no_spare(store: Store, served: Worker) -> None:
    last = one_stage(store, "last")
    until(lambda: served.step() or any(job.has_spare for job in served.jobs.values()), "a look ahead")
    assert not served.spares
    go(served, last, "quantize")
    plant(store, "qlora", {"quantize": {}, "finetune": {"method": "qlora"}})
    until(lambda: served.step() or any(job.has_spare for job in served.jobs.values()), "a look ahead")
    assert not served.spares


def test_qlora_does_not_take_the_spare_of_another_run(store: Store, served: Worker) -> None:
    """A spare finds no bitsandbytes, which QLoRA needs."""
    first = plant(store)
    made = step_until_ready(served, "finetune")
    second = plant(store, "qlora", {"finetune": {"method": "qlora"}})
    store.request_cancel(first)

    def taken() -> bool:
        served.step()
        return any(job.run == second for job in served.jobs.values())

    until(taken, "the other run's turn")
    assert next(iter(served.jobs.values())).process is not made.process
    go(served, second, "finetune")


def test_a_spare_ends_with_its_worker(store: Store) -> None:
    made = spare.Spare("run", "finetune", [str(CHILDREN), "waits"], settings.child_environment())
    until(made.ready, "a spare")
    made.channel.close()
    assert made.process.wait(timeout=60) == 0


def test_a_spare_ends_with_a_worker_that_has_not_heard_of_it_yet(store: Store) -> None:
    made = spare.Spare("run", "finetune", [str(CHILDREN), "waits"], settings.child_environment())
    assert select.select([made.channel], [], [], 60)[0], "no word from the spare"
    made.channel.close()
    assert made.process.wait(timeout=60) == 0


def test_without_memory_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spare, "ENOUGH_MEMORY", 1 << 60)
    assert not spare.affordable()
    monkeypatch.setattr(spare, "ENOUGH_MEMORY", 0)
    assert spare.affordable()


@pytest.mark.chain
def test_a_real_spare_gets_ready() -> None:
    made = spare.Spare("run", "quantize", loop.CHILD, settings.child_environment())
    until(made.ready, "a spare", 120)
    made.dismiss()


# What all stages need is imported once; what each needs besides, in a process that has nothing of the others.
IMPORTED = """
import importlib, os, sys
from pipeline.stages.all_stages import STAGES
from pipeline.stages.execute import import_torchmetrics
from pipeline.worker import spare

spare.without_bitsandbytes()
import_torchmetrics()
for module in spare.ALL:
    importlib.import_module(module)
print("scipy.signal" in sys.modules)
for stage in STAGES:
    child = os.fork()
    if not child:
        spare.prepare(stage)
        os._exit(0)
    print(stage, os.waitpid(child, 0)[1])
import scipy.signal
print(scipy.signal.windows.hamming(3)[1])
"""


@pytest.mark.chain
def test_what_is_imported_ahead_can_be_imported_and_is_no_more_than_needed() -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], env=settings.child_environment(), capture_output=True, text=True
    )
    stages = [f"{stage} 0" for stage in STAGES]
    assert done.stdout.splitlines() == ["False", *stages, "1.0"], done.stderr
