"""GPUs that somebody else than the queue's runs has taken."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest

from pipeline.errors import LabError
from pipeline.store import Store, device_locks
from pipeline.store.run import DONE, QUEUED, RUNNING
from pipeline.system import hardware
from pipeline.worker.loop import Worker
from tests.helpers.planted import plant

TWO = ("cuda:0", "cuda:GPU-1/x")


def silent(text: str) -> None:
    raise AssertionError(text)


def test_each_takes_a_gpu_of_its_own_until_there_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(device_locks, "CLAIM_SECONDS", 0.2)  # for which each that is held is tried again
    (first, one), (second, other) = (device_locks.hold(store, TWO, silent) for _ in range(2))
    assert (first, second) == TWO
    with pytest.raises(LabError, match="Every GPU already serves a model"):
        device_locks.hold(store, TWO, silent)
    os.close(one)
    again, descriptor = device_locks.hold(store, TWO, silent)
    assert again == first
    os.close(other)
    os.close(descriptor)


def test_one_without_a_run_is_taken_and_else_the_end_of_a_run_is_awaited(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = plant(store)
    claimed = store.claim("cuda:0")
    assert claimed is not None
    device, descriptor = device_locks.hold(store, TWO, silent)
    assert device == TWO[1]
    os.close(descriptor)

    said: list[str] = []
    looks: list[float] = []

    def sleep(seconds: float) -> None:
        with device_locks.unheld(store.home, "cuda:0") as free:
            assert not free, "no other run starts there meanwhile"
        looks.append(seconds)
        if len(looks) == 1:
            store.finish(run, claimed[1], DONE)  # and the run goes on with its next stage
        elif store.claim_next(run, "cuda:0") is not None:
            store.finish(run, store.running()[0][1], DONE)

    monkeypatch.setattr(device_locks.time, "sleep", sleep)
    device, descriptor = device_locks.hold(store, TWO[:1], said.append)
    os.close(descriptor)
    assert (device, store.get(run).status) == ("cuda:0", DONE)
    assert said == [device_locks.WAITS.format("cuda:0")]


def test_a_worker_starts_no_run_there(
    store: Store, monkeypatch: pytest.MonkeyPatch, stepper: Callable[[str], Worker]
) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 2)
    runs = [plant(store, str(number)) for number in range(2)]
    _, descriptor = device_locks.hold(store, hardware.devices(), silent)
    worker = stepper("waits")
    worker.step()
    assert [store.get(run).status for run in runs] == [RUNNING, QUEUED]
    assert [device for _, _, device in store.running()] == ["cuda:1"]
    os.close(descriptor)
    worker.step()
    assert [store.get(run).status for run in runs] == [RUNNING, RUNNING]
