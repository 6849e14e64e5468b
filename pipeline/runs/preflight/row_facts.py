"""What the rows of a dataset are in tokens: counted on some from all over it, by its model's tokenizer."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.stages.costs.cost import Rows

MOST_ROWS = 256  # that are counted
MOST_READ = 2_000  # from which they are taken, and of which the longest are counted anyway
LETTERS_A_TOKEN = 3.5  # where no tokenizer is at hand
UNKNOWN = Rows(1000, 100, 200.0, 512.0, counted=False)


def of(path: Path, template: str, model: base_models.Model, rows: int, eval_fraction: float) -> Rows:
    """The rows of a dataset of JSON lines that was checked, as the model reads them; guesses where that
    cannot be counted."""
    held_out = max(1, round(rows * eval_fraction))
    try:
        parsed = templates.parse(template, model.chat)
        texts = _texts(path, parsed)
    except (InputError, OSError, LookupError, TypeError):  # rows that nobody checked may be anything
        texts = []
    if not texts:
        return Rows(max(rows - held_out, 1), held_out, UNKNOWN.mean, UNKNOWN.most, counted=False)
    counts = _counted(texts, model, parsed)
    if counts is None:
        counts = [
            (
                round(len(text.prompt) / LETTERS_A_TOKEN),
                round((len(text.full) - len(text.prompt)) / LETTERS_A_TOKEN),
            )
            for text in texts
        ]
        return _figures(counts, rows, held_out, counted=False)
    return _figures(counts, rows, held_out, counted=True)


def _texts(path: Path, template: templates.Template) -> list[templates.Rendered]:
    """Rows as text: some from all over the first ones, and the longest of these."""
    found: list[dict[str, Any]] = []
    for _, row in datasets.readable(path):
        found.append(row)
        if len(found) >= MOST_READ:
            break
    texts = [text for text in templates.each(template, found) if not isinstance(text, str)]
    by_length = sorted(texts, key=lambda text: len(text.full))
    step = max(1, len(texts) // MOST_ROWS)
    return [*texts[::step][:MOST_ROWS], *by_length[-1:]]


def _counted(
    texts: list[templates.Rendered], model: base_models.Model, template: templates.Template
) -> list[tuple[int, int]] | None:
    """Tokens of prompt and answer of each; None where that cannot be counted."""
    counts: list[tuple[int, int]] = []
    home = settings.home()
    try:
        with Lengths(
            lambda: base_models.tokenizer_folder(model, home), model.id, Limits(), lambda: template.stop,
            lambda _, prompt, answer: counts.append((prompt, answer)),
        ) as lengths:  # fmt: skip
            for number, text in enumerate(texts):
                lengths.add(number, number + 1, text)
                if lengths.full:
                    lengths.count()
            lengths.count()
            return counts if not lengths.unknown and len(counts) == len(texts) else None
    except LabError:
        return None


def _figures(counts: Iterable[tuple[int, int]], rows: int, held_out: int, *, counted: bool) -> Rows:
    """The last one is the longest, which counts for the most but not for the mean."""
    *spread, longest = counts
    used = spread or [longest]
    totals = [prompt + answer for prompt, answer in used]
    whole = max(sum(totals), 1)
    answers = sum(answer for _, answer in used)
    return Rows(
        max(rows - held_out, 1), held_out, whole / len(used), float(max(*totals, sum(longest))),
        answers / whole, counted,
    )  # fmt: skip
