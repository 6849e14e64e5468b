"""Large files: progress is reported throughout, and memory does not grow with the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import reading

MB = 1_000_000
SMALL = 5 * MB
NAMES = ("rows.jsonl", "rows.csv")  # checked and looked through; made into JSON lines


def grown(folder: Path, name: str, size: int) -> int:
    """By how many bytes the peak of a file's reader is above that of a small one's."""
    peaks = []
    for size_now in (SMALL, size):
        path = folder / name
        count = reading.write(path, size_now)
        assert path.stat().st_size > 0.99 * size_now
        found = reading.measured(path)
        path.unlink()
        assert found["rows"] == count
        assert found["steps"]
        for phase, said in found["steps"].items():
            rows = [text for text in said if text.startswith(("Row ", "Line "))]
            assert len(rows) == count, f"{phase} tells how far it is at each row"
            assert f"{count:,}" in rows[-1] or f"{count + 1:,}" in rows[-1]
        peaks.append(found["peak"])
    return peaks[1] - peaks[0]


@pytest.mark.parametrize("name", NAMES)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    assert grown(tmp_path, name, 50 * MB) < 22 * MB


@pytest.mark.chain
@pytest.mark.parametrize("name", NAMES)
def test_half_a_gigabyte_of_rows_takes_no_more_memory(tmp_path: Path, name: str) -> None:
    assert grown(tmp_path, name, 500 * MB) < 64 * MB


def test_memory_does_not_grow_with_the_number_of_short_rows(home: Path, tmp_path: Path) -> None:
    """What was noted of each row took 60 bytes of it: 5 MB here."""
    peaks = []
    for count in (20_000, 100_000):
        reading.write_short(tmp_path / "rows.jsonl", count)
        found = reading.measured(tmp_path / "rows.jsonl", "copies")
        assert found["rows"] == count
        peaks.append(found)
    for phase in ("check", "card"):
        assert peaks[1][phase] - peaks[0][phase] < 2 * MB
