"""`queue`, `pause`, `resume`, `move` and `sweep`: several runs, and their order."""

from __future__ import annotations

import argparse
import dataclasses
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline import settings
from pipeline.inputs.data.hub import dataset_id
from pipeline.store import Store
from pipeline.store.queue import MOVES
from pipeline.system.files import to_json

if TYPE_CHECKING:  # imported where they are used, so that other verbs start faster
    from pipeline.stages.recipe import Recipe

RUN_ID = r"\d{8}-\d{6}-[0-9a-f]{6}"
Verb = Callable[[str, Callable[[argparse.Namespace], int]], Any]  # a parser with `flags`, added when used


def queue(args: argparse.Namespace) -> int:
    """List waiting runs in the order in which they will start."""
    from pipeline.cli import terminal

    store = Store(settings.home())
    waiting = store.queue()
    if args.json:
        ids = [found.id for found in waiting]
        print(to_json({"paused": store.paused, "waiting": ids}))
        return 0
    if store.paused:
        print(f"The queue is paused: nothing new starts until `{settings.command()} resume`.")
    print(terminal.waiting(waiting) if waiting else "No runs are waiting.")
    return 0


def pause(args: argparse.Namespace) -> int:
    """Pause the queue: running jobs finish, nothing new starts."""
    Store(settings.home()).pause(True)
    print(f"Paused: running jobs finish, and nothing new starts until `{settings.command()} resume`.")
    return 0


def resume(args: argparse.Namespace) -> int:
    """Resume the queue after a pause."""
    from pipeline.worker import loop

    store = Store(settings.home())
    store.pause(False)
    loop.ensure(store.home)
    print("The queue is resumed: runs start again.")
    return 0


def move(args: argparse.Namespace) -> int:
    """Move a waiting run ahead of or behind other runs of its owner."""
    store = Store(settings.home())
    store.move(store.get(args.run).id, args.where)
    return queue(args)


def sweep_(args: argparse.Namespace) -> int:
    """Queue a run for each combination of the values of some options, as one group."""
    from pipeline.runs import sweep

    store = Store(settings.home())
    recipes = sweep.variants(lambda changes: recipe_of(store, args.recipe, changes), args.over)
    for run, made in zip(sweep.start(store, recipes, note=note), recipes, strict=True):
        print(f"{run}  {made.name}")
    print(f"{len(recipes)} runs are queued as the group {recipes[0].group}.")
    return 0


def note(text: str) -> None:
    """Print what the user should know about the data of a run."""
    print(f"Note: {text}", file=sys.stderr)


def recipe_of(store: Store, given: str, changes: list[str] | None) -> Recipe:
    """The recipe in a file, or that of an earlier run, with the `key=value` changes of --set.

    A dataset of the hub is fetched, and then the recipe names its commit.
    """
    from pipeline.cli import terminal
    from pipeline.runs import submit
    from pipeline.stages import recipe

    if re.fullmatch(RUN_ID, given) and not Path(given).exists():
        found = submit.again(store.get(given), changes)
    else:
        found = recipe.load(Path(given), changes)
    if not dataset_id.is_id(found.data):
        return found
    return dataclasses.replace(found, data=terminal.fetched(Path(found.data))[1])


def add(verb: Verb) -> None:
    """Add these verbs to the parser."""
    added = verb("sweep", sweep_)
    added.add_argument("recipe", metavar="RECIPE.yaml|RUN")
    added.add_argument("over", nargs="+", metavar="KEY=VALUE,VALUE", help="for example finetune.r=8,16,32")
    verb("queue", queue).add_argument("--json", action="store_true")
    verb("pause", pause)
    verb("resume", resume)
    added = verb("move", move)
    added.add_argument("run")
    added.add_argument("where", choices=MOVES)
    added.add_argument("--json", action="store_true")


def positive(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return value
