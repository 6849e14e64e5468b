"""Verbs of one run, from the check of its dataset to its retry; and the worker."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import display, settings
from pipeline.cli.queue import Verb, note, positive, recipe_of
from pipeline.errors import InputError
from pipeline.inputs.data import telling
from pipeline.store import Store
from pipeline.store.run import DONE, PUBLISH, QUEUED, RUNNING
from pipeline.system.files import to_json

if TYPE_CHECKING:
    from pipeline.inputs.data.formats.columns import Columns


def add_start(verb: Verb) -> None:
    """Add the verbs that look at data and start runs."""
    verb("check", check).flags = _check_flags
    for name, action in (("run", run), ("submit", submit_)):
        added = verb(name, action)
        added.add_argument(
            "recipe", metavar="RECIPE.yaml|RUN", help="a recipe file, or a run to repeat with changes"
        )
        added.add_argument(
            "--set", action="append", metavar="KEY=VALUE", help="for example finetune.max_steps=10"
        )
        if action is run:
            added.add_argument(
                "--dry-run", action="store_true",
                help="check everything and show what each stage takes: memory, disk, time; start nothing",
            )  # fmt: skip
            added.add_argument("--json", action="store_true", help="with --dry-run: as JSON")


def add_follow(verb: Verb) -> None:
    """Add the verbs for runs that exist."""
    added = verb("show", show)
    added.add_argument("run")
    added.add_argument("--json", action="store_true")
    added = verb("logs", logs)
    added.add_argument("run")
    added.add_argument("stage", nargs="?")
    added.add_argument("--follow", action="store_true", help="follow until the stage ends")
    verb("cancel", cancel).add_argument("run")
    verb("retry", retry).add_argument("run")


def add_worker(verb: Verb) -> None:
    """Add the verb that serves the queue."""
    # An open descriptor of the worker's lock, from whoever started this process: see worker.ensure.
    worker = verb("worker", serve)
    worker.add_argument("--lock", type=int, help=argparse.SUPPRESS)
    worker.add_argument("--ahead", action="store_true", help=argparse.SUPPRESS)


def check(args: argparse.Namespace) -> int:
    """Check a dataset against a template; with --model also against that model's chat template."""
    if args.show is not None:
        return _show_row(args)
    from pipeline.cli import data_card
    from pipeline.inputs.models import base_models
    from pipeline.runs.data import data_check, prepare_data
    from pipeline.stages import recipe

    named = args.model or ("starter" if args.json else None)
    path = recipe.model_path(named, Path.cwd()) if named else ""
    find = data_card.model_at_hand if args.json else base_models.resolve
    model = find(path) if path else None
    given, chosen = _data(args)
    with prepare_data.work_folder(settings.home()) as work:
        steps = prepare_data.checking(
            given, work, args.template, model, max_length=args.max_length, chosen=chosen
        )
        found = prepare_data.ended(steps, given[0])
        template = found.made.template(args.template)
        data_check.require_chat(template, model)
        if args.json:
            return data_card.print_json(found, data_card.counted(found, template, model, args.max_length))
    if problem := prepare_data.unusable(found):
        raise InputError(problem)
    return data_card.print_text(found)


def _data(args: argparse.Namespace) -> tuple[list[Path], Columns | None]:
    """The files that were named, and the choice of columns."""
    from pipeline.cli import terminal
    from pipeline.inputs.data.formats import columns

    chosen = columns.parse(args.columns, "--columns") if args.columns else None
    return [path for named in args.data for path in terminal.fetched(named)[0]], chosen


def _show_row(args: argparse.Namespace) -> int:
    """One row of a dataset as tokens."""
    from pipeline.cli import terminal
    from pipeline.exports import row_view
    from pipeline.inputs.models import base_models
    from pipeline.runs.data import prepare_data
    from pipeline.stages import recipe

    where, line = args.show
    model = base_models.resolve(recipe.model_path(args.model or "starter", Path.cwd()))
    given, chosen = _data(args)
    with prepare_data.work_folder(settings.home()) as work:
        made = telling.ended(prepare_data.preparing(given, work, args.template, chosen))
        if made.problems and not made.rows:
            raise InputError([f"{made.named(number)}: {problem}" for number, problem in made.problems])
        template = made.template(args.template)
        found = row_view.view(made.path, template, model, where, line, args.max_length)
    source, unit, number = made.place(found["line"])
    print(f"{display.plain(str(source))}, {unit} {number:,}, as {display.line(model.id)} reads it\n")
    print(terminal.tokens(found, args.max_length))
    return 0


def run(args: argparse.Namespace) -> int:
    """Queue a run and follow it to its end."""
    from pipeline.cli import terminal
    from pipeline.runs import submit

    store = Store(settings.home())
    if args.dry_run:
        return _dry_run(store, args)
    if args.json:
        raise InputError("--json: goes with --dry-run")
    run_id = submit.submit(store, recipe_of(store, args.recipe, args.set), note=note)
    print(f"Run {run_id} is queued. Ctrl-C stops following; the run continues.", flush=True)
    return terminal.run(store, run_id)


def _dry_run(store: Store, args: argparse.Namespace) -> int:
    """What a run takes, without starting it. Raises InputError where it would be refused."""
    from pipeline.cli import terminal
    from pipeline.runs import submit
    from pipeline.runs.preflight import calibration

    if calibration.wanted(store):
        print("Measuring how fast this machine is; this is done once…", file=sys.stderr, flush=True)
        calibration.now(store)
    (found,) = submit.checked([recipe_of(store, args.recipe, args.set)])
    if isinstance(found, InputError):
        raise found
    for text in found.notes:
        note(text)
    facts = found.preflight or {}
    print(to_json(facts, indent=2) if args.json else terminal.preflight(facts))
    return 0


def submit_(args: argparse.Namespace) -> int:
    """Queue a run and print its id."""
    from pipeline.runs import submit

    store = Store(settings.home())
    print(submit.submit(store, recipe_of(store, args.recipe, args.set), note=note))
    return 0


def show(args: argparse.Namespace) -> int:
    """Show a run with its stages."""
    from pipeline.cli import terminal

    found = Store(settings.home()).get(args.run)
    print(to_json(found.to_dict(), indent=2) if args.json else terminal.summary(found))
    return 0


def logs(args: argparse.Namespace) -> int:
    """Print the log of a stage, by default of the latest one."""
    from pipeline.cli import terminal

    store = Store(settings.home())
    found = store.get(args.run)
    names = [stage.name for stage in found.stages]
    if args.stage and args.stage not in names:
        raise InputError(f"{display.line(args.stage)}: no such stage; this run has {', '.join(names)}")
    if args.stage is None and found.current is None:
        raise InputError(f"{found.id}: this run has no stages")
    stage = args.stage or (found.current.name if found.current else "")
    terminal.log(store, found.id, stage, wait=args.follow)
    return 0


def cancel(args: argparse.Namespace) -> int:
    """Cancel a run and wait until it has ended."""
    from pipeline.cli import terminal
    from pipeline.worker import loop

    store = Store(settings.home())
    found = store.get(args.run)
    store.request_cancel(found.id)
    loop.ensure(store.home)
    ended = terminal.until_ended(store, found.id)
    if found.status != DONE:
        print(f"Run {ended.id} is {ended.status}.")
    for stage in found.stages:
        if stage.kind == PUBLISH and stage.status in (QUEUED, RUNNING):
            print(f"{stage.name} of run {ended.id} is {ended.stage(stage.name).status}.")
    return 0


def retry(args: argparse.Namespace) -> int:
    """Queue a run again from the stage that did not finish."""
    from pipeline.worker import loop

    store = Store(settings.home())
    found = store.get(args.run)
    store.retry(found.id)
    loop.ensure(store.home)
    print(f"Run {found.id} is queued again; `{settings.command()} logs {found.id} --follow` follows it.")
    return 0


def serve(args: argparse.Namespace) -> int:
    """Serve the queue until it has been empty for a while."""
    from pipeline.worker import loop

    return loop.serve(settings.home(), args.lock, ahead=args.ahead)


def _check_flags(added: argparse.ArgumentParser) -> None:
    from pipeline.inputs.prompts import templates
    from pipeline.stages import finetune

    added.add_argument("data", type=Path, nargs="+", metavar="DATA.jsonl")
    added.add_argument(
        "--columns", metavar="prompt=A+B,response=C",
        help="which columns are prompt, response and system; a + joins several (default: as recognised)",
    )  # fmt: skip
    added.add_argument(
        "--json", action="store_true",
        help="the data card as JSON: what was recognised, tokens, copies, leaks, problems (model, if none is"
        " given: starter)",
    )  # fmt: skip
    added.add_argument("--template", default=templates.CHAT, help="chat, or a text with {placeholders}")
    added.add_argument("--model", help="render every row with this model's chat template, and count tokens")
    added.add_argument(
        "--max-length", type=positive, default=finetune.Options.max_length, metavar="N",
        help="finetune.max_length: rows of more tokens are counted (default: %(default)s)",
    )  # fmt: skip
    added.add_argument(
        "--show", type=_row, metavar="LINE",
        help="show one row as the tokens that training reads, and whether the exported model reads the same"
        " prompt: a line number, random or longest (model, if none is given: starter)",
    )  # fmt: skip


def _row(text: str) -> tuple[str, int]:
    """(where, line) of a row, for argparse."""
    from pipeline.inputs.data import one_row

    if text in (one_row.RANDOM, one_row.LONGEST):
        return text, 0
    if not (text.isascii() and text.isdigit() and int(text[:18]) > 0):
        raise argparse.ArgumentTypeError("must be a line number, random or longest")
    return one_row.LINE, int(text[:18])
