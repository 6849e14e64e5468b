"""A hub of one's own for each test, to which this process and its children are led."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.store.run import Run, StageRun
from tests.helpers.fake_hub import FakeHub, served
from tests.helpers.lab import write_safetensors

Said = list[tuple[str, float, dict[str, Any]]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with served(tmp_path, monkeypatch) as made:
        yield made


@pytest.fixture
def tuned(finished: Run, tmp_path: Path) -> Run:
    """The finished run with the adapter as PEFT wrote it, and what a trainer leaves beside one."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    write_safetensors(folder / "adapter_model.safetensors", [0.5] * 500)
    config = {"peft_type": "LORA", "r": 8, "base_model_name_or_path": "/home/ann/artifacts/quantize-1/model"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    (folder / "optimizer.pt").write_bytes(b"\x80\x02")
    adapter = {"name": "adapter", "kind": "adapter", "path": str(folder), "bytes": 2000}

    def with_it(stage: StageRun) -> StageRun:
        return dataclasses.replace(stage, artifacts=[adapter]) if stage.name == "finetune" else stage

    recipe = {**finished.recipe, "quantize": {"algorithm": "awq", "bits": 4}}
    return dataclasses.replace(finished, recipe=recipe, stages=tuple(map(with_it, finished.stages)))


@pytest.fixture
def said() -> Said:
    return []


@pytest.fixture
def report(said: Said) -> Callable[..., None]:
    return lambda text, fraction, **facts: said.append((text, fraction, facts))
