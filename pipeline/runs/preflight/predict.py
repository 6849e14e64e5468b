"""What each stage of a recipe takes, predicted: pure functions of model, rows, options and machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.inputs.models import architectures
from pipeline.stages.costs import (
    evaluate_cost,
    finetune_cost,
    optimize_cost,
    quantize_cost,
    score_cost,
    shape,
)
from pipeline.stages.costs.cost import Cost, Range, Rows
from pipeline.stages.costs.machine import Machine
from pipeline.stages.recipe import Recipe

# While the first stage works, the libraries of all are imported: see `worker/loop.py`. That takes as long as
# importing them does, and a second more; a stage whose turn comes earlier waits for it.
WARM_AFTER = 1.0
WARM_LEFT = 0.06  # of the time that takes
TRIAL_BYTES, TRIAL_SECONDS = 1.2, 2.5  # of the trial before a run, in imports of the libraries
# Bytes of the trial for each weight of an embedding that is the output layer too: it has all of it, and
# more of it where it is exported.
TRIAL_TIED, TRIAL_TIED_EXPORT = 3.0, 8.0
# Bytes of an export for each position and number of a head that is turned: its builder makes the sines and
# cosines of all positions at once. Only a window of millions of tokens takes more than the rest does.
TURNED = 16.0
COSTS: dict[str, Any] = {
    "quantize": quantize_cost,
    "finetune": finetune_cost,
    "optimize": optimize_cost,
    "evaluate": evaluate_cost,
    "score": score_cost,
}


@dataclass(frozen=True)
class Question:
    """All that a prediction depends on besides the recipe.

    tried    the trial of a small layer has passed
    ahead    libraries are imported for the next stage while one works
    brought  by stage, the rows of the file that its option `data` names, all of them held out, if known
    """

    config: Mapping[str, Any]
    rows: Rows
    machine: Machine
    tried: bool = True
    ahead: bool = True
    brought: Mapping[str, Rows] = field(default_factory=dict)


def costs(recipe: Recipe, question: Question) -> dict[str, Cost]:
    """What each stage takes, by name; {} for a model whose config.json does not say its sizes."""
    known = shape.of(question.config)
    if known is None:
        return {}
    found: dict[str, Cost] = {}
    sizes, before = known, 0.0
    for name, options in recipe.stages().items():
        machine = question.machine
        if found and question.ahead:
            machine = replace(machine, import_seconds=_left_to_import(machine.import_seconds, before))
        cost = _of_stage(name, options, recipe, sizes, replace(question, machine=machine))
        turned = _turned(question.config, known) if recipe.optimize is not None else 0.0
        if name == "optimize":
            cost = _at_least(cost, turned)
        found[name] = cost if found or question.tried else _with_trial(cost, machine, known, recipe, turned)
        before += found[name].seconds.likely
        if name == "quantize":
            sizes = sizes.with_packed(quantize_cost.packed(options, sizes))
    return found


def _left_to_import(seconds: float, before: float) -> float:
    """Seconds of importing a stage's libraries that are left when the stages before it took so long."""
    left = min(max(seconds + WARM_AFTER - before, 0.0), seconds)
    return max(left, WARM_LEFT * seconds)


def _of_stage(name: str, options: Any, recipe: Recipe, sizes: shape.Shape, question: Question) -> Cost:
    """What one stage takes of a model of these sizes, which may be quantized by now."""
    rows, machine, tuned = question.rows, question.machine, recipe.finetune
    adapter = finetune_cost.trained(tuned, sizes) if tuned else 0
    graph = optimize_cost.written(recipe.optimize, sizes) if recipe.optimize else 0.0
    found: Cost
    if name in ("quantize", "finetune"):
        found = COSTS[name].estimate(options, sizes, rows, machine)
    elif name == "optimize":
        if tuned is not None:  # the graph reads rows as they were trained on
            rows = replace(rows, most=min(rows.most, tuned.max_length))
        found = optimize_cost.estimate(options, sizes, rows, machine, tuned is not None, adapter)
    elif name == "evaluate" and recipe.optimize is not None:
        both = tuned is not None and recipe.optimize is not None and recipe.optimize.adapter != "merged"
        found = evaluate_cost.estimate(
            options, sizes, rows, machine, recipe.optimize, 2 if both else 1, question.brought.get(name)
        )
    else:
        found = score_cost.estimate(options, sizes, rows, machine, graph)
    return found


def _turned(config: Mapping[str, Any], sizes: shape.Shape) -> float:
    """Bytes of the tables that an export turns its heads by."""
    longest = min(architectures.positions(config) or 0, shape.LARGEST)
    return TURNED * longest * sizes.head * architectures.turned_part(config)


def _at_least(cost: Cost, memory: float) -> Cost:
    """A cost of at least about so much main memory."""
    widths = zip(cost.memory.to_list(), (0.9, 1, 1.05), strict=True)
    return replace(cost, memory=Range(*(max(value, memory * width) for value, width in widths)))


def _with_trial(cost: Cost, machine: Machine, sizes: shape.Shape, recipe: Recipe, turned: float) -> Cost:
    """The first stage of a recipe that was not tried before: a small copy of the model goes through it."""
    each = 0.0 if not sizes.tied else TRIAL_TIED if recipe.optimize is None else TRIAL_TIED_EXPORT
    most = machine.import_bytes * (1 + TRIAL_BYTES) + max(each * sizes.embedding, turned)
    return replace(
        _at_least(cost, most),
        seconds=cost.seconds.plus(Range.around(TRIAL_SECONDS * machine.import_seconds, 0.3, 0.3)),
    )


def passes(recipe: Recipe, rows: Rows) -> float | None:
    """How many times the training reads the data; None without training."""
    return None if recipe.finetune is None else finetune_cost.passes(recipe.finetune, rows)


def changed(recipe: Recipe, stage: str, changes: Mapping[str, Any]) -> Recipe:
    """A recipe with other options of a stage."""
    options = dataclasses.replace(getattr(recipe, stage), **changes)
    return dataclasses.replace(recipe, **{stage: options})
