"""Runs side by side, below the history."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from pipeline.errors import InputError, LabError
from pipeline.inputs.data.telling import ended
from pipeline.publish.report import curves
from pipeline.runs import check_pool, history
from pipeline.runs.comparing import compare_rows
from pipeline.store.run import Run
from webapp.home import known_run, store
from webapp.ui import check_turns, parts, views

MOST = 8  # colours that can be told apart
REFUSED = "Nothing was compared"
UNKNOWN = "The address names runs that cannot be compared"


def compare(checked: str) -> Iterator[tuple[Any, Any]]:
    """The checked runs side by side: the drawing, and problems."""
    yield from _side_by_side(checked, asked=True)


def arrive(request: gr.Request) -> str:
    """The runs that the page's address names, if any, for `arrived`."""
    return request.query_params.get("compare") or ""


def arrived(named: str) -> Iterator[tuple[Any, Any]]:
    """The comparison that the page's address names."""
    if named:
        yield from _side_by_side(named, asked=False)
    else:
        yield gr.skip(), gr.skip()


def _side_by_side(ids: str, *, asked: bool) -> Iterator[tuple[Any, Any]]:
    """The drawing, and problems; nothing new until a process has read the losses."""
    try:
        runs = _known(ids.split(","))
        given = {"home": str(store().home), "runs": [run.id for run in runs]}
        losses = yield from check_turns.steps(
            lambda tell: ended(check_pool.ask("pipeline.publish.report.curves:asked", given, "curves"), tell),
            lambda text: (gr.skip(), None),
        )
        lines = [curves.Losses(curves.Line(**of["training"]), curves.Line(**of["held_out"])) for of in losses]
        shown = views.comparison(runs, history.differences(runs), history.metrics(runs), lines)
    except (LabError, OSError) as error:
        yield None, views.problems(REFUSED if asked else UNKNOWN, error)
        return
    # `at` differs: they are drawn again
    yield {**shown, **_judged(runs), "asked": asked, "at": time.time()}, None


def _known(ids: list[str]) -> list[Run]:
    wanted = list(dict.fromkeys(ids))
    if not 1 < len(wanted) <= MOST:
        raise InputError(f"runs: {len(wanted)} are chosen; check 2 to {MOST} of them in the table")
    return [known_run(run) for run in wanted]


def _judged(runs: list[Run]) -> dict[str, Any]:
    """For two runs, the older one last: they can be judged row by row, or why they cannot."""
    if len(runs) != 2:
        return {}
    newer, older = sorted(runs, key=lambda run: run.created, reverse=True)
    return {"judged": [newer.id, older.id], "why": compare_rows.why_not(older, newer)}


class Panel(NamedTuple):
    """The drawing and what is said of problems, and the runs that the address names."""

    shown: list[gr.HTML]
    named: gr.Textbox


def build() -> Panel:
    """Lay out the panel."""
    problems = parts.drawn("problems", elem_id="comparison-problems")
    shown = [parts.drawn("comparison", module="history.js", elem_id="comparison"), problems]
    named = gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label="Runs of the address")
    named.change(arrived, named, shown, **parts.CHECKS)
    return Panel(shown, named)
