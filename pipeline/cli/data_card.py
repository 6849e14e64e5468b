"""What `check` prints of a dataset: sentences for people, or JSON for programs."""

from __future__ import annotations

from typing import Any

from pipeline import display
from pipeline.inputs.data.formats.columns import PARTS
from pipeline.runs.data import prepare_data
from pipeline.runs.data.prepare_data import Checked
from pipeline.system.files import to_json

# What is counted of the rows themselves; null where nothing counts it.
UNCOUNTED: dict[str, Any] = {"tokens": None, "duplicates": None, "near_duplicates": None, "leaks": None}


def print_json(found: Checked) -> int:
    """Print the card as JSON; the exit code: 0 if the dataset can be used."""
    problems = [{"line": line, "message": message} for line, message in found.listed()]
    unusable = prepare_data.unusable(found)
    if unusable and not problems:
        problems = [{"line": 1, "message": problem} for problem in unusable]
    made = found.made
    choice = made.columns or made.proposed
    card = {
        "container": made.container or None,
        "shape": made.shape,
        "rows": found.report.rows,
        "columns": choice.to_dict() if choice else {part: [] for part in PARTS},
        **UNCOUNTED,
        "problems": problems,
    }
    print(to_json(card, ensure_ascii=False))
    return 2 if unusable else 0


def print_text(found: Checked) -> int:
    """Print what a good dataset is; the exit code."""
    made, report = found.made, found.report
    fields = ", ".join(display.short(field) for field in (made.fields if made.is_made else report.fields))
    names = ", ".join(display.plain(str(source)) for source in made.sources)
    print(f"{names}: {report.rows:,} rows, fields {fields}: good")
    if made.is_made:
        print(f"Read as {prepare_data.described(made)}")
    for text in [*report.notes, *([report.unasked] if report.unasked else [])]:
        print(f"Note: {text}")
    if report.example:
        print(f"\nThe first row as the model reads it:\n\n{display.plain(report.example)}")
    return 0
