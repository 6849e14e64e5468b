from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from pipeline.system import capacity, hardware


@pytest.fixture(autouse=True)
def asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "gpus", lambda: 0)
    capacity._gpu_memory.cache_clear()


def test_there_is_what_the_machine_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capacity, "LIMITS", ())
    found = capacity.of(tmp_path)
    assert found.memory == psutil.virtual_memory().total
    assert found.gpu_memory is None
    assert found.disk > 0


@pytest.mark.parametrize(
    ("text", "limited"), [("1000000", True), ("max\n", False), ("-1", False), ("", False)]
)
def test_a_container_has_what_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, limited: bool
) -> None:
    (tmp_path / "memory.max").write_text(text)
    monkeypatch.setattr(capacity, "LIMITS", (tmp_path / "memory.max", tmp_path / "none"))
    assert (capacity.of(tmp_path).memory == 1_000_000) is limited


def test_the_smallest_gpu_counts() -> None:
    assert capacity.smallest("81559\n24564\n") == 24564 * 2**20
    assert capacity.smallest("[N/A]\n") is None


def test_the_gpus_that_runs_may_use_are_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\necho 1024\n')
    program.chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,3")
    monkeypatch.setattr(hardware, "gpus", lambda: 4)
    try:
        assert capacity.of(tmp_path).gpu_memory == 1024 * 2**20
        assert (tmp_path / "asked").read_text().split()[-1] == "--id=1,3"
    finally:
        capacity._gpu_memory.cache_clear()
