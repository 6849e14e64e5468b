"""Sweeps: several runs that differ in a few options, as one group."""

from __future__ import annotations

import copy
import itertools
import math
import secrets
import time
from collections.abc import Callable, Generator
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.runs import check_pool, submit
from pipeline.stages.recipe import Recipe, from_dict, redo
from pipeline.store import Store

PREFIX = "sweep-"
LONGEST_VALUE = 300  # letters
MOST_RUNS = 100


def parse(given: str) -> tuple[str, list[str]]:
    """`finetune.r=8,16` as the option and its values, each as after `=` in `--set`.

    Raises InputError.
    """
    key, equals, text = given.partition("=")
    values = [value.strip() for value in text.split(",") if value.strip()]
    if not equals or not key.strip() or not values:
        raise InputError(f"{display.line(given)}: write it as option=value,value, such as finetune.r=8,16,32")
    if any(len(value) > LONGEST_VALUE for value in values):  # each is parsed for every run
        raise InputError(f"{display.line(key)}: a value has more than {LONGEST_VALUE} letters; shorten it")
    return key.strip(), list(dict.fromkeys(values))


def variants(make: Callable[[list[str]], Recipe], axes: list[str]) -> list[Recipe]:
    """A recipe for each combination of the values of `axes` (see `parse`), in one group.

    `make` returns the recipe with `key=value` changes. Names of the runs say what differs. Raises InputError.
    """
    parsed = [parse(axis) for axis in axes]
    keys = [key for key, _ in parsed]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InputError(f"{display.names(twice)}: given twice; join the values with commas")
    count = math.prod(
        len(values) for _, values in parsed
    )  # checked before making them: there may be a great many
    if count > MOST_RUNS:
        raise InputError(f"These are {count} runs; a sweep can have up to {MOST_RUNS}.")
    combinations = list(itertools.product(*(values for _, values in parsed)))
    group = f"{PREFIX}{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(2)}"
    made: list[Recipe] = []
    problems: list[str] = []
    for values in combinations:
        changes = [f"{key}={value}" for key, value in zip(keys, values, strict=True)]
        try:
            name = make([]).name
            said = ", ".join(f"{k.rpartition('.')[2]}={v}" for k, v in zip(keys, values, strict=True))
            made.append(
                make([*changes, f"name={name[: max(98 - len(said), 1)]} {said}"[:100], f"group={group}"])
            )
        except InputError as error:
            problems += [problem for problem in error.problems if problem not in problems]
    if problems:
        raise InputError(problems)
    return made


def launch(
    store: Store,
    given: dict[str, Any],
    axes: list[str],
    owner: str | None = None,
    note: submit.Say | None = None,
) -> tuple[list[str], str]:
    """Queue the runs of a sweep over a recipe's mapping, all or none; return their ids and their group.

    `axes` are as for `variants`, `note` is as in `submit`. Where the app runs, a process reads and checks
    them. Raises InputError, LabError.
    """
    found = check_pool.answer(f"{__name__}:answer", {"given": given, "axes": axes})
    made = [from_dict(recipe) for recipe in found["recipes"]]
    passed: list[tuple[Recipe, submit.Passed]] = []
    problems: list[str] = []
    for recipe, outcome in zip(made, submit.outcomes(found["outcomes"]), strict=True):
        if isinstance(outcome, InputError):
            problems += [f"{recipe.name}: {problem}" for problem in outcome.problems]
        else:
            passed.append((recipe, outcome))
    if problems:
        raise InputError(problems)
    return submit.queue_all(store, passed, owner, note), made[0].group


def answer(given: dict[str, Any], axes: list[str]) -> Generator[str, None, dict[str, Any]]:
    """The recipes of a sweep, checked, as a process is asked for them."""

    def make(changes: list[str]) -> Recipe:
        return redo(copy.deepcopy(given), settings.ROOT, changes)

    yield "Reading the values…"
    recipes = [recipe.to_dict() for recipe in variants(make, axes)]
    return {"recipes": recipes, "outcomes": (yield from submit.answer(recipes))}


def start(
    store: Store, recipes: list[Recipe], owner: str | None = None, note: submit.Say | None = None
) -> list[str]:
    """Queue the runs of a sweep, all or none; return their ids. `note` is as in `submit`.

    Raises InputError.
    """
    return submit.submit_all(store, recipes, owner, note)
