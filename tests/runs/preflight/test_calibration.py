"""A calibration that really measures this machine, and when one is started."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.runs.preflight import calibration
from pipeline.stages.costs import machine
from pipeline.store import Store
from tests.helpers.lab import until
from tests.helpers.planted import plant


@pytest.mark.chain
def test_this_machine_is_measured_once_when_nothing_is_queued(store: Store) -> None:
    assert calibration.ensure(store)
    assert not calibration.ensure(store) or len(calibration._started) == 1
    until((store.home / machine.FILE).is_file, "the calibration", 240)
    found = json.loads((store.home / machine.FILE).read_text())
    assert found["version"] == machine.VERSION
    known = machine.read(store.home, gpu=False)
    assert known.measured
    assert 1e8 < known.product_fp32 < 1e14
    assert 1e8 < known.import_bytes < 3e9
    assert not calibration.wanted(store)
    assert [path.name for path in store.home.glob(".calibration*")] == []


class Clock:
    """As the module `time` to a calibration: each look at it is a tick later."""

    def __init__(self, tick: float) -> None:
        self.tick, self.now = tick, 0.0

    def perf_counter(self) -> float:
        self.now += self.tick
        return self.now


@pytest.mark.chain
@pytest.mark.parametrize("turn", [0.001, 0.1, 30.0])
def test_a_rate_takes_a_moment_or_where_the_machine_is_slow_three_turns(
    turn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, turns = Clock(turn), list[int]()
    monkeypatch.setattr(calibration, "time", clock)
    assert calibration._seconds(lambda: turns.append(1), "cpu", calls=2) == pytest.approx(turn / 2)
    assert clock.now == pytest.approx(max(calibration.SECONDS, turn) + 2 * turn, abs=1.1 * turn)
    assert len(turns) == 2 * round(clock.now / turn)


@pytest.mark.chain
def test_five_rates_are_timed_and_so_many_bytes_written_whatever_the_machine(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three seconds in all; the rest is importing libraries, twice."""
    timed = []

    def at_once(work: Callable[[], Any], device: str, calls: int = 1) -> float:
        work()
        timed.append(device)
        return 1.0

    monkeypatch.setattr(calibration, "_seconds", at_once)
    rates = {**calibration._rates("cpu"), "copy": calibration._copy()}
    assert all(rate > 0 for rate in rates.values())
    assert timed == ["cpu"] * 5
    assert len(timed) * calibration.SECONDS < 60 / 10
    synced = []
    monkeypatch.setattr("os.fsync", lambda file: synced.append(os.fstat(file).st_size))
    assert calibration._disk(home) > 0
    assert synced == [64 << 20]
    assert [path.name for path in home.iterdir()] == []


def test_nothing_is_measured_beside_a_run(store: Store) -> None:
    assert calibration.wanted(store)
    plant(store)
    assert not calibration.wanted(store)
    assert not calibration.ensure(store)
