"""What quantization listens to."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny

pytestmark = pytest.mark.chain


def blocks(folder: Path, rows: int = 60, **params: Any) -> Any:
    from pipeline.passes.quantize.calibration import lab_calibration

    model = folder / "model"
    if not model.exists():
        tiny.build("llama", model)
    given = {"eval_fraction": 0.2, "seed": 0, "blocks": 8, "length": 64, "general": 0.5, **params}
    return lab_calibration(str(tiny.dataset(folder / "rows.jsonl", rows)), "chat", str(model), **given)


def test_half_rows_half_general_text(tmp_path: Path) -> None:
    made = blocks(tmp_path)
    assert made.ids.shape == (8, 64)
    text = tiny.tokenizer().decode(made.ids.flatten())
    assert "to see in" in text[:60], "a row too long for a block keeps its turn's opening and its last words"
    assert "What to see in" not in text[len(text) // 2 + 60 :]
    sample, labels = made[3]
    assert sample["input_ids"].shape == sample["attention_mask"].shape == labels.shape == (64,)
    assert len(list(made)) == 8


def test_rows_held_out_are_never_listened_to(tmp_path: Path) -> None:
    from pipeline.inputs.data import datasets
    from pipeline.inputs.prompts import templates

    made = blocks(tmp_path, blocks=200, general=0.0)
    text = tiny.tokenizer().decode(made.ids.flatten())
    parts = datasets.split(tmp_path / "rows.jsonl", templates.parse("chat"), 0.2, 0)
    assert all(f"({i})." in text for i in parts.train[:-1])
    assert not any(f"({i})." in text for i in parts.held_out)


def test_few_rows_are_filled_up_with_general_text(tmp_path: Path) -> None:
    assert blocks(tmp_path, rows=3, blocks=40).ids.shape == (40, 64)
    alone = blocks(tmp_path, rows=3, blocks=40, general=0.0)
    assert 0 < len(alone.ids) < 40


def test_where_the_text_ends_rows_fill_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.passes.quantize import calibration

    monkeypatch.setattr(calibration, "text_tokens", lambda tokenizer, name: list(range(10)))
    assert blocks(tmp_path).ids.shape == (8, 64)
    assert blocks(tmp_path, general=1.0).ids.shape == (1, 10)


def test_general_text_alone(tmp_path: Path) -> None:
    text = tiny.tokenizer().decode(blocks(tmp_path, general=1.0).ids.flatten())
    assert "What to see in" not in text


def test_less_text_than_a_block_is_a_short_block() -> None:
    from pipeline.passes.quantize.calibration import cut

    assert cut(list(range(10)), 64).tolist() == [list(range(10))]
    assert cut(list(range(10)), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(cut([], 64)) == 0


def test_what_is_scored_was_not_calibrated_on() -> None:
    from pipeline.passes.quantize.calibration import TEXTS

    first, second = (
        set((TEXTS / f"{name}.txt").read_text("utf-8").split("\n\n")) for name in ("calibration", "scoring")
    )
    assert min(len(first), len(second)) > 50
    assert not first & second


def test_it_listens_to_rows_from_all_over_the_file(tmp_path: Path) -> None:
    """Files are often sorted: the first rows are not like the others."""
    made = blocks(tmp_path, rows=800, blocks=16, general=0.0)
    heard = [int(number) for number in re.findall(r"\((\d+)\)", tiny.tokenizer().decode(made.ids.flatten()))]
    assert len(heard) >= 8
    for quarter in range(4):
        assert any(quarter * 200 <= row < quarter * 200 + 200 for row in heard), (quarter, heard)
