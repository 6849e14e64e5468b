"""Files of JSON that are larger than any real one are not read."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.exports import verify
from pipeline.exports.verifying import json_files
from tests.helpers.verified import faults, peak


@pytest.mark.parametrize(
    ("name", "size"), [("genai_config.json", 1), ("lab.json", 1), ("tokenizer_config.json", 16)]
)
def test_small_files_of_json_are_small(export: Path, name: str, size: int) -> None:
    content = (export / name).read_text()[:-1]
    (export / name).write_text(f'{content}, "x": "{"x" * (size << 20)}"}}')
    assert f"{name} is larger than any real one" in " ".join(faults(export).values())


def test_a_tokenizer_of_very_many_empty_lists_is_not_parsed(
    export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_files, "MOST_VALUES", 20_000)
    content = (export / "tokenizer.json").read_text()[:-1]
    (export / "tokenizer.json").write_text(f'{content}, "x": [{"[]," * 9_000}[]]}}')
    assert faults(export) == {}
    (export / "tokenizer.json").write_text(f'{content}, "x": [{"[]," * 100_000}[]]}}')
    assert "tokenizer.json is larger than any real one" in faults(export)["tokenizer"]
    assert peak(lambda: verify.static(export)) < 3_000_000
