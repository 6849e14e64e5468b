"""Which way of a scorecard suits best: found by another process once, and kept until more is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import LabError, sentence
from pipeline.runs import check_pool
from pipeline.runs.comparing import scorecard
from pipeline.runs.comparing.scorecard import Row
from pipeline.system import own_process
from webapp.home import store

MOST_KEPT = 32  # sentences
MOST_AT_ONCE = 4  # scorecards that are compared at a time: one that takes long makes room for the last
AGAIN_SECONDS = 60.0  # after which one that could not be compared is tried again
ASKED = "pipeline.runs.comparing.compare_ways:asked"


@dataclass(frozen=True)
class _Found:
    """What is said of runs; `until` is when it is looked at again, None for never."""

    runs: tuple[str, ...]
    text: str
    until: float | None = None


def of(group: str, rows: Sequence[Row]) -> str | None:
    """The sentence on a scorecard's rows, None while it is looked for: a thread has a process do it."""
    runs = (str(store().home), *(row.run for row in scorecard.comparable(rows)))
    if len(runs) < 3:
        return scorecard.best_of_checkpoints(rows) if len(runs) == 1 else ""
    with _changing:
        found = _kept.get(group)
        if (
            found is not None
            and found.runs == runs
            and (found.until is None or time.monotonic() < found.until)
        ):
            return found.text
        if group not in _asked and len(_asked) < MOST_AT_ONCE:
            _asked.add(group)
            try:
                own_process.start_thread(
                    threading.Thread(target=_ask, args=(group, runs), name="best way", daemon=True)
                )
            except LabError:  # whoever looks again has it tried again
                _asked.discard(group)
    return None


def _ask(group: str, runs: tuple[str, ...]) -> None:
    found = _Found(runs, "The ways could not be compared.", time.monotonic() + AGAIN_SECONDS)
    try:
        found = _Found(runs, check_pool.answer(ASKED, {"group": group}, "ways"))
    except (LabError, OSError) as error:
        text = f"The ways could not be compared: {sentence(error)}"
        found = _Found(runs, text, time.monotonic() + AGAIN_SECONDS)
    finally:
        with _changing:
            _asked.discard(group)
            _kept.pop(group, None)
            _kept[group] = found
            for oldest in [*_kept][:-MOST_KEPT]:
                del _kept[oldest]


_changing = threading.Lock()
_kept: dict[str, _Found] = {}
_asked: set[str] = set()
