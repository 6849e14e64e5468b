"""A dataset checked with its template and model: here, or where the app runs in a process of its own."""

from __future__ import annotations

import dataclasses
import json
import os
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


def check(
    path: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float = 0.1,
    seed: int = 0,
    max_length: int | None = None,
) -> datasets.Report:
    """Look for every fault of a dataset and its template; with a model, of its chat template too.

    Its report has notes, on rows of more than `max_length` tokens for example. Raises InputError with all
    faults, LabError if others take what it needs or it takes far too long.
    """
    require_chat(template, model)
    steps = checking(path, template, model, eval_fraction, seed, max_length)
    try:
        report = datasets.ended(steps)
    except OSError as error:
        raise InputError(f"{display.valid(str(path))}: cannot be read ({error.strerror})") from None
    if not report.good:
        raise InputError(report.messages())
    if report.rows < 2:
        raise InputError(datasets.too_few(path, report.rows))
    return report


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

    The app has it done by a process: see `check_pool`. Raises InputError if the file is not there or the
    template is faulty, OSError if it cannot be read, LabError if the process gets no place or has to leave
    it.
    """
    given = {
        "path": os.fspath(path),
        "template": template,
        "model": dataclasses.asdict(model) if model is not None else None,
        "eval_fraction": eval_fraction,
        "seed": seed,
        "max_length": max_length,
    }
    found = yield from check_pool.ask(f"{__name__}:answer", given)
    return _report(found)


def looking(
    path: Path, template: str, model: str, max_length: int
) -> Generator[str, None, tuple[datasets.Report, str, bool]]:
    """`checking` for the Data tab, with a model by its name, "" for none; the rows are cut to what is shown.

    Returns the report, why there is no such model, "" if there is, and whether it has a chat template.
    Raises what `checking` does, but for what is wrong with the model.
    """
    given = {"path": os.fspath(path), "template": template, "model": model, "max_length": max_length}
    found = yield from check_pool.ask(f"{__name__}:look", given)
    return _report(found["report"]), found["unknown"], found["has_chat"]


def look(path: str, template: str, model: str, max_length: int) -> Generator[str, None, dict[str, Any]]:
    """`looking` as a process is asked for it."""
    known, unknown = None, ""
    try:
        known = base_models.resolve(model) if model else None
    except InputError as error:
        unknown = error.problems[0]
    report = yield from _checking(Path(path), template, known, 0.1, 0, max_length)
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


def _report(facts: dict[str, Any]) -> datasets.Report:
    return datasets.Report(**{**facts, "fields": tuple(facts["fields"])})


def answer(path: str, model: dict[str, Any] | None, **given: Any) -> Generator[str, None, dict[str, Any]]:
    """`checking` as a process is asked for it: the report as a mapping."""
    known = base_models.from_facts(model) if model is not None else None
    report = yield from _checking(Path(path), model=known, **given)
    return dataclasses.asdict(report)


def _checking(
    path: Path,
    template: str,
    model: base_models.Model | None,
    eval_fraction: float,
    seed: int,
    max_length: int | None,
) -> Generator[str, None, datasets.Report]:
    """`checking` in this process. Raises Busy too."""
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
