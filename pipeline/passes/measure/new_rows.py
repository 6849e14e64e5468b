"""The rows that an evaluation is made on: those held out of training, or of a file brought for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import InputError
from pipeline.inputs.data import datasets, row_faults
from pipeline.inputs.data.card import leaks
from pipeline.inputs.data.splitting import Contents, Parts
from pipeline.inputs.prompts import templates


@dataclass(frozen=True)
class NewRows:
    """Positions in a file; `asked` are the first ones of each prompt."""

    file: Path
    positions: Sequence[int]
    asked: Sequence[int]

    def copies(self, data: Path, parts: Parts, template: templates.Template) -> set[int]:
        """Positions of rows that are nearly one of those that `data` has for training."""
        if self.file == data:
            return leaks.positions(data, template, parts)
        return leaks.between(data, parts.train, self.file, len(self.positions), template)


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
