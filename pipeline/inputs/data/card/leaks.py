"""Held-out rows that are the same, or nearly, as rows that are trained on: what is measured on them says
nothing about rows that are new."""

from __future__ import annotations

from pathlib import Path

from pipeline.inputs.data import datasets
from pipeline.inputs.data.card.near_copies import Near
from pipeline.inputs.data.splitting import Parts, prompt_texts
from pipeline.inputs.prompts import conversations, templates


def positions(path: Path, template: templates.Template, parts: Parts) -> set[int]:
    """Those of `parts.held_out` that are near one of `parts.train`, of a file that was split into these.

    Memory and time are those of `near_copies`. Raises InputError at the first broken line.
    """
    import numpy as np

    near = Near(len(parts.train) + len(parts.held_out))
    count = 0
    for position, (_, row) in enumerate(datasets.rows(path)):
        response = template.fields[-1]
        answer = str(row[response]) if response in row else conversations.answer(row)
        near.add(position, "\n".join([*prompt_texts(row, template.fields, template.optional), answer]))
        count = position + 1
    trained = np.zeros(count, bool)
    trained[np.asarray(parts.train, np.int64)] = True
    _, leaks = near.pairs(trained)
    return {int(position) for position in leaks}
