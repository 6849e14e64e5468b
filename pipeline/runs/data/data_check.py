"""A dataset checked with its template and model: here, or where the app runs in a process of its own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.exports import row_view
from pipeline.inputs.data import datasets
from pipeline.inputs.data.lengths import Lengths, Limits
from pipeline.inputs.models import architectures, base_models
from pipeline.inputs.prompts import templates
from pipeline.runs import check_pool

SHOWN = 1000  # letters of a value or a name, where a person looks at a dataset
LONGEST_EXAMPLE = 100_000


def require_chat(template: str, model: base_models.Model | None) -> None:
    """Raise InputError where a model's own chat template is to be used, and it has none."""
    if template.strip() == templates.CHAT and model is not None and model.chat is None:
        raise InputError(
            f"template: {model.id} has no chat template; write one like '{{prompt}} {{response}}'"
        )


def checking(
    path: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
) -> Generator[str, None, datasets.Report]:
    """`datasets.checking` with a model: its chat template, its tokenizer and what it can read.

    Raises InputError if the file is not there or the template is faulty, Busy if others take what it needs,
    OSError if it cannot be read.
    """
    if model is None:
        return (yield from datasets.checking(path, template, eval_fraction=eval_fraction, seed=seed))
    home = settings.home()
    limits = Limits(max_length, architectures.positions(model.config))
    parsed = templates.parse(template, model.chat)
    with Lengths(
        lambda: base_models.tokenizer_folder(model, home), model.id, limits, lambda: parsed.stop
    ) as lengths:
        return (
            yield from datasets.checking(
                path, template, model.chat, lengths, eval_fraction=eval_fraction, seed=seed
            )
        )


def look(path: str, template: str, model: str, max_length: int) -> Generator[str, None, dict[str, Any]]:
    """`checking` for the Data tab, with a model by its name, "" for none; the rows are cut to what is shown.

    Returns {report, unknown: why there is no such model, "" if there is, has_chat: whether it has a chat
    template}. Raises what `checking` does, but for what is wrong with the model.
    """
    known, unknown = None, ""
    try:
        known = base_models.resolve(model) if model else None
    except InputError as error:
        unknown = error.problems[0]
    report = yield from checking(Path(path), template, known, max_length=max_length)
    shown = dataclasses.replace(
        report,
        first=[{_shown(name): _shown(value) for name, value in row.items()} for row in report.first],
        fields=tuple(map(_shown, report.fields)),
        example=display.cut(report.example, LONGEST_EXAMPLE),
        example_prompt=display.cut(report.example_prompt, LONGEST_EXAMPLE),
    )
    has_chat = known is not None and known.chat is not None
    return {"report": dataclasses.asdict(shown), "unknown": unknown, "has_chat": has_chat}


def tokenizing(model: str, template: str) -> Generator[str, None, dict[str, Any]]:
    """`row_view.tokenizer` of a model by its name; the app has it done by a process. Raises LabError."""
    found: dict[str, Any] = yield from check_pool.ask(
        f"{__name__}:tokenizer", {"model": model, "template": template}
    )
    return found


def tokenizer(model: str, template: str) -> Generator[str, None, dict[str, Any]]:
    """`tokenizing` as a process is asked for it."""
    yield "Reading the tokenizer…"
    return row_view.tokenizer(base_models.resolve(model), template)


def _shown(value: Any) -> str:
    return display.cut(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), SHOWN)
