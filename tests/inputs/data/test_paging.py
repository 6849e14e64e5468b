"""paging: rows from any line on, by search, a bounded piece of the file at a time."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipeline.errors import InputError
from pipeline.inputs.data import paging
from pipeline.inputs.data.paging import Place, page


@pytest.fixture
def path(tmp_path: Path) -> Path:
    rows = [json.dumps({"prompt": f"Question {number}", "n": number}) for number in range(1, 101)]
    rows[49] = ""
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    return tmp_path / "rows.jsonl"


def test_pages_follow_each_other(path: Path) -> None:
    seen, place = [], Place()
    while place is not None:
        found = page(path, place)
        assert len(found.rows) <= 20
        seen += [line for line, _ in found.rows]
        place = found.next
    assert seen == [line for line in range(1, 101) if line != 50]


def test_a_search_and_a_line(path: Path) -> None:
    assert page(path, Place(), search="TION 7").rows[0] == (7, {"prompt": "Question 7", "n": "7"})
    assert [line for line, _ in page(path, Place(), search="question 9", rows=3).rows] == [9, 90, 91]
    assert page(path, Place(), line=99).rows[0][0] == 99
    assert page(path, Place(), line=1000).rows == []


def test_a_call_reads_a_bounded_piece(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "MOST_BYTES", 1000)
    found = page(path, Place(), search="question 99")
    assert found.rows == []
    assert found.next is not None
    assert found.next.offset < 1200
    monkeypatch.setattr(paging, "MOST_SKIPPED", 1000)
    skipped = page(path, Place(), line=99)
    assert (skipped.rows, skipped.next) == ([], found.next)


def test_a_place_within_a_line_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match="has changed"):
        page(path, Place(3, 1))


def test_long_texts_are_cut_and_what_is_no_row_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "rows").write_bytes(
        b'[1]\n\xff\n{"a": "' + b"x" * 5000 + b'"}\n{"b": ' + b"[" * 500_000 + b"\n"
    )
    (row,) = page(tmp_path / "rows", Place()).rows
    assert row[0] == 3
    assert len(row[1]["a"]) <= paging.LONGEST_CELL + 1
    (tmp_path / "rows").write_bytes(b"x" * 3_000_000)
    assert page(tmp_path / "rows", Place()) == paging.Page()
