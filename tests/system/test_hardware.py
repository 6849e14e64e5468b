from __future__ import annotations

import os

import pytest

from pipeline.system import hardware


def test_only_gpus_this_user_may_use_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert hardware.devices() == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7f")
    assert hardware.devices() == ["cuda:3", "cuda:GPU-7f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert hardware.devices() == ["cpu"]
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert hardware.devices() == ["cpu"]


def test_cores_are_at_least_one_and_no_more_than_this_process_may_use() -> None:
    assert 1 <= hardware.cores() <= len(os.sched_getaffinity(0))
