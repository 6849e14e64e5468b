"""All checks before a run is queued; both the page and the command line use them."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError
from pipeline.inputs.data import datasets
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.runs import check_pool, kept_datasets
from pipeline.runs.data import prepare_data, text_form
from pipeline.runs.preflight import presets
from pipeline.runs.preflight import report as preflight
from pipeline.runs.prepared import Prepared
from pipeline.stages.all_stages import STAGES, ask
from pipeline.stages.recipe import Recipe, from_dict, redo
from pipeline.store import Store
from pipeline.store.queue import New
from pipeline.store.records import require_short
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
    """A recipe that can run, and what should be known of its data.

    model    with the commit
    data     the JSON lines: its own file, or those made of it, which the home has already; without the
             rows that the recipe leaves out
    columns  those chosen or recognised, where they are not plainly prompt and response
    settled  what each `auto` of the recipe stands for
    source   the hub's dataset with its commit, if the data is from there; the run's recipe names that
    files    by stage, what its option `data` names, as JSON lines like those of `data`
    preflight  what its stages are predicted to take: see `preflight.report`
    """

    model: str
    notes: list[str]
    data: str
    columns: dict[str, list[str]] | None
    settled: dict[str, Any] = dataclasses.field(default_factory=dict)
    source: str = ""
    files: dict[str, str] = dataclasses.field(default_factory=dict)
    preflight: dict[str, Any] | None = None


def checked(recipes: Sequence[Recipe]) -> list[Passed | InputError]:
    """`check` of each, done by a process where the app runs; what is wrong with one stands in its place.

    Raises LabError if the process gets no place or has to leave it.
    """
    given = [recipe.to_dict() for recipe in recipes]
    return outcomes(check_pool.answer(f"{__name__}:answer", {"recipes": given}))


def answer(recipes: list[dict[str, Any]]) -> Generator[str, None, list[dict[str, Any]]]:
    """`checked` as a process is asked for it; `outcomes` reads what it returns."""
    found: list[dict[str, Any]] = []
    home = settings.home()
    with prepare_data.work_folder(home) as work:
        prepared = Prepared(work)
        for number, given in enumerate(recipes, 1):
            yield f"Recipe {number} of {len(recipes)}…"
            notes: list[str] = []
            try:
                recipe, settled = yield from _settling(from_dict(given), notes.append, prepared)
                model = check(recipe, notes.append, prepared)
                form, said = text_form.settling(recipe, prepared.template(recipe))
                recipe, settled = recipe.settled(form), {**settled, **form}
                notes += said
                takes = prepared.preflight(recipe, model)
                told = {"notes": notes, "settled": settled, "preflight": takes}
                found.append({"model": model.pinned, **told, **prepared.result(recipe)})
            except InputError as error:
                found.append({"problems": error.problems})
        if not any("problems" in one for one in found):
            prepared.keep(home, found)
    return found


def _settling(
    recipe: Recipe, note: Say, prepared: Prepared
) -> Generator[str, None, tuple[Recipe, dict[str, Any]]]:
    """The recipe with the value of each `auto`, and these by key; `note` gets why. Raises InputError."""
    if not recipe.auto:
        return recipe, {}
    try:
        model = base_models.resolve(recipe.model)
        found = prepared.checked(recipe, model)
    except InputError:
        check(recipe, prepared=prepared)  # names all other faults as well
        raise
    lengths = yield from prepared.lengths(recipe, model)
    settled, said = presets.settled(recipe, found.report.rows, lengths, model.config)
    for text in said:
        note(text)
    return recipe.settled(settled), settled


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
    runs = store.add_all([_new(store, *one) for one in passed], owner_name(owner))
    for run, (_, outcome) in zip(runs, passed, strict=True):
        preflight.keep(store, run, outcome.preflight)
    for text in dict.fromkeys(text for _, outcome in passed for text in outcome.notes):
        if note is not None:
            note(text)
    loop.ensure(store.home)
    return runs


def owner_name(given: str | None) -> str:
    """The owner of a run as text on one line; None is the system's user."""
    text = settings.user() if given is None else given
    return " ".join("".join(letter for letter in text if letter.isprintable()).split())[:MOST_OWNER_LETTERS]


def _new(store: Store, recipe: Recipe, passed: Passed) -> New:
    """A run of a recipe that passed, with the home's copy of its data."""
    # All stages see the same commit of the model.
    recipe = dataclasses.replace(
        recipe, model=passed.model, data=passed.source or recipe.data, columns=passed.columns
    ).settled(passed.settled)
    data = kept_datasets.keep(store.home, Path(passed.data))
    given = recipe.to_dict()
    for stage, file in passed.files.items():
        given[stage]["data"] = str(kept_datasets.keep(store.home, Path(file)))
    stages = {name: options for name, options in given.items() if name in STAGES and options is not None}
    return New(recipe.name, given, data, stages)


def again(run: Run, changes: list[str] | None = None) -> Recipe:
    """The recipe of an earlier run with the `key=value` changes of `--set`; its dataset is the lab's copy.

    Stages that the changes don't affect are reused: another dataset or rank makes another adapter for the
    same quantized base and graph. Raises InputError naming the key.
    """
    given = {**copy.deepcopy(run.recipe), "data": run.data, "group": ""}
    return redo(given, Path.cwd(), changes)


def one_prompt(run: Run) -> bool:
    """Whether all rows of a run's dataset have the same prompt, so that none is held out of training.

    A process reads them, and only as many as a page has time for. Raises LabError if it cannot be asked.
    """
    template = str(run.recipe.get("template", templates.CHAT))
    return bool(check_pool.answer(f"{__name__}:has_one_prompt", {"data": run.data, "template": template}))


def has_one_prompt(data: str, template: str) -> Generator[str, None, bool]:
    """`one_prompt` as a process is asked for it."""
    yield "Looking at the prompts…"
    try:
        return datasets.one_prompt(Path(data), templates.parse(template))
    except InputError:  # a template of an older version of the lab
        return False


def plan(store: Store, run: Run, to: str, options: Any) -> dict[str, Any]:
    """The dry run of publisher `to`; where the app runs, a process makes it.

    Raises what the publisher's does, and LabError if no process can be asked.
    """
    wanted = dataclasses.asdict(options)
    store.require_publishable(run.id, {"to": to, **wanted})
    given = {"home": str(store.home), "run": run.id, "to": to, "options": wanted}
    found: dict[str, Any] = check_pool.answer("pipeline.publish.targets:planned", given, share="plans")
    return found


def publish(store: Store, run: Run, to: str, options: Any) -> str:
    """`plan` and queue the publishing of a finished run; return the name of the stage that does it."""
    plan(store, run, to, options)
    return publish_planned(store, run, to, options)


def publish_planned(store: Store, run: Run, to: str, options: Any) -> str:
    """Queue a publishing whose `plan` was made; return the name of the stage that does it."""
    from pipeline.publish.targets import settled

    given = settled(to, store.home, options)
    stage = store.add_publish(run.id, {"to": to, **dataclasses.asdict(given)})
    loop.ensure(store.home)
    return stage


def check(recipe: Recipe, note: Say | None = None, prepared: Prepared | None = None) -> base_models.Model:
    """Find every fault of a recipe that can be known now; return its model. Raises InputError.

    `note` gets remarks about the data. What `prepared` has from earlier recipes is not read again.
    """
    if prepared is None:
        with prepare_data.work_folder(settings.home()) as work:
            return check(recipe, note, Prepared(work))
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
        report = prepared.check(recipe, model)
        if report.unasked and any(ask(name, "needs_prompts", given) for name, given in stages.items()):
            problems.append(f"{recipe.data}: {report.unasked}")
    except InputError as error:
        problems += error.problems
    try:
        prepared.files(recipe, model)
    except InputError as error:
        problems += error.problems
    if problems or model is None or report is None:
        raise InputError(problems)
    recorded = {"model": model.pinned, "columns": prepared.result(recipe)["columns"]}
    require_short("The recipe", [{**recipe.to_dict(), **recorded}])  # so that nothing is made for it first
    if note is not None:
        for text in report.notes:
            note(text)
    return model


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
