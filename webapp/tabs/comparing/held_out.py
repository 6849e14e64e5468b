"""What is said of a run's held-out prompts: whether the adapter has seen them."""

from __future__ import annotations

import threading

from pipeline.errors import LabError
from pipeline.runs import submit
from pipeline.store.run import Run

UNSEEN = "Rows held out of training"
SEEN = "Rows held out of training; but all rows have this prompt, so the adapter has seen it"
MOST_AT_ONCE = 2  # runs whose rows are looked at, each for an event that waits
MOST_KEPT = 1024  # runs; what was found of one stays true


def said(run: Run | None) -> str:
    """The sentence on a run's held-out prompts; the usual one where nobody can say just now."""
    if run is None:
        return UNSEEN
    with _changing:
        found = _kept.get(run.id)
    if found is None and _places.acquire(blocking=False):
        try:
            found = submit.one_prompt(run)
            _keep(run.id, found)
        except LabError:
            found = None
        finally:
            _places.release()
    return SEEN if found else UNSEEN


def _keep(run: str, found: bool) -> None:
    with _changing:
        _kept[run] = found
        for oldest in [*_kept][:-MOST_KEPT]:
            del _kept[oldest]


_places = threading.BoundedSemaphore(MOST_AT_ONCE)
_changing = threading.Lock()
_kept: dict[str, bool] = {}
