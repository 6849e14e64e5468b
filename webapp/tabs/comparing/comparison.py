"""Runs side by side, below the history."""

from __future__ import annotations

import time
from typing import Any

import gradio as gr

from pipeline.errors import InputError, LabError
from pipeline.publish.report import curves
from pipeline.runs import compare_rows, history
from pipeline.store.run import Run
from webapp.home import known_run, store
from webapp.ui import parts, views

MOST = 8  # colours that can be told apart


def compare(checked: str) -> tuple[Any, ...]:
    """The checked runs side by side: the drawing, and problems."""
    try:
        return _compared(checked.split(","), asked=True), None
    except LabError as error:
        return None, views.problems("Nothing was compared", error)


def arrive(request: gr.Request) -> tuple[Any, ...]:
    """The comparison that the page's address names, if any."""
    named = request.query_params.get("compare")
    try:
        return (_compared(named.split(","), asked=False), None) if named else (None, None)
    except LabError as error:
        return None, views.problems("The address names runs that cannot be compared", error)


def _compared(ids: list[str], *, asked: bool) -> dict[str, Any]:
    wanted = list(dict.fromkeys(ids))
    if not 1 < len(wanted) <= MOST:
        raise InputError(f"runs: {len(wanted)} are chosen; check 2 to {MOST} of them in the table")
    runs = [known_run(run) for run in wanted]
    losses = [curves.losses(store(), run) for run in runs]
    shown = views.comparison(runs, history.differences(runs), history.metrics(runs), losses)
    return {**shown, **_judged(runs), "asked": asked, "at": time.time()}  # `at` differs: they are drawn again


def _judged(runs: list[Run]) -> dict[str, Any]:
    """For two runs, the older one last: they can be judged row by row, or why they cannot."""
    if len(runs) != 2:
        return {}
    newer, older = sorted(runs, key=lambda run: run.created, reverse=True)
    return {"judged": [newer.id, older.id], "why": compare_rows.why_not(older, newer)}


def build() -> list[gr.HTML]:
    """Lay out the panel: the drawing, and what `compare` says of problems."""
    problems = parts.drawn("problems", elem_id="comparison-problems")
    return [parts.drawn("comparison", module="history.js", elem_id="comparison"), problems]
