"""Stages on several GPUs: who gets them and when, and what is left of their processes. Nothing computes."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.store import Store, device_locks
from pipeline.store.run import CANCELED, DONE, FAILED, QUEUED, RUNNING
from pipeline.system import hardware
from pipeline.worker import webhook
from pipeline.worker.loop import Worker
from tests.helpers.lab import alive, ended, go, spawned, step_until, until
from tests.helpers.planted import one_stage, plant

Make = Callable[[str], Worker]
Gpus = Callable[[int], None]


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, stepper: Make) -> Gpus:
    """Say how many GPUs there are."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return lambda count: monkeypatch.setattr(hardware, "gpus", lambda: count)


def wide(store: Store, name: str, count: int = 2, *before: str) -> str:
    """Queue a run of a training on so many GPUs, with stages before it."""
    return plant(store, name, {**{stage: {} for stage in before}, "finetune": {"gpus": count}})


def statuses(store: Store, *runs: str) -> list[str]:
    return [store.get(run).status for run in runs]


def variables(pid: int) -> dict[str, str]:
    environment = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(variable.split("=", 1) for variable in environment if "=" in variable)


def test_a_stage_has_as_many_gpus_as_it_uses(store: Store, stepper: Make, gpus: Gpus) -> None:
    gpus(3)
    run, next_one, third = wide(store, "wide"), one_stage(store, "next"), one_stage(store, "third")
    served = stepper("waits")
    served.step()
    assert [device for _, _, device in store.running()] == ["cuda:0,cuda:1", "cuda:2"]
    assert statuses(store, run, next_one, third) == [RUNNING, RUNNING, QUEUED]
    of_wide, of_other = (
        variables(spawned(store, run, "finetune")[0]), variables(spawned(store, next_one)[0])
    )  # fmt: skip
    assert (of_wide["CUDA_VISIBLE_DEVICES"], of_wide["OLIVE_LAB_TRAINING_GPUS"]) == ("0", "0,1")
    assert of_other["CUDA_VISIBLE_DEVICES"] == "2"
    assert "OLIVE_LAB_TRAINING_GPUS" not in of_other
    again = stepper("waits")  # adopts both, on all they have
    again.recover()
    again.step()
    assert store.get(third).status == QUEUED
    go(store, run, "finetune")
    step_until(again, lambda: store.get(third).status == RUNNING, "the third run's turn")
    assert store.get(run).status == DONE


def test_younger_runs_do_not_get_the_gpus_that_it_waits_for(store: Store, stepper: Make, gpus: Gpus) -> None:
    gpus(2)
    first, run, younger = one_stage(store, "first"), wide(store, "wide"), one_stage(store, "younger")
    served = stepper("waits")
    served.step()
    assert statuses(store, first, run, younger) == [RUNNING, QUEUED, QUEUED], "one GPU is idle"
    waiting, behind = store.queue()
    assert device_locks.waits(store, waiting) == "waiting for 2 GPUs; 1 is free"
    assert device_locks.waits(store, behind) == ""
    go(store, first)
    step_until(served, lambda: store.get(run).status == RUNNING, "the turn of the one that waits")
    assert store.get(younger).status == QUEUED


def test_two_runs_do_not_wait_for_each_others_gpu(
    store: Store, stepper: Make, gpus: Gpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(webhook, "tell", lambda run: told.append(run.id))
    gpus(2)
    runs = [wide(store, name, 2, "quantize") for name in ("one", "other")]
    served = stepper("waits")
    served.step()
    for run in reversed(runs):  # both are done with one GPU
        spawned(store, run)
        go(store, run)
    step_until(served, lambda: store.get(runs[0]).stage("finetune").status == RUNNING, "the training of one")
    assert statuses(store, *runs) == [RUNNING, QUEUED]
    assert told == [], "neither has ended"
    for run in runs:
        step_until(served, lambda run=run: store.get(run).stage("finetune").status == RUNNING, "a training")
        go(store, run, "finetune")
    step_until(served, ended(store, runs[1]), "the end of the other")
    assert statuses(store, *runs) == [DONE, DONE]
    assert told == runs


def test_a_gpu_that_serves_a_model_keeps_nobody_waiting(store: Store, stepper: Make, gpus: Gpus) -> None:
    """It may for days: younger runs get the other one meanwhile."""
    gpus(2)
    device, held = device_locks.hold(store, hardware.devices(), print)
    run, younger = wide(store, "wide"), one_stage(store, "younger")
    served = stepper("waits")
    served.step()
    assert statuses(store, run, younger) == [QUEUED, RUNNING]
    assert device_locks.waits(store, store.queue()[0]) == "waiting for 2 GPUs; 0 are free"
    go(store, younger)
    step_until(served, ended(store, younger), "the end of the younger")
    os.close(held)
    step_until(served, lambda: store.get(run).status == RUNNING, "its turn")
    device, held = device_locks.hold(store, ["cuda:2", "cuda:1"], print)
    assert device == "cuda:2", "cuda:1 has a run"
    os.close(held)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_more_gpus_than_there_are_fail_at_once(store: Store, stepper: Make, gpus: Gpus, count: int) -> None:
    """As in a home that was moved to another machine."""
    gpus(count)
    run = wide(store, "wide", 3)
    step_until(stepper("waits"), ended(store, run), "the end of the run")
    assert store.get(run).status == FAILED
    assert store.get(run).stages[0].error == (
        f"finetune.gpus: 3 GPUs are wanted, and runs may use {count} here; start a new run with fewer, or"
        " retry it on a machine with as many."
    )


def test_a_canceled_run_leaves_the_queue_before_its_gpus_are_idle(
    store: Store, stepper: Make, gpus: Gpus
) -> None:
    gpus(2)
    first, run, younger = one_stage(store, "first"), wide(store, "wide"), one_stage(store, "younger")
    served = stepper("waits")
    served.step()
    store.request_cancel(run)
    served.step()
    assert statuses(store, first, run, younger) == [RUNNING, CANCELED, RUNNING]


KILLED = {
    None: None,
    0: "Somebody, or another program, killed this stage (SIGKILL); retry it.",
    1: "GPU process 2 of 2 was ended (Killed), and this training with it; its last line: taking steps;"
    " retry it.",
}


@pytest.mark.parametrize("victim", KILLED, ids=["canceled", "first killed", "other killed"])
def test_nothing_is_left_of_its_processes(
    store: Store, stepper: Make, gpus: Gpus, victim: int | None
) -> None:
    gpus(2)
    run = wide(store, "wide")
    served = stepper("trains_along")
    served.step()
    pids = spawned(store, run, "finetune")
    assert os.getsid(pids[1]) == pids[0]
    if victim is None:
        store.request_cancel(run)
    else:
        os.kill(pids[victim], signal.SIGKILL)
        until(lambda: not any(map(alive, pids)), "the end of both, without a worker")
    step_until(served, ended(store, run), "the end of the run")
    assert not any(map(alive, pids))
    assert store.get(run).stages[0].error == KILLED[victim]
    assert (store.get(run).stages[0].seconds is None) == (victim is None)
    assert store.get(run).status == (CANCELED if victim is None else FAILED)
