"""Everything that is checked before a run is queued; the page and the command line both come through here."""

from __future__ import annotations

import secrets
import shutil
from pathlib import Path
from typing import Any

from pipeline import datasets, models, templates, worker
from pipeline.errors import InputError
from pipeline.recipe import Recipe
from pipeline.stages import STAGES
from pipeline.store import Store


def submit(store: Store, recipe: Recipe) -> str:
    """Check a recipe, queue its run, see that a worker is there; return the run's id.

    Raises InputError with everything that is wrong; nothing is queued or written then.
    """
    check(recipe)
    data = keep_dataset(store.home, Path(recipe.data))
    stages: dict[str, dict[str, Any]] = {
        name: options for name, options in recipe.to_dict().items() if name in STAGES and options is not None
    }
    run = store.add(recipe.name, recipe.to_dict(), data, stages)
    worker.ensure(store.home)
    return run


def check(recipe: Recipe) -> datasets.Report:
    """Look for every fault of a recipe that can be known now. Raises InputError."""
    problems: list[str] = []
    chat = None
    try:
        model = models.resolve(recipe.model)
        chat = model.chat
        for name, options in recipe.stages().items():
            problems += STAGES[name].check(options, model)
        if recipe.template == templates.CHAT and chat is None:
            problems.append(
                f"template: {recipe.model} has no chat template; write one like '{{prompt}} {{response}}'"
            )
    except InputError as error:
        problems += error.problems
    try:
        report = datasets.check(Path(recipe.data), recipe.template, chat)
        problems += report.messages()
        if report.good:
            datasets.split(report.rows, recipe.eval_fraction, recipe.seed)
    except InputError as error:
        problems += error.problems
    except OSError as error:
        problems.append(f"data: {recipe.data} cannot be read ({error.strerror})")
    if problems:
        raise InputError(problems)
    return report


def keep_dataset(home: Path, source: Path) -> Path:
    """The home's own copy of a dataset, named by content: later changes to the file don't reach the run."""
    digest = datasets.sha256(source)
    folder = home / "datasets" / digest
    target = folder / source.name
    if folder.is_dir() and target.is_file():
        return target
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = folder / f".{secrets.token_hex(4)}.part"
    try:
        shutil.copyfile(source, part)
        part.chmod(0o600)
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return target
