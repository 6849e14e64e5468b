from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.stages.costs import machine
from pipeline.stages.costs.machine import FILE, GPU, VERSION, Machine


def test_a_calibration_is_read_back(tmp_path: Path) -> None:
    kept = {
        "version": VERSION,
        "cpu": {"copy": 7e9, "native_bf16": False, "mixed_bf16": True},
        "gpu": {"copy": 9e9},
    }
    (tmp_path / FILE).write_text(json.dumps(kept))
    found = machine.read(tmp_path, gpu=False)
    assert (found.copy, found.native_bf16, found.measured, found.gpu) == (7e9, False, True, False)
    assert found.mixed_bf16
    assert found.disk == Machine().disk  # what it lacks
    on_gpu = machine.read(tmp_path, gpu=True)
    assert (on_gpu.copy, on_gpu.gpu, on_gpu.product_bf16) == (9e9, True, GPU.product_bf16)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 0, "cpu": {"copy": 1.0}}', '{"version": 1}'])
def test_a_missing_or_old_one_is_replaced_by_another_machine(tmp_path: Path, text: str) -> None:
    if text:
        (tmp_path / FILE).write_text(text)
    assert machine.read(tmp_path, gpu=False) == Machine()
    assert machine.read(tmp_path, gpu=True) == GPU


@pytest.mark.parametrize("odd", [0, -1, "x", None, True, float("nan"), float("inf"), [1]])
def test_odd_numbers_are_not_taken(odd: Any) -> None:
    assert machine.parsed({"copy": odd}, Machine()).copy == Machine().copy
