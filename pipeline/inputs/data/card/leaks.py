"""Held-out rows that are the same, or nearly, as rows that are trained on: what is measured on them says
nothing about rows that are new."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.inputs.data import datasets
from pipeline.inputs.data.card.near_copies import Near
from pipeline.inputs.data.splitting import Parts, prompt_texts
from pipeline.inputs.prompts import conversations, templates


def positions(path: Path, template: templates.Template, parts: Parts) -> set[int]:
    """Those of `parts.held_out` that are near one of `parts.train`, of a file that was split into these.

    Memory and time are those of `near_copies`. Raises InputError at the first broken line.
    """
    near = Near(len(parts.train) + len(parts.held_out))
    count = 0
    for position, (_, row) in enumerate(datasets.rows(path)):
        near.add(position, _text(row, template))
        count = position + 1
    return _leaks(near, count, parts.train)


def between(
    trained: Path, train: Sequence[int], path: Path, count: int, template: templates.Template
) -> set[int]:
    """Positions of the `count` rows in the file `path` that are near one at the positions `train`, ascending,
    of the file `trained`.

    Both files count for the sample of `near_copies`. Raises InputError at the first broken line.
    """
    near = Near(len(train) + count)
    learned = iter(train)
    wanted = next(learned, None)
    for position, (_, row) in enumerate(datasets.rows(trained)):
        if position == wanted:
            near.add(position, _text(row, template))
            wanted = next(learned, None)
    first = train[-1] + 1 if len(train) else 0
    for number, (_, row) in enumerate(datasets.rows(path), first):
        near.add(number, _text(row, template))
    return {position - first for position in _leaks(near, first + count, train)}


def copies(rows: Sequence[dict[str, Any]], template: templates.Template) -> set[int]:
    """Positions of those of a few rows that are near an earlier one."""
    import numpy as np

    near = Near(len(rows))
    for position, row in enumerate(rows):
        near.add(position, _text(row, template))
    found, _ = near.pairs(np.zeros(len(rows), bool))
    return {int(position) for position in found}


def _text(row: dict[str, Any], template: templates.Template) -> str:
    response = template.fields[-1]
    answer = str(row[response]) if response in row else conversations.answer(row)
    return "\n".join([*prompt_texts(row, template.fields, template.optional), answer])


def _leaks(near: Near, count: int, train: Sequence[int]) -> set[int]:
    import numpy as np

    trained = np.zeros(count, bool)
    trained[np.asarray(train, np.int64)] = True
    _, leaks = near.pairs(trained)
    return {int(position) for position in leaks}
