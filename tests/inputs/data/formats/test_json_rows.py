"""Arrays: every fault by its item."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.formats import made_of, rows_of

ROW = '{"q": "a", "a": "b"}'


@pytest.mark.parametrize(
    ("text", "row", "said"),
    [
        (f"[{ROW}, {ROW}", 2, "the file ends before the ] of its array"),
        (f"[{ROW} {ROW}]", 1, "a comma is missing behind this item"),
        (f"[{ROW},]", 2, "a comma stands before the ] at the end; take it out"),
        (f"[{ROW}] {ROW}", 1, "something follows the ] of the array"),
        (f'[{ROW}, {{"q": "a"', 2, "the file ends in the middle of this item"),
        (f'[{ROW}, {{"q": None}}]', 2, "not JSON: these are Python dicts"),
        (f'[{ROW}, {{"q": 1, "q": 2}}]', 2, "the key 'q' stands twice"),
        (f"[{ROW}, {'9' * 5000}]", 2, "a number has too many digits"),
        (f'[{ROW}, "x"]', 2, "a row must be an object like"),
        (f'[{ROW}, {{"q": "\\ud800", "a": "b"}}]', 2, "'q' has half of a surrogate pair"),
        (f'[{ROW}, {{"q": NaN, "a": "b"}}]', 2, "NaN is not a number JSON allows"),
    ],
)
def test_a_fault_is_said_by_its_row(tmp_path: Path, text: str, row: int, said: str) -> None:
    found = made_of(tmp_path, text, "a.json")
    number, problem = found.problems[-1]
    assert number == row
    assert problem.startswith(said)
    assert 1 in rows_of(found)


def test_an_empty_array_has_no_rows(tmp_path: Path) -> None:
    found = made_of(tmp_path, "[ ]", "a.json")
    assert (found.rows, found.problems) == (0, ())


def test_an_array_larger_than_what_is_read_ahead(tmp_path: Path) -> None:
    row = '{"q": "' + "x" * 300_000 + '", "a": "b"}'
    found = made_of(tmp_path, "[" + ",\n".join([row] * 30) + "]", "a.json")
    assert (found.rows, found.problems) == (30, ())


def test_lines_in_gzip_are_told_apart_as_always(tmp_path: Path) -> None:
    import gzip

    lines = ROW + '\n\n{"q": \n' + ROW + "\n"
    found = made_of(tmp_path, gzip.compress(lines.encode()), "a.jsonl.gz")
    assert list(rows_of(found)) == [1, 4]
    assert found.problems[0][0] == 3
    assert found.problems[0][1].startswith("not JSON: the line ends too early")
