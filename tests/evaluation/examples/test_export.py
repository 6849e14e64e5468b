"""Examples as files, whose cells no spreadsheet carries out."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.evaluation.examples import export
from pipeline.evaluation.examples.rows import Sources
from pipeline.inputs.data import telling
from tests.helpers import examples

FILES = {
    "base": {"adapter": "none", "graph": {"model.onnx": "b" * 64, "model.onnx.data": "c" * 64}},
    "adapter": {"adapter": "a" * 64, "graph": {"model.onnx": "b" * 64, "model.onnx.data": "c" * 64}},
}
FORMULAS = ["=1+1", "+cmd", "-2", "@SUM(A1)", "\tx", "\rx"]


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, Any]:
    """Rows whose every text begins as a formula does."""
    told = [(formula, f"{formula} too", 3.0, 1.0) for formula in FORMULAS]
    data = examples.write_data(tmp_path / "data.jsonl", told)
    losses = examples.write_losses(tmp_path / "rows.jsonl", told, [2.5] * len(told))
    answers = tmp_path / "answers.json"
    answered = [examples.answer(one, f"{one} too", f"{one} base", f"{one} adapter") for one in FORMULAS]
    answers.write_text(json.dumps({"rows": answered}))
    return dataclasses.asdict(Sources(str(data), "chat", str(answers), str(losses), FILES))


def test_no_cell_of_a_table_is_a_formula(sources: dict[str, Any], tmp_path: Path) -> None:
    to = tmp_path / "out.csv"
    with pytest.raises(FileNotFoundError):  # who has left has removed it, and nobody would do so again
        telling.ended(export.write(sources, "csv", str(to)))
    to.touch()
    assert telling.ended(export.write(sources, "csv", str(to))) == len(FORMULAS)
    with to.open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    assert [row["prompt"] for row in found] == [f"'{formula}" for formula in FORMULAS]
    texts = [row[name] for row in found for name in ("expected", "base", "adapter")]
    assert all(text.startswith("'") for text in texts)
    assert (found[0]["line"], found[0]["difference"]) == ("1", "-2.0")  # a number stays one
    assert [found[-1][name] for name in export.PROOF] == [
        "none", "a" * 64, f"model.onnx {'b' * 64}; model.onnx.data {'c' * 64}",
    ]  # fmt: skip


def test_answers_that_name_no_files_have_none(sources: dict[str, Any], tmp_path: Path) -> None:
    to = tmp_path / "out.jsonl"
    to.touch()
    telling.ended(export.write({**sources, "files": None}, "jsonl", str(to)))
    found = json.loads(to.read_text("utf-8").splitlines()[0])
    assert [found[name] for name in export.PROOF] == [None] * 3


def test_the_float_model_and_other_adapters_have_columns(sources: dict[str, Any], tmp_path: Path) -> None:
    more = {"float": {"text": "=exact", "cut": False}, "adapter fr": {"text": "oui", "cut": True}}
    answers = json.loads(Path(sources["answers"]).read_text())
    answers["rows"][0] |= more
    Path(sources["answers"]).write_text(json.dumps(answers))
    files = {**FILES, "adapter fr": {**FILES["adapter"], "adapter": "f" * 64}}
    for kind in export.KINDS:
        (tmp_path / kind).touch()
        telling.ended(export.write({**sources, "files": files}, kind, str(tmp_path / kind)))
    with (tmp_path / "csv").open(encoding="utf-8-sig", newline="") as file:
        found = list(csv.DictReader(file))
    names = ("float", "adapter fr", "adapter fr/sha256")
    assert [found[0][name] for name in names] == ["'=exact", "oui … [cut at the limit]", "f" * 64]
    assert [found[1][name] for name in names] == ["", "", "f" * 64]
    lines = [json.loads(line) for line in (tmp_path / "jsonl").read_text("utf-8").splitlines()]
    assert [lines[0][name] for name in names[:2]] == ["=exact", "oui … [cut at the limit]"]
    assert lines[1]["adapter fr"] is None


def test_lines_of_json_have_texts_as_they_are(sources: dict[str, Any], tmp_path: Path) -> None:
    to = tmp_path / "out.jsonl"
    to.touch()
    telling.ended(export.write(sources, "jsonl", str(to)))
    found = [json.loads(line) for line in to.read_text("utf-8").split("\n")[:-1]]
    assert [row["prompt"] for row in found] == FORMULAS
    assert found[0] == {
        "line": 1, "prompt": "=1+1", "system": "", "expected": "=1+1 too", "base": "=1+1 base",
        "adapter": "=1+1 adapter", "float": None, "tokens": 2, "base_loss": 3.0, "adapter_loss": 1.0,
        "float_loss": 2.5, "difference": -2.0, "base_adapter_sha256": "none", "adapter_sha256": "a" * 64,
        "graph_sha256": FILES["base"]["graph"],
    }  # fmt: skip
