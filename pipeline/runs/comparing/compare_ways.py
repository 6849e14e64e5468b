"""Which way of a scorecard suits best, by the losses row by row that its runs have kept."""

from __future__ import annotations

import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline import display, settings
from pipeline.inputs.data import datasets
from pipeline.runs.comparing import scorecard
from pipeline.runs.comparing.scorecard import Row
from pipeline.store import Store
from pipeline.store.run import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pipeline.evaluation.measured import MeasuredRows

KIND = "row_losses"
HELD_OUT, EXACT = "held_out", "float"  # kinds of rows of the score stage
SIDE = "base"
LARGEST = 32 << 20  # bytes of a file of losses: score.rows allows 100,000, and there is one of float for each
MOST_WAYS = 12
TELL_ROWS = 20_000


@dataclass(frozen=True)
class Kept:
    """What the run of one way has kept: its export's losses on rows, and the float model's."""

    row: Row
    run: Run
    graph: MeasuredRows
    exact: MeasuredRows

    @property
    def place(self) -> tuple[str, str, str]:
        """What has to be the same, so that a line of one is the same row in another."""
        data = datasets.kept_sha256(Path(self.run.data)) or self.run.data
        return data, str(self.run.recipe.get("model", "")), str(self.run.recipe.get("template", ""))


def best(store: Store, group: str) -> Generator[str, None, str]:
    """Which way suits best, as a sentence; "" while too little is measured. Says how far it is.

    Ways are compared by paired tests on the rows that all of them have read: see `evaluation.ways`. A
    scorecard of an earlier version has kept no rows of its exports: see `scorecard.best_of_checkpoints`.
    Raises OSError.
    """
    rows = scorecard.rows(store, group)
    known = scorecard.comparable(rows)
    if not known:
        return scorecard.best_of_checkpoints(rows)
    kept: list[Kept] = []
    for row in known[-MOST_WAYS:]:
        if (found := (yield from _kept(store.get(row.run), row))) is not None:
            kept.append(found)
    same = [one for one in kept if one.place == kept[0].place]
    others = [one for one in kept if one not in same]
    lines = _lines(same)
    if len(same) < 2 or lines is None:
        return ""
    yield f"Comparing {len(same)} ways on {len(lines):,} rows…"
    said = _said(rows, same, lines)
    copies = scorecard.copies(max((one.row.copies_left_out or 0 for one in same), default=0))
    return said + (f" {copies}." if said and copies else "") + _left_out(others)


def asked(group: str) -> Generator[str, None, str]:
    """`best`, as a process is asked for it."""
    return (yield from best(Store(settings.home()), group))


def _said(rows: Sequence[Row], kept: Sequence[Kept], lines: NDArray[np.int64]) -> str:
    import numpy as np

    from pipeline.evaluation import ways

    given = []
    for one in kept:
        exact, losses = (
            measured.means(side)[np.searchsorted(np.asarray(measured.lines), lines)]
            for measured, side in ((one.exact, EXACT), (one.graph, SIDE))
        )
        if np.isfinite(exact).all() and np.isfinite(losses).all():
            given.append(ways.Way(one.row.algorithm, one.row.bytes or 0, exact, losses))
    if len(given) < 2:
        return ""
    found = ways.best(given)
    alike = [way.name for way in found.alike]
    return scorecard.sentence(found.way.name, found.words, scorecard.share(rows, found.way.bytes), alike)


def _left_out(others: Sequence[Kept]) -> str:
    if not others:
        return ""
    names = display.names(scorecard.NAMES.get(one.row.algorithm, one.row.algorithm) for one in others)
    return f" Not compared, as the data, model or template is another one: {names}."


def _lines(kept: Sequence[Kept]) -> NDArray[np.int64] | None:
    """The lines that all have read, as the same tokens; None if there are none, or nothing is kept."""
    import numpy as np

    if not kept:
        return None
    tables = [measured for one in kept for measured in (one.graph, one.exact)]
    lines = np.asarray(tables[0].lines, np.int64)
    for table in tables[1:]:
        lines = np.intersect1d(lines, np.asarray(table.lines, np.int64), assume_unique=True)
    tokens = [np.asarray(table.tokens)[np.searchsorted(np.asarray(table.lines), lines)] for table in tables]
    lines = lines[np.all([each == tokens[0] for each in tokens], axis=0)] if len(lines) else lines
    return lines if len(lines) else None


def _kept(run: Run, row: Row) -> Generator[str, None, Kept | None]:
    """What a run has kept; None if it is not there any more, or of an export without a float model."""
    path = Path(run.artifact(KIND) or "")
    if not path.is_file() or path.stat().st_size > LARGEST:
        return None
    from pipeline.evaluation.measured import MeasuredRows, read

    found = {HELD_OUT: MeasuredRows(), EXACT: MeasuredRows()}
    with path.open(encoding="utf-8") as file:
        next(file, None)  # what they were measured with
        for number, line in enumerate(file):
            if number % TELL_ROWS == 0:
                yield f"Reading losses of {run.id}: {number:,} rows…"
            entry = json.loads(line)
            if entry.get("kind") in found and entry["tokens"]:
                found[entry["kind"]].add(read(entry))
    if not found[HELD_OUT] or not found[EXACT]:
        return None
    return Kept(row, run, found[HELD_OUT], found[EXACT])
