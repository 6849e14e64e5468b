"""leaving_out: lines go blank, and the others keep their numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.inputs.data.card import leaving_out


@pytest.mark.parametrize(
    ("text", "lines", "left"),
    [
        (b"a\nb\nc\n", [2], b"a\n\nc\n"),
        (b"a\r\n\nc", [1, 3], b"\n\n"),
        (b"a\nb\n", [], b"a\nb\n"),
        (b"a\n" + b"b" * 3_000_000 + b"\nc\n", [2], b"a\n\nc\n"),
        (b"a\n" + b"b" * (1 << 20) + b"\nc\n", [3], b"a\n" + b"b" * (1 << 20) + b"\n\n"),
    ],
)
def test_lines_are_left_blank(tmp_path: Path, text: bytes, lines: list[int], left: bytes) -> None:
    (tmp_path / "rows").write_bytes(text)
    assert leaving_out.write(tmp_path / "rows", tmp_path / "copy", lines) == len(lines)
    assert (tmp_path / "copy").read_bytes() == left
