"""Answers: what the evaluate stage asks of an exported folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytestmark = pytest.mark.chain


def answered(export: Path, rows: list[dict[str, Any]], prompts: int, target: Path) -> list[str]:
    """The prompts that were asked; half of the rows are held out."""
    from olive.hardware.accelerator import DEFAULT_CPU_ACCELERATOR
    from olive.model import ONNXModelHandler

    from pipeline.passes.measure.answers import ANSWERS, Answers

    data = target / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = SimpleNamespace(
        data=str(data), eval_fraction=0.5, seed=0, prompts=prompts, max_new_tokens=1, adapter=None,
        merged=False, rows=0, checks="", asked=None,
    )  # fmt: skip
    model = ONNXModelHandler(str(export), onnx_file_name="model.onnx")
    step = Answers(DEFAULT_CPU_ACCELERATOR, {**vars(config)}, True)
    step._run_for_config(model, config, str(target / "out"))
    return [row["prompt"] for row in json.loads((target / "out" / ANSWERS).read_text())["rows"]]


@pytest.mark.parametrize(("prompts", "asked"), [(2, 2), (3, 3), (100, 5)])
def test_no_prompt_is_asked_twice(
    export: Path, tmp_path: Path, reported: Callable[[], list[dict[str, Any]]], prompts: int, asked: int
) -> None:
    rows = [{"prompt": f"town {i // 8}", "response": f"b{i}"} for i in range(80)]
    found = answered(export, rows, prompts, tmp_path)
    assert (len(found), len(set(found))) == (asked, asked)
    said = "Only 5 different prompts are held out; each is asked once"
    assert (said in [event.get("message") for event in reported()]) == (prompts > asked)
