"""Whether a machine can take a recipe, and if not, the nearest setting that it can take."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pipeline import display
from pipeline.runs.preflight.predict import COSTS, Question, changed, costs
from pipeline.stages import evaluate
from pipeline.stages.all_stages import about
from pipeline.stages.costs import evaluate_cost
from pipeline.stages.costs.cost import Cost
from pipeline.stages.recipe import Recipe
from pipeline.system.capacity import Capacity
from pipeline.system.files import KEPT_FREE

USABLE = 0.9  # of main memory: the rest is for other programs
CONTEXT = 700 << 20  # bytes that CUDA itself takes on a GPU
LONGEST = 24 * 3600.0  # seconds for which all rows are measured without asking back
DEFAULT_ROWS = int(evaluate.Options().rows)
MEMORY, GPU_MEMORY, DISK = "memory", "GPU memory", "disk space"


@dataclass(frozen=True)
class Lack:
    """What a stage needs more of than there is, in bytes."""

    stage: str
    what: str
    needed: float
    given: float


def lacks(found: dict[str, Cost], there: Capacity) -> list[Lack]:
    """What stages need more of than there is, the first of each stage; all results stay on the disk."""
    room, taken, missing = float(there.disk - KEPT_FREE), 0.0, []
    for stage, cost in found.items():
        taken += cost.disk.likely
        rows = [(MEMORY, cost.memory.likely, USABLE * there.memory), (DISK, taken, room)]
        if cost.gpu_memory is not None and there.gpu_memory is not None:
            rows.insert(1, (GPU_MEMORY, cost.gpu_memory.likely, float(there.gpu_memory - CONTEXT)))
        missing += [Lack(stage, *row) for row in rows if row[1] > max(row[2], 0.0)][:1]
    return missing


def problems(
    recipe: Recipe, question: Question, there: Capacity, found: dict[str, Cost] | None = None
) -> list[str]:
    """Why a recipe does not fit, one sentence a stage, each with the nearest setting that does.

    `found` is what its stages take, if that is known better than from the question.
    """
    known = costs(recipe, question) if found is None else found
    return [_sentence(recipe, question, there, lack) for lack in lacks(known, there)]


def endless(recipe: Recipe, question: Question, takes: Callable[[Recipe], dict[str, Cost]]) -> list[str]:
    """Why `evaluate.rows: all` is refused, if it would read rows for more than a day: nobody means that.

    `takes` is what the stages of a recipe take. A number of rows is never refused.
    """
    options = recipe.evaluate
    if options is None or options.rows != "all" or "evaluate" not in (found := takes(recipe)):
        return []
    count = evaluate_cost.compared(options, question.rows, question.brought.get("evaluate"))
    few = min(DEFAULT_ROWS, count)
    long = found["evaluate"].seconds.likely
    short = takes(changed(recipe, "evaluate", {"rows": few}))["evaluate"].seconds.likely
    if long <= LONGEST or count == few:
        return []
    return [
        f"evaluate.rows: all takes about {display.about(long)} for {count:,} rows; {few} from all over them"
        f" take about {display.about(short)}. Give a number; {count} reads all of them anyway"
    ]


def _sentence(recipe: Recipe, question: Question, there: Capacity, lack: Lack) -> str:
    needs = (
        f"needs about {display.size(lack.needed)} of {lack.what}, and {display.size(max(lack.given, 0.0))}"
        " can be used here"
    )
    if lack.what == DISK:
        return f"{lack.stage}: {needs}; delete runs, or free space on the disk"
    nearest = _nearest(recipe, lack, lambda other: lacks(costs(other, question), there))
    if nearest is None:
        instead = about(lack.stage, "SMALLER", "a smaller model")
        return f"{lack.stage}: {needs}, whatever its options are; choose {instead}"
    option, value, others = nearest
    chosen = getattr(getattr(recipe, lack.stage), option)
    beside = " and ".join(f"{lack.stage}.{name} {_word(other)}" for name, other in others.items())
    return (
        f"{lack.stage}.{option}: {_word(chosen)} {needs}; {_word(value)} fits{beside and f' with {beside}'}"
    )


def _nearest(
    recipe: Recipe, lack: Lack, lacking: Callable[[Recipe], list[Lack]]
) -> tuple[str, object, dict[str, object]] | None:
    """The first smaller setting with which the stage fits: option, value and what changes beside it."""
    given = getattr(recipe, lack.stage)
    for option, value, changes in COSTS[lack.stage].smaller(given):
        others = {
            name: new for name, new in changes.items() if name != option and getattr(given, name) != new
        }
        if all(one.stage != lack.stage for one in lacking(changed(recipe, lack.stage, changes))):
            return option, value, others
    return None


def _word(value: object) -> str:
    """A value as a recipe has it."""
    return str(value).lower() if isinstance(value, bool) else str(value)
