"""What `check` prints of a dataset: sentences for people, or JSON for programs."""

from __future__ import annotations

from typing import Any

from pipeline import display, settings
from pipeline.cli.queue import note
from pipeline.errors import InputError, LabError, NotHere
from pipeline.inputs.data import telling
from pipeline.inputs.data.formats.columns import PARTS
from pipeline.inputs.models import base_models
from pipeline.runs.data import data_card, prepare_data
from pipeline.runs.data.prepare_data import Checked
from pipeline.system.files import to_json

UNCOUNTED: dict[str, Any] = {"tokens": None, "duplicates": 0, "near_duplicates": 0, "leaks": 0}


def model_at_hand(named: str) -> base_models.Model | None:
    """The model that counts tokens; None where it or its tokenizer is not here, which a note says.

    Raises InputError for a name of none.
    """
    try:
        model = base_models.resolve(named)
        if model.chat is None and model.kind == "folder":  # else the count itself says why it failed
            base_models.tokenizer_folder(model, settings.home())
    except InputError as error:
        if not isinstance(error, NotHere):
            raise
        why = error.problems[0]
    except LabError as error:
        why = str(error)
    else:
        return model
    note(f"Tokens are not counted: {why}")
    return None


def counted(
    found: Checked, template: str, model: base_models.Model | None, max_length: int
) -> dict[str, Any]:
    """What is counted of the rows themselves: tokens, null where no tokenizer is at hand, copies, leaks."""
    if not found.report.rows or (found.made.is_made and not found.made.rows):
        return UNCOUNTED
    asked = data_card.Question(found.used, template, model, max_length)
    card = telling.ended(data_card.making_card(asked))
    for text in card.notes:
        note(text)
    return card.to_json()


def print_json(found: Checked, counts: dict[str, Any]) -> int:
    """Print the card as JSON; the exit code: 0 if the dataset can be used."""
    problems = [{"line": line, "message": message} for line, message in found.listed()]
    unusable = prepare_data.unusable(found)
    if problems and found.report.more:
        problems.append({"line": problems[-1]["line"], "message": found.report.messages()[-1]})
    if unusable and not problems:
        problems = [{"line": 1, "message": problem} for problem in unusable]
    made = found.made
    choice = made.columns or made.proposed
    card = {
        "container": made.container or None,
        "shape": made.shape,
        "rows": found.report.rows,
        "columns": choice.to_dict() if choice else {part: [] for part in PARTS},
        **counts,
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
