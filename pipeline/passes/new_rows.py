"""The rows that an evaluation is made on: those held out of training, or of a file brought for it."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.errors import InputError
from pipeline.inputs.data import datasets, row_faults
from pipeline.inputs.data.card import leaks, near_copies
from pipeline.inputs.data.splitting import Contents, Parts
from pipeline.inputs.prompts import templates
from pipeline.stages.events import emit

ALL_COPIES = "is the same, or nearly, as one that is trained on"  # what is said of each row


@dataclass(frozen=True)
class NewRows:
    """Positions in a file; `asked` are the first ones of each prompt.

    copies    how many rows are left out because they are nearly one that is trained on
    sampled   whether these were looked for in a sample only, because there are very many rows
    """

    file: Path
    positions: Sequence[int]
    asked: Sequence[int]
    copies: int = 0
    sampled: bool = False

    def without_copies(self, data: Path, parts: Parts, template: templates.Template) -> NewRows:
        """The rows that are not nearly one of those that `data` has for training: what a model makes of
        copies says nothing about new rows, so nothing is measured on them, and nobody votes on them.

        Raises InputError at the first broken line.
        """
        emit(message="Looking for rows that are nearly training rows")
        if self.file == data:
            found = leaks.positions(data, template, parts)
        else:
            found = leaks.between(data, parts.train, self.file, len(self.positions), template)
        sampled = len(parts.train) + len(self.positions) > near_copies.MOST_ROWS
        if sampled:
            emit(message=f"Looked for copies in a sample of {near_copies.MOST_ROWS:,} rows")
        if found:
            emit(message=f"Left out {len(found):,} copies of training rows")
        left, asked = (
            array("Q", (position for position in given if position not in found))
            for given in (self.positions, self.asked)
        )
        return replace(self, positions=left, asked=asked, copies=len(found), sampled=sampled)

    def left_out(self) -> dict[str, Any]:
        """The metrics that count the copies."""
        return {"copies_left_out": self.copies} | ({"copies_sampled": True} if self.sampled else {})


def of(data: Path, parts: Parts, brought: Path | None, template: templates.Template) -> NewRows:
    """The held-out rows of `data`, or all rows of the file that was brought: 8 bytes a row.

    Raises InputError if a row of that is broken or does not fit the template.
    """
    if brought is None:
        return NewRows(data, parts.held_out, parts.asked)
    contents = Contents(template.fields, template.optional, 0)
    for line, row in datasets.rows(brought):
        for problem in row_faults.misfits(row, template):
            raise InputError(f"{brought.name}:{line}: {problem}")
        contents.add(row)
    return NewRows(brought, range(len(contents)), contents.firsts())
