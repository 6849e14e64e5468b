"""A calibration that really measures this machine, and when one is started."""

from __future__ import annotations

import json

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


def test_nothing_is_measured_beside_a_run(store: Store) -> None:
    assert calibration.wanted(store)
    plant(store)
    assert not calibration.wanted(store)
    assert not calibration.ensure(store)
