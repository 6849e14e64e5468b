"""Everything that is checked before a run is queued; the page and the command line both come through here."""

from __future__ import annotations

import copy
import dataclasses
import os
import secrets
import shutil
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline import datasets, models, settings, templates, worker
from pipeline.errors import InputError
from pipeline.recipe import Recipe, redo
from pipeline.run import Run
from pipeline.stages import STAGES, optimize
from pipeline.store import Store

MOST_OWNER_LETTERS = 40


def submit(store: Store, recipe: Recipe, owner: str | None = None) -> str:
    """Check a recipe, queue its run, see that a worker is there; return the run's id.

    `owner` is whose run it is, by default the system's user. Raises InputError with everything that is
    wrong; nothing is queued or written then.
    """
    run = _queue(store, recipe, check(recipe), owner_name(owner))
    worker.ensure(store.home)
    return run


def submit_all(store: Store, recipes: Sequence[Recipe], owner: str | None = None) -> list[str]:
    """`submit` of several recipes: all are checked before any is queued.

    Raises InputError naming the recipes by name.
    """
    models_of: list[models.Model] = []
    problems: list[str] = []
    for recipe in recipes:
        try:
            models_of.append(check(recipe))
        except InputError as error:
            problems += [f"{recipe.name}: {problem}" for problem in error.problems]
    if problems:
        raise InputError(problems)
    runs = [
        _queue(store, recipe, model, owner_name(owner))
        for recipe, model in zip(recipes, models_of, strict=True)
    ]
    worker.ensure(store.home)
    return runs


def owner_name(given: str | None) -> str:
    """Whose run it is, as a word on one line; None is the system's user."""
    text = settings.user() if given is None else given
    return " ".join("".join(letter for letter in text if letter.isprintable()).split())[:MOST_OWNER_LETTERS]


def _queue(store: Store, recipe: Recipe, model: models.Model, owner: str) -> str:
    recipe = dataclasses.replace(recipe, model=model.pinned)  # all stages see the same commit
    data = keep_dataset(store.home, Path(recipe.data))
    stages: dict[str, dict[str, Any]] = {
        name: options for name, options in recipe.to_dict().items() if name in STAGES and options is not None
    }
    return store.add(recipe.name, recipe.to_dict(), data, stages, owner)


def again(run: Run, changes: list[str] | None = None) -> Recipe:
    """The recipe of an earlier run with the `key=value` changes of `--set`; its dataset is the lab's copy.

    What the changes don't touch is reused: another dataset or rank means another adapter for the same
    quantized base and the same graph. Raises InputError naming the key.
    """
    given = {**copy.deepcopy(run.recipe), "data": run.data, "group": ""}
    return redo(given, Path.cwd(), changes)


def publish(store: Store, run: Run, to: str, options: Any) -> str:
    """Check and queue the publishing of a finished run; return the name of the stage that does it.

    Raises InputError where the publisher's plan does.
    """
    from pipeline.publishers import PUBLISHERS, settled

    PUBLISHERS[to].plan(store.home, run, options)
    given = settled(to, store.home, options)
    stage = store.add_publish(run.id, {"to": to, **dataclasses.asdict(given)})
    worker.ensure(store.home)
    return stage


def check(recipe: Recipe) -> models.Model:
    """Look for every fault of a recipe that can be known now; return its model. Raises InputError."""
    problems: list[str] = []
    model = None
    try:
        model = models.resolve(recipe.model)
        for name, options in recipe.stages().items():
            problems += STAGES[name].check(options, model)
        if recipe.optimize is not None:
            problems += optimize.check_among(recipe.optimize, recipe.stages(), model)
    except InputError as error:
        problems += error.problems
    problems += _gpu_problems(recipe)
    try:
        check_data(Path(recipe.data), recipe.template, model, recipe.eval_fraction)
    except InputError as error:
        problems += error.problems
    if problems or model is None:
        raise InputError(problems)
    return model


def _gpu_problems(recipe: Recipe) -> list[str]:
    """Options that need a GPU, where the run has none."""
    wanted = {
        "optimize.device: 'gpu'": recipe.optimize is not None
        and recipe.optimize.device == "gpu"
        and not optimize.not_run_here(recipe.optimize),
        "quantize.engine: 'autoawq'": recipe.quantize is not None and recipe.quantize.engine == "autoawq",
        "finetune.method: 'qlora'": recipe.finetune is not None and recipe.finetune.method == "qlora",
    }
    if recipe.runs_on == "cpu":
        return [
            f"{option} needs a GPU, and runs_on is 'cpu'; set runs_on to 'any', or choose another option"
            for option, needed in wanted.items()
            if needed
        ]
    if wanted["optimize.device: 'gpu'"] and not settings.gpus():
        return [
            "optimize.device: 'gpu' needs an NVIDIA GPU, and none answers nvidia-smi here; allowed: 'cpu'"
        ]
    return []


def check_data(
    path: Path, template: str, model: models.Model | None, eval_fraction: float = 0.1
) -> datasets.Report:
    """Look for every fault of a dataset and its template; with a model, of its chat template too.

    Raises InputError with all of them.
    """
    if template.strip() == templates.CHAT and model is not None and model.chat is None:
        raise InputError(
            f"template: {model.id} has no chat template; write one like '{{prompt}} {{response}}'"
        )
    try:
        report = datasets.check(path, template, model.chat if model else None)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    if not report.good:
        raise InputError(report.messages())
    datasets.split(report.rows, eval_fraction, seed=0)  # refuses what cannot be split at any seed
    return report


def keep_dataset(home: Path, source: Path) -> Path:
    """The home's own copy of a dataset, named by content: later changes to the file don't reach the run."""
    digest = datasets.sha256(source)
    folder = home / "datasets" / digest
    target = folder / source.name
    with suppress(FileNotFoundError):
        os.utime(target)  # it is in use again, which those know by its time who free space
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
