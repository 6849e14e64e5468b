"""data_check: what others keep busy is said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import lengths, telling
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import rendering
from pipeline.runs.data import data_check

LONG_ROW = json.dumps({"prompt": "a" * 3000, "response": "b"}) + "\n"


def test_where_others_count_and_render_it_is_said(
    home: Path, tmp_path: Path, model_folder: Path, bytes_as_tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "rows.jsonl").write_text(LONG_ROW * 2)
    model = base_models.resolve(str(model_folder))
    for module in (rendering, lengths):
        monkeypatch.setattr(module, "WAIT_SECONDS", -1.0)
    with monkeypatch.context() as patch:
        patch.setattr(rendering, "PROCESSES", 0)  # all are busy
        with pytest.raises(InputError, match="other templates are being rendered; try again in a minute"):
            telling.ended(data_check.checking(tmp_path / "rows.jsonl", "chat", model, max_length=32))
