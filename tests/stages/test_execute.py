"""A stage's workflow in Olive's hands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.stages import quantize
from tests.helpers import tiny
from tests.helpers.carry import context_of, stage

pytestmark = pytest.mark.chain


def test_olive_reads_no_file_to_name_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name is for a cache that nobody finds again; a model has gigabytes. Another model has another."""
    from olive.model.config import ModelConfig, model_config

    def read(*_: Any, **__: Any) -> str:
        raise AssertionError("Olive hashed a file")

    monkeypatch.setattr(model_config, "hash_file", read)
    names: list[str] = []
    named = ModelConfig.get_model_id
    monkeypatch.setattr(ModelConfig, "get_model_id", lambda self: names.append(named(self)) or names[-1])
    model = tiny.build("llama", tmp_path / "model")
    options = quantize.Options(algorithm="rtn", group_size=16)
    context = context_of(tmp_path, model)
    for attempt in ("first", "second"):
        made = stage(context, attempt, quantize, options)
        assert made.artifacts[0].path.exists()
        (model / "config.json").touch()
    assert len(names) == len({*names}) == 2
    with pytest.raises(AssertionError, match="hashed a file"):
        ModelConfig(type="HfModel", config={"model_path": str(model)}).get_model_id()
