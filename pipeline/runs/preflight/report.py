"""What a run takes, before it is launched: predictions put together with this machine and its past."""

from __future__ import annotations

import dataclasses
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError
from pipeline.inputs.models import base_models
from pipeline.runs.data import prepare_data, row_lengths, text_form
from pipeline.runs.data.row_lengths import RowLengths
from pipeline.runs.preflight import earlier, fitting, predict, presets, row_facts
from pipeline.stages.costs import machine
from pipeline.stages.costs.cost import Cost, Rows
from pipeline.stages.recipe import Recipe, from_dict
from pipeline.store import Store
from pipeline.store.run import PREFLIGHT
from pipeline.system import capacity, hardware
from pipeline.system.capacity import Capacity
from pipeline.system.files import write_whole

MOST_READ = 64 << 20  # bytes of a dataset whose lines are counted


@dataclass(frozen=True)
class Preflight:
    """What each stage of a recipe takes, in order; {} where the model's sizes are not known.

    passes      how often training reads the data; None without training
    problems    why it does not fit this machine, each with the nearest setting that does
    errors      how far predictions were off so far in this home, by stage
    calibrated  whether this machine's speed was measured
    """

    costs: dict[str, Cost]
    rows: Rows
    passes: float | None
    there: Capacity
    problems: list[str]
    errors: dict[str, Any]
    calibrated: bool
    gpu: bool

    def to_dict(self) -> dict[str, Any]:
        """As the page and `--json` get it."""
        return {
            "stages": {name: cost.to_dict() for name, cost in self.costs.items()},
            "rows": dataclasses.asdict(self.rows),
            "passes": self.passes,
            "machine": dataclasses.asdict(self.there),
            "problems": self.problems,
            "errors": self.errors,
            "calibrated": self.calibrated,
            "gpu": self.gpu,
        }


def make(
    recipe: Recipe, model: base_models.Model, rows: Rows, brought: Mapping[str, Rows] | None = None
) -> Preflight:
    """The preflight of a recipe whose model and dataset were checked, on this machine; `rows` is what was
    counted of the dataset, `brought` of what a stage's option `data` names, by stage. Raises OSError."""
    home = settings.home()
    return of(recipe, model.config, rows, Store(home), capacity.of(home), brought)


def of(
    recipe: Recipe,
    config: Mapping[str, Any],
    rows: Rows,
    store: Store,
    there: Capacity,
    brought: Mapping[str, Rows] | None = None,
) -> Preflight:
    """The preflight of a recipe for a model with this config.json; `brought`: see `predict.Question`."""
    gpu = hardware.on_gpu() and recipe.runs_on != "cpu"
    known = machine.read(store.home, gpu)
    past = earlier.stages(store)
    tried = any(one.model == recipe.model for one in past)
    question = predict.Question(config, rows, known, tried, brought=brought or {})
    costs = _costs(recipe, question, past)
    problems = [
        *fitting.problems(recipe, question, there, costs),
        *fitting.endless(recipe, question, lambda other: _costs(other, question, past)),
    ]
    return Preflight(
        costs, rows, predict.passes(recipe, rows), there,
        problems, earlier.errors(past), known.measured, gpu,
    )  # fmt: skip


def _costs(recipe: Recipe, question: predict.Question, past: list[earlier.Past]) -> dict[str, Cost]:
    """What each stage takes, as far as this home has seen it."""
    return {
        name: _informed(cost, past, recipe, name) for name, cost in predict.costs(recipe, question).items()
    }


def _informed(cost: Cost, past: list[earlier.Past], recipe: Recipe, stage: str) -> Cost:
    """A prediction, corrected by what this home has seen."""
    options = dataclasses.asdict(getattr(recipe, stage))
    before = earlier.same(past, stage, options, recipe.model, recipe.data)
    return earlier.like(cost, before) if before else earlier.corrected(cost, past, stage)


def answer(
    recipe: dict[str, Any], known: dict[str, Any] | None = None
) -> Generator[str, None, dict[str, Any]]:
    """`make` as a process is asked for it, for a recipe on the page, whose data may not be checked yet.

    `known` is as an earlier answer for the same data, template and model had it: neither is read again then,
    and no hub is asked. "auto" has why each `auto` stands for its value.
    """
    yield "Looking at the rows…"
    chosen = from_dict(recipe)
    data, home = Path(chosen.data), settings.home()
    if data.suffix != ".jsonl" or not data.is_file():
        raise InputError("that is known when the dataset is in this lab")
    form, told = text_form.settling(chosen, prepare_data.template_of(data, chosen.template))
    chosen = chosen.settled(form)
    kept = dict(known or {})
    model = base_models.resolve(chosen.model) if _lacks(kept, chosen) else None
    if model is not None:
        kept = {"config": dict(model.config), "count": _lines(data)}
        rows = row_facts.of(data, chosen.template, model, kept["count"], chosen.eval_fraction)
        kept["rows"] = dataclasses.asdict(rows)
        if chosen.auto:
            lengths = yield from row_lengths.counting(data, chosen.template, model)
            kept["lengths"] = dataclasses.asdict(lengths)
    said: list[str] = []
    if chosen.auto:
        lengths = RowLengths(tuple(kept["lengths"]["tokens"]), kept["lengths"]["unknown"])
        values, said = presets.settled(chosen, kept["count"], lengths, kept["config"])
        chosen = chosen.settled(values)
    found = of(chosen, kept["config"], Rows(**kept["rows"]), Store(home), capacity.of(home))
    return {**found.to_dict(), "auto": [*told, *said], "known": kept}


def _lacks(known: Mapping[str, Any], recipe: Recipe) -> bool:
    return "rows" not in known or (bool(recipe.auto) and "lengths" not in known)


def _lines(data: Path) -> int:
    """Lines of a file that are not blank; about so many where it is large."""
    read = rows = 0
    with data.open("rb") as file:
        while read < MOST_READ and (piece := file.read(1 << 20)):
            read += len(piece)
            rows += piece.count(b"\n") + (not piece.endswith(b"\n") and len(piece) < 1 << 20)
    return max(round(rows * data.stat().st_size / max(read, 1)), 2)


def keep(store: Store, run: str, given: Mapping[str, Any] | None) -> None:
    """Keep what a queued run was predicted to take in its folder."""
    if given is not None:
        write_whole(store.folder(run) / PREFLIGHT, dict(given))
