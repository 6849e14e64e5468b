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
from pipeline.runs.preflight import earlier, fitting, predict, row_facts
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
    recipe: Recipe, model: base_models.Model, data: Path, count: int, rows: Rows | None = None
) -> Preflight:
    """The preflight of a recipe whose model and dataset of so many rows were checked; `rows` is what was
    counted of it before. Raises OSError."""
    home = settings.home()
    if rows is None:
        rows = row_facts.of(data, recipe.template, model, count, recipe.eval_fraction)
    return of(recipe, model.config, rows, Store(home), capacity.of(home))


def of(recipe: Recipe, config: Mapping[str, Any], rows: Rows, store: Store, there: Capacity) -> Preflight:
    """The preflight of a recipe for a model with this config.json."""
    gpu = hardware.on_gpu() and recipe.runs_on != "cpu"
    known = machine.read(store.home, gpu)
    past = earlier.stages(store)
    tried = any(one.model == recipe.model for one in past)
    question = predict.Question(config, rows, known, tried)
    costs = {
        name: _informed(cost, past, recipe, name) for name, cost in predict.costs(recipe, question).items()
    }
    return Preflight(
        costs, rows, predict.passes(recipe, rows), there,
        fitting.problems(recipe, question, there, costs), earlier.errors(past), known.measured, gpu,
    )  # fmt: skip


def _informed(cost: Cost, past: list[earlier.Past], recipe: Recipe, stage: str) -> Cost:
    """A prediction, corrected by what this home has seen."""
    options = dataclasses.asdict(getattr(recipe, stage))
    before = earlier.same(past, stage, options, recipe.model, recipe.data)
    return earlier.like(cost, before) if before else earlier.corrected(cost, past, stage)


def answer(
    recipe: dict[str, Any], rows: dict[str, Any] | None = None
) -> Generator[str, None, dict[str, Any]]:
    """`make` as a process is asked for it, for a recipe on the page, whose data may not be checked yet.

    `rows` is as an earlier answer for the same data had it.
    """
    yield "Looking at the rows…"
    chosen = from_dict(recipe)
    data = Path(chosen.data)
    if data.suffix != ".jsonl" or not data.is_file():
        raise InputError("that is known when the dataset is in this lab")
    model = base_models.resolve(chosen.model)
    known = Rows(**rows) if rows else None
    return make(chosen, model, data, _lines(data) if known is None else 0, known).to_dict()


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
