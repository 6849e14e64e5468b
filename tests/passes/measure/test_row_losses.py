"""Losses row by row: on a small export that really computes, and resumed after an interruption."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import exports

pytestmark = pytest.mark.chain

ROWS = [
    {"prompt": f"town {i}", "response": f"valley {i * 7919 % 101} of {'xyz'[i % 3] * (i + 3)}"}
    for i in range(20)
]
INPUTS = {"graph": "a"}


@pytest.fixture(scope="module")
def model(written_export: Path) -> Any:
    from pipeline.exports import generation

    return generation.load(written_export, {"adapter": written_export / exports.ADAPTER})


@pytest.fixture
def losses(model: Any, written_export: Path, tmp_path: Path) -> Any:
    from pipeline.passes.measure.row_losses import Losses, Record

    data = tmp_path / "data.jsonl"
    data.write_text("\n" + "".join(json.dumps(row) + "\n" for row in ROWS))
    record = Record(tmp_path / "rows.jsonl", INPUTS)
    sides = {"base": None, "adapter": "adapter"}
    return Losses(model, written_export, data, model.template, sides, record)


def test_each_row_has_the_loss_of_its_response_on_both_sides(losses: Any) -> None:
    from pipeline.exports import token_losses

    found = list(losses.rows("held_out", [3, 5]))
    assert [row.line for row in found] == [5, 7]  # the first line is blank
    answer = f"{ROWS[3]['response']}<|im_end|>"
    assert found[0].tokens == len(ROWS[3]["response"]) + 1 + answer.endswith("\n")
    reader, model = losses.model.reader, losses.model
    prompt = reader.encode(reader.text({"prompt": "town 3"}))
    ids = [*prompt, *(int(word) for word in model.tokenizer.encode(ROWS[3]["response"])), 2]
    counted = [at >= len(prompt) for at in range(len(ids))]
    for side, adapter in losses.sides.items():
        assert found[0].totals[side] == pytest.approx(
            token_losses.measure(model, ids, counted, adapter).total
        )
    assert found[0].mean("base") != found[0].mean("adapter")


def test_rows_longer_than_the_context_are_left_out_and_counted(losses: Any) -> None:
    rows = [*ROWS[:3], {"prompt": "long", "response": "x" * 300}]
    losses.data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [row.line for row in losses.rows("held_out", range(4))] == [1, 2, 3]
    assert losses.too_long == 1


def test_many_rows_are_read_in_batches(losses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.passes.measure.row_losses.BATCH", 3)
    assert [row.line for row in losses.rows("held_out", [0, 1, 2, 3, 7, 8, 19])] == [2, 3, 4, 5, 9, 10, 21]


def test_what_was_measured_is_not_measured_again(
    losses: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Nor is a line that a killed process left torn taken for a row."""
    from pipeline.passes.measure.row_losses import Record

    file = tmp_path / "rows.jsonl"
    before = list(losses.rows("held_out", range(6)))
    file.write_bytes(file.read_bytes()[:-20])
    measured: list[int] = []
    row = type(losses)._row
    monkeypatch.setattr(
        type(losses), "_row", lambda self, *given: measured.append(given[3]) or row(self, *given)
    )
    losses.record = Record(file, INPUTS)
    assert losses.record.resumed == 5
    assert list(losses.rows("held_out", range(6))) == before
    assert measured == [7]
    assert len(file.read_text().splitlines()) == 7
    assert list(losses.rows("trained", [0])) == before[:1]  # the same line, as another kind
    losses.record = Record(file, {"graph": "another"})
    assert losses.record.resumed == 0


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"{", b'{"inputs": {"graph": "a"}}\nnot JSON\n'])
def test_a_damaged_record_begins_anew(tmp_path: Path, content: bytes) -> None:
    from pipeline.passes.measure.row_losses import Measured, Record

    file = tmp_path / "rows.jsonl"
    file.write_bytes(content)
    record = Record(file, INPUTS)
    assert record.resumed == 0
    record.add("held_out", Measured(4, 2, {"base": math.nan, "adapter": 1.5}))
    again = Record(file, INPUTS).get("held_out", 4)
    assert again is not None
    assert math.isnan(again.totals["base"])
    assert again.totals["adapter"] == 1.5


def test_general_text_is_measured_in_blocks_from_all_over_it(losses: Any) -> None:
    from pipeline.passes.measure.row_losses import BLOCK, BLOCKS

    found = list(losses.general())
    assert [row.line for row in found] == list(range(BLOCKS))
    assert {row.tokens for row in found} == {BLOCK - 1}  # this tokenizer puts nothing before a text
    assert list(losses.general()) == found


def test_a_record_of_very_many_rows_is_resumed_in_little_memory(tmp_path: Path) -> None:
    """Line by line: neither its text nor an object a row is in memory."""
    import tracemalloc

    from pipeline.passes.measure.row_losses import Record

    file, count = tmp_path / "rows.jsonl", 20_000
    with file.open("w") as lines:
        lines.write(json.dumps({"inputs": INPUTS}) + "\n")
        for line in range(1, count + 1):
            entry = {"kind": "held_out", "line": line, "tokens": 9, "base": 12.5, "adapter": 3.25}
            lines.write(json.dumps(entry) + "\n")
    tracemalloc.start()
    record = Record(file, INPUTS)
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert record.resumed == count
    assert taken < count * 64
    last = record.get("held_out", count)
    assert last is not None
    assert last.totals == {"base": 12.5, "adapter": 3.25}
    assert record.get("held_out", count + 1) is None


def test_rows_that_were_measured_are_not_even_rendered(losses: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.passes.measure import row_losses

    before = list(losses.rows("held_out", range(20)))
    monkeypatch.setattr(row_losses, "Rows", None)
    assert list(losses.rows("held_out", range(20))) == before
