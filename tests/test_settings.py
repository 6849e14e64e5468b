"""What is read from the environment."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline import settings
from pipeline.errors import InputError


def test_only_gpus_this_user_may_use_are_slots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "gpus", lambda: 4)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert settings.devices() == ["cuda:0", "cuda:1", "cuda:2", "cuda:3"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3, GPU-7f")
    assert settings.devices() == ["cuda:3", "cuda:GPU-7f"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert settings.devices() == ["cpu"]
    monkeypatch.setattr(settings, "gpus", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert settings.devices() == ["cpu"]


def test_cores_are_at_least_one_and_no_more_than_this_process_may_use() -> None:
    assert 1 <= settings.cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize("value", ["inf", "-inf", "nan", "-1", "1e300", "many"])
@pytest.mark.parametrize(
    "name", ["OLIVE_LAB_MAX_UPLOAD_MB", "OLIVE_LAB_CHECKPOINT_SECONDS", "OLIVE_LAB_EXIT_SECONDS"]
)
def test_a_variable_that_gives_no_number_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=f"{name}: '{value}' is not allowed; allowed: a number from 0 to"):
        settings.home()
    monkeypatch.setenv(name, "0.5")
    assert settings.home() == home
