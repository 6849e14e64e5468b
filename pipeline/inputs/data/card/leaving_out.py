"""A copy of a dataset without some rows: their lines are left blank, so all others keep their numbers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.inputs.data.row_lines import LONGEST_LINE


def write(source: Path, target: Path, lines: Iterable[int]) -> int:
    """Copy `source` to `target`, the lines of these ascending numbers blank; how many these were."""
    wanted = iter(lines)
    blank, number, count = next(wanted, 0), 1, 0
    with source.open("rb") as rows, target.open("xb") as copy:
        while piece := rows.readline(LONGEST_LINE):
            ends = piece.endswith(b"\n")
            if number != blank:
                copy.write(piece)
            elif ends:
                copy.write(b"\n")
            if ends or len(piece) < LONGEST_LINE:  # else the line continues
                if number == blank:
                    blank, count = next(wanted, 0), count + 1
                number += 1
    return count
