"""Files that are whole or not there."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline import settings
from pipeline.system import files


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "result.json", {"a": 1})
    files.write_whole(tmp_path / "result.json", {"a": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    files.write_whole(tmp_path / "result.json", {"a": 1})
    (tmp_path / ".result.json.part").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        files.write_whole(tmp_path / "result.json", {"a": 2})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_what_is_no_number_becomes_null(tmp_path: Path) -> None:
    given = {"a": float("nan"), "b": [float("inf")], "c": 1.5}
    assert json.loads(files.to_json(given)) == {"a": None, "b": [None], "c": 1.5}
    files.write_whole(tmp_path / "result.json", {**given, "d": np.float32("inf")})
    assert json.loads((tmp_path / "result.json").read_text()) == {"a": None, "b": [None], "c": 1.5, "d": None}


# They write what a library's own configuration holds, as it is, or do as a library does.
OTHERS = {
    "pipeline/exports/generation.py",
    "pipeline/inputs/prompts/lab_prompt.py",
    "pipeline/passes/quantize/autoawq.py",
    "pipeline/passes/optimize/genai_builder.py",
    "pipeline/worker/probe.py",
    "pipeline/exports/serving_ids.py",
    "webapp/ui/views.py",  # for people to read
}


def _careless(path: Path) -> Iterator[int]:
    """Lines of a module that write JSON and let NaN through."""
    calls = (node for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Call))
    for call in calls:
        writes = ast.unparse(call.func) in ("json.dumps", "json.dump")
        if writes and "allow_nan=False" not in map(ast.unparse, call.keywords):
            yield call.lineno


def test_no_json_of_ours_holds_what_json_does_not_have() -> None:
    root = settings.ROOT
    found = {
        path.relative_to(root).as_posix(): lines
        for folder in ("pipeline", "webapp")
        for path in (root / folder).rglob("*.py")
        if (lines := list(_careless(path)))
    }
    assert {path: lines for path, lines in found.items() if path not in OTHERS} == {}
    assert found.keys() == OTHERS
