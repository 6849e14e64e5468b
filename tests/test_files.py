"""Files that are whole or not there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline import files


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
