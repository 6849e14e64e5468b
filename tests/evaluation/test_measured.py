"""Losses in columns."""

from __future__ import annotations

import math
import tracemalloc

import pytest

from pipeline.evaluation.measured import Measured, MeasuredRows, read


def row(line: int, base: float = 2.0) -> Measured:
    return Measured(line, 4, {"base": base, "adapter": 1.0})


def test_rows_are_in_the_order_of_their_lines_and_found_by_them() -> None:
    found = MeasuredRows(map(row, (3, 9, 5, 12)))
    found.add(row(9, base=8.0))
    assert [each.line for each in found] == [3, 5, 9, 12]
    assert (found.find(9), found.find(4), found.find(13)) == (row(9, 8.0), None, None)
    assert list(found.means("base")) == [0.5, 0.5, 2.0, 0.5]
    found.add(Measured(20, 84, {"base": 42.0, "adapter": 1.0}))
    assert found.row_mean("base") == pytest.approx((0.5 + 0.5 + 2 + 0.5 + 0.5) / 5)
    assert found.token_mean("base") == pytest.approx((2 + 2 + 8 + 2 + 42) / 100)
    assert (len(found), found.sides) == (5, ("base", "adapter"))


def test_without_rows_nothing_is_known() -> None:
    found = MeasuredRows()
    assert (len(found), found.sides, list(found), found.find(1)) == (0, (), [], None)


def test_a_row_of_other_sides_is_refused() -> None:
    found = MeasuredRows([row(1)])
    with pytest.raises(KeyError, match="line 2 has the sides base"):
        found.add(Measured(2, 4, {"base": 1.0}))
    assert len(found) == 1


def test_a_line_is_read_and_null_is_no_number() -> None:
    found = read({"kind": "held_out", "line": 3, "tokens": 2, "base": None, "adapter": 3})
    assert (found.line, found.tokens, found.mean("adapter")) == (3, 2, 1.5)
    assert math.isnan(found.totals["base"])


def test_a_row_takes_few_bytes() -> None:
    tracemalloc.start()
    found = MeasuredRows(map(row, range(10_000)))
    taken = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 10_000
    assert taken < 10_000 * 64
