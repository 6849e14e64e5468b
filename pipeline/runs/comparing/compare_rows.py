"""Two runs judged on the same held-out rows: two adapters, or two quantizations, with the verdict of one run.

Their evaluations have kept both sides' losses row by row; rows are paired by their line in the dataset.
"""

from __future__ import annotations

import json
import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.inputs.data import datasets, telling
from pipeline.inputs.prompts import templates
from pipeline.store import Store
from pipeline.store.run import DONE, ENDED, Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.measured import Floats, MeasuredRows

EVALUATE, KIND = "evaluate", "row_losses"
Side = Literal["adapter", "base"]
SIDES: tuple[Side, ...] = ("adapter", "base")
HELD_OUT = "held_out"
LARGEST = 1 << 30  # bytes of a file of losses: about ten million rows
LARGEST_ASKED = 8 << 20  # and of one that a process reads for the page: a minute or two,
MOST_ASKED = 50_000  # with as many rows as the table of examples lists (`examples.rows.MOST_ROWS`)
TELL_ROWS = 50_000
MOST_SHOWN = 10  # rows that differ most


@dataclass(frozen=True)
class Losses:
    """Losses of a run's held-out rows."""

    run: Run
    rows: MeasuredRows

    @property
    def sides(self) -> set[str]:
        """The sides that every row has."""
        return {*self.rows.sides} & {*SIDES}


@dataclass(frozen=True)
class Paired:
    """Losses of two runs on the lines and sides that both have; `at` is where the lines are in each."""

    first: Losses
    second: Losses
    lines: NDArray[np.int64]
    at: tuple[NDArray[np.intp], NDArray[np.intp]]
    sides: list[Side]

    def means(self, side: Side) -> tuple[Floats, Floats]:
        """Nats a token by line, float64 [lines], of the first run and of the second."""
        return self.first.rows.means(side)[self.at[0]], self.second.rows.means(side)[self.at[1]]

    def farthest(self) -> list[tuple[int, list[float]]]:
        """Up to MOST_SHOWN lines whose losses differ, those that differ most first, on the first side, with
        both losses. Where only one of them is a number, they are infinitely far apart."""
        import numpy as np

        one, other = self.means(self.sides[0])
        gaps = np.where(np.isnan(one) & np.isnan(other), 0.0, np.abs(other - one))
        gaps[np.isnan(gaps)] = np.inf
        most = np.argsort(-gaps, kind="stable")[:MOST_SHOWN]
        return [(int(self.lines[at]), [float(one[at]), float(other[at])]) for at in most if gaps[at]]


def judge(one: Run, other: Run) -> dict[str, Any]:
    """{"runs": [id, id], "rows": so many, "adapter": verdict, "base": verdict} of the second run against the
    first, without the sides that they don't both have; see `evaluation.verdict` for a verdict.

    Raises InputError if they were not measured on the same rows.
    """
    return _judged(telling.ended(_pairing(one, other, LARGEST)))


def asked(one: str, other: str) -> Generator[str, None, dict[str, Any]]:
    """What `judge` finds, as a process is asked for it by ids, with the mean loss of both runs as `means` of
    each side, and with `apart`: of the first `side`, the `lines` that differ most as `two_runs.told` has
    them, with the `losses` of both runs. `answered` are sentences on the files that gave both runs' answers,
    and `changed` on those that are others by now.

    Raises InputError as `judge` does, and OSError.
    """
    from pipeline.evaluation.examples import rows, two_runs

    store = Store(settings.home())
    first, second = store.get(one), store.get(other)
    paired = yield from _pairing(first, second, LARGEST_ASKED)
    yield f"Comparing {len(paired.lines):,} rows…"
    found = _judged(paired)
    for side in paired.sides:
        found[side]["means"] = [_number(float(of.mean())) for of in paired.means(side)]
    side, farthest = paired.sides[0], dict(paired.farthest())
    told = yield from two_runs.told(rows.of_run(first), rows.of_run(second), [*farthest], side)
    for row in told:
        row["losses"] = [_number(loss) for loss in farthest[row["line"]]]
    yield "Comparing checksums…"
    both = [(run.id, rows.of_run(run).answered) for run in (first, second)]
    answered = [f"{run}: {files.sentence}" for run, files in both if files.sides]
    changed = [f"{run}: {text}" for run, files in both if files.sides for text in files.changes]
    return {**found, "apart": {"side": side, "rows": told}, "answered": answered, "changed": changed}


def sentences(found: dict[str, Any]) -> list[str]:
    """What `judge` has found, a sentence a side."""
    first, second = found["runs"]
    named = {"adapter": "with their adapters", "base": "without adapters"}
    return [
        f"{second} against {first}, {named[side]}: {found[side]['text']}" for side in SIDES if side in found
    ]


def offered(run: Run, among: Sequence[Run]) -> list[Run]:
    """Those whose rows can be paired with those of a run, as far as their records tell: on data of another
    name there may be one more, which only a look at the data could tell."""
    if why_none(run):
        return []
    return [one for one in among if _named_data(one) == _named_data(run) and not why_not(one, run)]


def why_none(run: Run) -> str:
    """Why a run has no rows to compare and what to do, "" if it has."""
    stage = next((stage for stage in run.stages if stage.name == EVALUATE), None)
    if run.deleted is not None:
        return f"{run.id}: is deleted; restore it to compare it"
    if stage is None:
        return f"{run.id}: was not evaluated; use its recipe again with evaluate"
    if stage.status != DONE:
        then = "retry it" if run.status in ENDED else "wait for it"
        return f"{run.id}: has no evaluation that is done; {then} to compare it"
    return (
        ""
        if _file(run)
        else (f"{run.id}: has no losses row by row; use its recipe again with evaluate.rows above 0")
    )


def why_not(one: Run, other: Run) -> str:
    """Why the rows of two runs are no pairs and what to do, "" if they are, as far as their records tell:
    no dataset is read."""
    names = f"{one.id} and {other.id}"
    if one.id == other.id:
        return f"{one.id}: is compared with itself; choose another run"
    if why := why_none(one) or why_none(other):
        return why
    named = [_named_data(run) for run in (one, other)]
    if named[0] != named[1] and all(datasets.HASHED.fullmatch(name) for name in named):
        return _other_data(names)
    keys: tuple[tuple[str, Any], ...] = (("template", templates.CHAT),)
    if not all(map(_own_file, (one, other))):
        keys += (("eval_fraction", 0.1), ("seed", 0))
    for key, default in keys:
        values = [run.recipe.get(key, default) for run in (one, other)]
        if values[0] != values[1]:
            return (
                f"{names}: differ in {key}, so they were not evaluated on the same rows; repeat one with the"
                f" other's {key}"
            )
    return ""


def _other_data(names: str) -> str:
    return (
        f"{names}: were evaluated on different data, so their rows are no pairs; repeat one with the other's"
        " data"
    )


def _judged(paired: Paired) -> dict[str, Any]:
    import numpy as np

    from pipeline.evaluation import verdict as verdicts

    first, second = paired.first.run.id, paired.second.run.id
    own = _own_file(paired.second.run)
    words = f"loss on the answers of {display.short(Path(own).name)}" if own else verdicts.LOSS.words
    pairs = {
        verdicts.Metric(
            side, words, less_is_better=True, of_base=True, base=f"{first} predicts", other="it predicts"
        ): paired.means(side)
        for side in paired.sides
    }
    found = {name: judged.to_json() for name, judged in verdicts.judge_all(pairs).items()}
    for metric, (before, after) in pairs.items():
        if np.array_equal(before, after, equal_nan=True):
            found[metric.name]["text"] = f"No difference: equal losses on all {len(before):,} rows."
    return {"runs": [first, second], "rows": len(paired.lines), **found}


def _pairing(one: Run, other: Run, largest: int) -> Generator[str, None, Paired]:
    """Read the losses of two runs, of up to `largest` bytes each. Raises InputError if they are no pairs."""
    import numpy as np

    names = f"{one.id} and {other.id}"
    if why := why_not(one, other):
        raise InputError(why)
    yield "Looking at the data of both runs…"
    if _data(one) != _data(other):
        raise InputError(_other_data(names))
    first = yield from _losses(one, largest)
    second = yield from _losses(other, largest)
    lines, *at = np.intersect1d(first.rows.lines, second.rows.lines, assume_unique=True, return_indices=True)
    differ = np.asarray(first.rows.tokens)[at[0]] != np.asarray(second.rows.tokens)[at[1]]
    if differ.any():
        raise InputError(
            f"{names}: their models read line {int(lines[differ][0]):,} as other tokens, so losses a token"
            " are not comparable; choose runs of models with one tokenizer"
        )
    sides = [side for side in SIDES if side in first.sides & second.sides]
    if not len(lines):
        raise InputError(f"{names}: have no held-out row in common; repeat one with more rows, evaluate.rows")
    if not sides:
        raise InputError(
            f"{names}: have no side in common, with or without an adapter; repeat one with"
            " optimize.adapter: detachable"
        )
    return Paired(first, second, lines, (at[0], at[1]), sides)


def _losses(run: Run, largest: int) -> Generator[str, None, Losses]:
    path = _file(run)
    if path is None:
        raise InputError(why_none(run))
    for_page = largest < LARGEST
    wanted = f"{settings.command()} compare" if for_page else "a smaller evaluate.rows"
    too_many = InputError(f"{run.id}: its losses row by row are too many to compare here; use {wanted}")
    if path.stat().st_size > largest:
        raise too_many
    from pipeline.evaluation.measured import MeasuredRows, read

    found = MeasuredRows()
    for row in _held_out(path):
        if len(found) % TELL_ROWS == 0:
            yield f"Reading losses of {run.id}: {len(found):,} rows…"
        found.add(read(row))
        if for_page and len(found) > MOST_ASKED:
            raise too_many
    return Losses(run, found)


def _held_out(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        next(file, None)  # what they were measured with
        for line in file:
            row = json.loads(line)
            if row.get("kind") == HELD_OUT and row["tokens"]:
                yield row


def _file(run: Run) -> Path | None:
    """The losses that a run's evaluation has kept, if they are there."""
    path = run.artifact(KIND)
    return Path(path) if path and Path(path).is_file() else None


def _own_file(run: Run) -> str | None:
    """The file that a run's evaluation was given in place of held-out rows."""
    return (run.recipe.get(EVALUATE) or {}).get("data") or None


def _evaluated_on(run: Run) -> Path:
    return Path(_own_file(run) or run.data)


def _named_data(run: Run) -> str:
    """`_data` without a look at it: the path where its name does not tell its content."""
    path = _evaluated_on(run)
    return datasets.named_sha256(path) or str(path)


def _data(run: Run) -> str:
    """What tells the rows of a run's evaluation apart from others: of a file of its own, or of its data."""
    path = _evaluated_on(run)
    return datasets.kept_sha256(path) or str(path)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
