from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.inputs.models import base_models
from pipeline.runs.preflight import row_facts


def test_tokens_are_counted_by_the_models_tokenizer(
    home: Path, bytes_as_tokens: Path, tmp_path: Path
) -> None:
    model = base_models.resolve(str(bytes_as_tokens.parent))
    data = tmp_path / "rows.jsonl"
    rows = [{"prompt": "a" * 10, "response": "b" * 30}] * 19 + [{"prompt": "a" * 10, "response": "b" * 500}]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = row_facts.of(data, "{prompt}{response}", model, 20, 0.1)
    assert (found.train, found.held_out, found.counted) == (18, 2, True)
    assert found.most in (511.0, 512.0)  # a token a byte, and those around a row
    assert 41 <= found.mean <= 70
    assert 0.7 < found.answer < 0.95


def test_without_a_tokenizer_it_is_a_guess(home: Path, model_folder: Path, dataset: Path) -> None:
    found = row_facts.of(dataset, "chat", base_models.resolve(str(model_folder)), 20, 0.1)
    assert not found.counted
    assert 5 < found.mean <= found.most < 60


@pytest.mark.parametrize("text", ["", "no row\n", '{"other": 1}\n'])
def test_rows_that_say_nothing_are_a_guess(home: Path, model_folder: Path, tmp_path: Path, text: str) -> None:
    data = tmp_path / "odd.jsonl"
    data.write_text(text)
    found = row_facts.of(data, "{prompt}{response}", base_models.resolve(str(model_folder)), 2, 0.1)
    assert (found.train, found.held_out, found.counted) == (1, 1, False)
