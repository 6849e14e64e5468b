"""All checks before a run is queued; both the page and the command line use them."""

from __future__ import annotations

import copy
import dataclasses
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.runs import check_pool, data_check
from pipeline.stages.all_stages import STAGES, ask
from pipeline.stages.recipe import Recipe, from_dict, redo
from pipeline.store import Store
from pipeline.store.run import Run
from pipeline.worker import loop

MOST_OWNER_LETTERS = 40


Say = Callable[[str], None]


def submit(store: Store, recipe: Recipe, owner: str | None = None, note: Say | None = None) -> str:
    """Check a recipe, queue its run and make sure that a worker runs; return the run's id.

    `owner` is by default the system's user; `note` gets remarks about the data. Raises InputError with all
    problems; nothing is queued or written then.
    """
    (run,) = submit_all(store, [recipe], owner, note, named=False)
    return run


def submit_all(
    store: Store,
    recipes: Sequence[Recipe],
    owner: str | None = None,
    note: Say | None = None,
    *,
    named: bool = True,
) -> list[str]:
    """`submit` of several recipes: all are checked before any is queued.

    Raises InputError, which names the recipes by name if they are to be `named`.
    """
    found = checked(recipes)
    problems = [
        f"{recipe.name}: {problem}" if named else problem
        for recipe, outcome in zip(recipes, found, strict=True)
        if isinstance(outcome, InputError)
        for problem in outcome.problems
    ]
    if problems:
        raise InputError(problems)
    passed = [outcome for outcome in found if isinstance(outcome, Passed)]
    return queue_all(store, list(zip(recipes, passed, strict=True)), owner, note)


@dataclass(frozen=True)
class Passed:
    """A recipe that can run: its model with the commit, and what should be known of its data."""

    model: str
    notes: list[str]


def checked(recipes: Sequence[Recipe]) -> list[Passed | InputError]:
    """`check` of each, done by a process where the app runs; what is wrong with one stands in its place.

    Raises LabError if the process gets no place or has to leave it.
    """
    given = [recipe.to_dict() for recipe in recipes]
    return outcomes(check_pool.answer(f"{__name__}:answer", {"recipes": given}))


def answer(recipes: list[dict[str, Any]]) -> Generator[str, None, list[dict[str, Any]]]:
    """`checked` as a process is asked for it; `outcomes` reads what it returns."""
    seen: Seen = {}
    found: list[dict[str, Any]] = []
    for number, given in enumerate(recipes, 1):
        yield f"Recipe {number} of {len(recipes)}…"
        notes: list[str] = []
        try:
            model = check(from_dict(given), notes.append, seen)
            found.append({"model": model.pinned, "notes": notes})
        except InputError as error:
            found.append({"problems": error.problems})
    return found


def outcomes(found: list[dict[str, Any]]) -> list[Passed | InputError]:
    """What `answer` has returned."""
    return [InputError(one["problems"]) if "problems" in one else Passed(**one) for one in found]


def queue_all(
    store: Store,
    passed: Sequence[tuple[Recipe, Passed]],
    owner: str | None = None,
    note: Say | None = None,
) -> list[str]:
    """Queue a run for each recipe, and see that a worker is there; return their ids."""
    runs = [_queue(store, recipe, outcome.model, owner_name(owner)) for recipe, outcome in passed]
    for text in dict.fromkeys(text for _, outcome in passed for text in outcome.notes):
        if note is not None:
            note(text)
    loop.ensure(store.home)
    return runs


def owner_name(given: str | None) -> str:
    """The owner of a run as text on one line; None is the system's user."""
    text = settings.user() if given is None else given
    return " ".join("".join(letter for letter in text if letter.isprintable()).split())[:MOST_OWNER_LETTERS]


def _queue(store: Store, recipe: Recipe, model: str, owner: str) -> str:
    recipe = dataclasses.replace(recipe, model=model)  # all stages see the same commit
    data = keep_dataset(store.home, Path(recipe.data))
    stages: dict[str, dict[str, Any]] = {
        name: options for name, options in recipe.to_dict().items() if name in STAGES and options is not None
    }
    return store.add(recipe.name, recipe.to_dict(), data, stages, owner)


def again(run: Run, changes: list[str] | None = None) -> Recipe:
    """The recipe of an earlier run with the `key=value` changes of `--set`; its dataset is the lab's copy.

    Stages that the changes don't affect are reused: another dataset or rank makes another adapter for the
    same quantized base and graph. Raises InputError naming the key.
    """
    given = {**copy.deepcopy(run.recipe), "data": run.data, "group": ""}
    return redo(given, Path.cwd(), changes)


def one_prompt(run: Run) -> bool:
    """Whether all rows of a run's dataset have the same prompt, so that none is held out of training.

    Reads only as many rows as a page has time for.
    """
    try:
        template = templates.parse(str(run.recipe.get("template", templates.CHAT)))
    except InputError:  # from a run of an older version of the lab
        return False
    return datasets.one_prompt(Path(run.data), template)


def publish(store: Store, run: Run, to: str, options: Any) -> str:
    """Check and queue the publishing of a finished run; return the name of the stage that does it.

    Raises InputError where the publisher's plan does.
    """
    from pipeline.publish.targets import PUBLISHERS, settled

    PUBLISHERS[to].plan(store.home, run, options)
    given = settled(to, store.home, options)
    stage = store.add_publish(run.id, {"to": to, **dataclasses.asdict(given)})
    loop.ensure(store.home)
    return stage


Seen = dict[Any, datasets.Report | InputError]


def check(recipe: Recipe, note: Say | None = None, seen: Seen | None = None) -> base_models.Model:
    """Find every fault of a recipe that can be known now; return its model. Raises InputError.

    `note` gets remarks about the data. Models and data that `seen` has from earlier recipes are not read
    again.
    """
    problems: list[str] = []
    model = None
    stages = recipe.stages()
    try:
        model = base_models.resolve(recipe.model)
        for name, options in stages.items():
            problems += STAGES[name].check(options, model)
        for name, options in stages.items():
            problems += ask(name, "check_among", options, stages, model, default=[])
    except InputError as error:
        problems += error.problems
    problems += _gpu_problems(recipe)
    report = None
    try:
        report = _checked_data(recipe, model, {} if seen is None else seen)
        if report.unasked and any(ask(name, "needs_prompts", given) for name, given in stages.items()):
            problems.append(f"{recipe.data}: {report.unasked}")
    except InputError as error:
        problems += error.problems
    if problems or model is None or report is None:
        raise InputError(problems)
    if note is not None:
        for text in report.notes:
            note(text)
    return model


def _checked_data(recipe: Recipe, model: base_models.Model | None, seen: Seen) -> datasets.Report:
    """`data_check.check` of a recipe, unless `seen` has the same check. Raises InputError."""
    lengths = [ask(name, "max_length", options) for name, options in recipe.stages().items()]
    longest = min((length for length in lengths if length is not None), default=None)
    given = recipe.data, recipe.template, recipe.eval_fraction, recipe.seed, longest, recipe.model
    found = seen.get(given)
    if isinstance(found, datasets.Report):
        return dataclasses.replace(found, notes=[])
    if found is not None:
        raise found
    try:
        seen[given] = report = data_check.check(
            Path(recipe.data), recipe.template, model, recipe.eval_fraction, recipe.seed, longest
        )
    except InputError as error:
        seen[given] = error
        raise
    return report


def _gpu_problems(recipe: Recipe) -> list[str]:
    """Problems of options that need a GPU, if the run has none."""
    problems: list[str] = []
    for name, options in recipe.stages().items():
        if recipe.runs_on != "cpu":
            problems += ask(name, "gpu_problems", options, default=[])
        elif needed := ask(name, "needs_gpu", options):
            problems.append(
                f"{needed} needs a GPU, and runs_on is 'cpu'; set runs_on to 'any', or choose another option"
            )
    return problems


def keep_dataset(home: Path, source: Path) -> Path:
    """The home's own copy of a dataset, named by content: later changes to the file don't reach the run."""
    kept, name = home / "datasets", display.file_name(source.name)
    target = kept / datasets.sha256(source) / name
    with suppress(FileNotFoundError):
        os.utime(target)  # in use again: freeing space goes by this time
        return target
    arriving = kept / f"{secrets.token_hex(4)}.part"
    arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = arriving / f".{name}"
    try:
        shutil.copyfile(source, part)
        part.chmod(0o600)
        target = kept / datasets.sha256(part) / name  # the source may have changed since
        target.parent.mkdir(mode=0o700, exist_ok=True)
        part.replace(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return target
