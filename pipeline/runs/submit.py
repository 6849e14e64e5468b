"""All checks before a run is queued; both the page and the command line use them."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError, LabError
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.data.card import findings
from pipeline.inputs.data.formats import columns
from pipeline.inputs.data.formats.convert import Made
from pipeline.inputs.models import base_models
from pipeline.inputs.prompts import templates
from pipeline.runs import check_pool, disk
from pipeline.runs.data import data_card, prepare_data, row_lengths, text_form
from pipeline.runs.data.prepare_data import Checked
from pipeline.runs.data.row_lengths import RowLengths
from pipeline.runs.preflight import presets, row_facts
from pipeline.runs.preflight import report as preflight
from pipeline.stages.all_stages import STAGES, ask
from pipeline.stages.costs.cost import Rows
from pipeline.stages.recipe import Recipe, from_dict, redo
from pipeline.store import Store, scratch
from pipeline.store.queue import New
from pipeline.store.records import require_short
from pipeline.store.run import Run
from pipeline.system import files
from pipeline.worker import loop

MOST_OWNER_LETTERS = 40
MOST_DATASETS = 1_000  # files that a home keeps: every form lists them
MOST_NAMES = 8  # of files of the same content
CROWDED = (
    "The lab keeps {:,} datasets, as many as it may, all of runs or used just now; try again in some minutes,"
    " or delete runs that nobody needs, which makes room a day later."
)


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
    data = keep_dataset(store.home, Path(passed.data))
    given = recipe.to_dict()
    for stage, file in passed.files.items():
        given[stage]["data"] = str(keep_dataset(store.home, Path(file)))
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


class Prepared:
    """The data of recipes, checked, and made in the folder `work` where it is not the lab's JSON lines.

    What was seen once is not read again.
    """

    def __init__(self, work: Path) -> None:
        self._work = work
        self._seen: dict[Any, Checked | InputError] = {}
        self._told: set[Any] = set()
        self._counted: dict[Any, Rows] = {}
        self._lengths: dict[Any, RowLengths] = {}

    def check(self, recipe: Recipe, model: base_models.Model | None) -> datasets.Report:
        """The report of a recipe's data; without notes if they were given before. Raises InputError."""
        report, key = self.checked(recipe, model).report, self._key(recipe)
        if key in self._told:
            return dataclasses.replace(report, notes=[])
        self._told.add(key)
        return report

    def checked(self, recipe: Recipe, model: base_models.Model | None) -> Checked:
        """A recipe's data. Raises InputError."""
        key = self._key(recipe)
        seen = self._seen.get(key)
        if isinstance(seen, Checked):
            return seen
        if seen is not None:
            raise seen
        folder = self._work / str(len(self._seen))
        folder.mkdir()
        chosen = columns.parse(recipe.columns) if recipe.columns else None
        given = Path(recipe.data), folder, recipe.template, model, recipe.eval_fraction, recipe.seed
        names = findings.parse(recipe.leave_out)
        try:
            self._seen[key] = found = prepare_data.check(*given, _longest(recipe), chosen, names)
            template = found.made.template(recipe.template)
            self._seen[self._key(dataclasses.replace(recipe, template=template))] = found
        except InputError as error:
            self._seen[key] = error
            raise
        return found

    def template(self, recipe: Recipe) -> str:
        """The template that the data of a recipe is read with, after `checked`."""
        found = self._seen.get(self._key(recipe))
        return found.made.template(recipe.template) if isinstance(found, Checked) else recipe.template

    def files(self, recipe: Recipe, model: base_models.Model | None) -> dict[str, Checked]:
        """By stage, the rows that it reads besides the data. Raises InputError naming the option."""
        found = {}
        for name, options in recipe.stages().items():
            if not (file := ask(name, "file", options)):
                continue
            template = self.template(recipe)
            like = dataclasses.replace(recipe, template=template)
            key = name, file, template, recipe.model, self._key(like)
            if key not in self._seen:
                folder = self._work / str(len(self._seen))
                folder.mkdir()
                self._seen[key] = self._file(f"{name}.data", Path(file), folder, recipe, model)
            seen = self._seen[key]
            if isinstance(seen, InputError):
                raise seen
            found[name] = seen
        return found

    def _file(
        self, where: str, file: Path, folder: Path, recipe: Recipe, model: base_models.Model | None
    ) -> Checked | InputError:
        if not file.is_file():
            return InputError(f"{where}: {display.line(str(file))}: there is no such file")
        split = recipe.eval_fraction, recipe.seed, None
        data = self._seen.get(self._key(recipe))
        columns_of_data = data.made.columns if isinstance(data, Checked) and data.made.has_chosen else None
        try:
            alike = telling.ended(prepare_data.shared(columns_of_data, [file], folder, recipe.template))
            found = prepare_data.check(file, folder, recipe.template, model, *split, alike, least=1)
        except InputError as error:
            return InputError([f"{where}: {problem}" for problem in error.problems])
        if found.made.template(recipe.template) != self.template(recipe):
            return InputError(f"{where}: {display.line(file.name)}: {prepare_data.OTHER_FORM}")
        return found

    def preflight(self, recipe: Recipe, model: base_models.Model) -> dict[str, Any]:
        """What a recipe that was checked takes. Raises InputError with what does not fit this machine."""
        found = self._seen[self._key(recipe)]
        assert isinstance(found, Checked)
        brought = {
            name: self._rows(one, recipe, model, 1.0) for name, one in self.files(recipe, model).items()
        }
        rows = self._rows(found, recipe, model, recipe.eval_fraction)
        takes = preflight.make(recipe, model, rows, brought)
        if takes.problems:
            raise InputError(takes.problems)
        return takes.to_dict()

    def _rows(self, data: Checked, recipe: Recipe, model: base_models.Model, held_out: float) -> Rows:
        """What was counted of rows, once for all recipes: it takes a process with the model's tokenizer."""
        key = data.used, recipe.template, recipe.model, data.report.rows, held_out
        if key not in self._counted:
            self._counted[key] = row_facts.of(data.used, recipe.template, model, data.report.rows, held_out)
        return self._counted[key]

    def lengths(self, recipe: Recipe, model: base_models.Model) -> Generator[str, None, RowLengths]:
        """How long the rows of a recipe's data are, counted once as in `_rows`. Raises InputError, Busy."""
        data = self.checked(recipe, model)
        template = data.made.template(recipe.template)
        key = data.used, template, recipe.model
        if key not in self._lengths:
            self._lengths[key] = yield from row_lengths.counting(data.used, template, model)
        return self._lengths[key]

    def result(self, recipe: Recipe) -> dict[str, Any]:
        """What `Passed` has of the data of a recipe that was checked."""
        found = self._seen[self._key(recipe)]
        assert isinstance(found, Checked)
        made = found.made
        chosen = made.columns.to_dict() if made.columns is not None and made.has_chosen else None
        files = {name: str(one.used) for name, one in self.files(recipe, None).items()}
        return {"data": str(found.used), "columns": chosen, "source": found.source, "files": files}

    def keep(self, home: Path, results: list[dict[str, Any]]) -> None:
        """Put what was made into the home, before it goes with the folder; the results name it there."""
        checked = [seen for seen in self._seen.values() if isinstance(seen, Checked)]
        kept = {
            str(one.used): str(keep(home, one.made, one.used, one.source, one.left_out))
            for one in checked
            if one.made.is_made or one.used != one.made.path or one.source
        }
        for one in results:
            one["data"] = kept.get(one["data"], one["data"])
            one["files"] = {name: kept.get(file, file) for name, file in one["files"].items()}

    def _key(self, recipe: Recipe) -> Any:
        chosen = str(columns.parse(recipe.columns).to_dict()) if recipe.columns else ""
        return (
            recipe.data, recipe.template, recipe.eval_fraction, recipe.seed, _longest(recipe), recipe.model,
            chosen, findings.parse(recipe.leave_out),
        )  # fmt: skip


def _longest(recipe: Recipe) -> int | None:
    """The shortest of the stages' `max_length`."""
    lengths = [ask(name, "max_length", options) for name, options in recipe.stages().items()]
    return min((length for length in lengths if length is not None), default=None)


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


def keep(home: Path, made: Made, used: Path | None = None, source: str = "", left_out: str = "") -> Path:
    """`keep_dataset` of what was made, or what is `used` of it, with what it was made of beside it.

    `source` is where that is from, if it is known, `left_out` the choice by which some rows are not `used`.
    """
    made_of = prepare_data.digest(made) if made.is_made else ""
    kept = keep_dataset(home, used or made.path, made_of + left_out + source)
    if made.is_made:
        prepare_data.keep_originals(kept, made)
    if left_out:
        data_card.mark(kept, left_out)
    prepare_data.keep_source(kept, source)
    return kept


def keep_dataset(home: Path, source: Path, made_of: str = "") -> Path:
    """The home's own copy of a dataset, named by content: later changes to the file don't reach the run.

    One that was made here is named by what it was `made_of` too, and how, which lies beside it: nobody's
    original takes the place of another's, and nobody's choice of rows or source becomes another's.
    Where there are as many as may be, those that no run has and that were not used for longest make room.
    Raises LabError if there are none, or the disk is nearly full.
    """
    kept, name = home / "datasets", _visible(display.file_name(source.name))
    inside = source.resolve().parent.parent == kept.resolve()  # a copy already, which nobody changes
    target = source if inside else kept / _folder_name(source, made_of) / name
    with suppress(FileNotFoundError):
        os.utime(target)  # in use again: freeing space goes by this time
        return target
    # Whoever sends one file under ever new names gets it under one that it has.
    if len(same := [path for path in target.parent.glob("[!.]*") if path.is_file()]) >= MOST_NAMES:
        with suppress(FileNotFoundError):
            os.utime(same[0])
            return same[0]
    if source.parent != settings.SAMPLES and not disk.datasets_make_room(home, MOST_DATASETS):
        raise LabError(CROWDED.format(MOST_DATASETS))
    arriving = scratch.room(kept) / f"{secrets.token_hex(4)}.part"
    arriving.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = arriving / f".{name}"
    try:
        files.make_room(arriving, source.stat().st_size)
        shutil.copyfile(source, part)
        part.chmod(0o600)
        target = kept / _folder_name(part, made_of) / name  # the source may have changed since
        target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        part.replace(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return target


def _folder_name(file: Path, made_of: str) -> str:
    content = datasets.sha256(file)
    return hashlib.sha256(f"{content}{made_of}".encode()).hexdigest() if made_of else content


def _visible(name: str) -> str:
    """A name that is not one of ours beside a dataset, which are hidden, but for the folder of originals."""
    name = name.lstrip(".") or "dataset"
    return f"{name}.jsonl" if name == prepare_data.ORIGINAL else name
