"""Vote: which of two answers is better, without knowing whose they are. `assets/vote.js` draws it and asks
`routes/votes.py`; here is only which run."""

from __future__ import annotations

from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import LabError, sentence
from pipeline.runs.voting import blind_rows
from webapp.home import known_run, store
from webapp.ui import parts

NONE = {"text": "No run has recorded answers yet. When one with evaluate is done, you can vote on them here."}


def choose(run: str | None) -> tuple[Any, Any]:
    """Open the booth of a run: what it draws, and a notice where there is nothing to vote on."""
    if not run:
        return None, NONE
    try:
        found = known_run(run)
        blind_rows.recorded(found)
    except (LabError, OSError) as error:
        return None, {"text": sentence(error), "kind": "bad"}
    return {"run": found.id}, None


def arrive(run: str | None, request: gr.Request) -> tuple[Any, ...]:
    """The runs with recorded answers; chosen is the one that was, that the address names, or the newest."""
    runs = store().list(artifact="answers")
    ids = [found.id for found in runs]
    named = run or request.query_params.get("vote")
    current = named if named in ids else next(iter(ids), None)
    labels = [f"{found.name} · {display.moment(found.created)} · {found.id}" for found in runs]
    return gr.update(choices=list(zip(labels, ids, strict=True)), value=current), *choose(current)


def build(tab: gr.Tab) -> None:
    """Lay out the tab."""
    run = gr.Dropdown(
        label="Run",
        info="Whose recorded answers you vote on, newest first",
        allow_custom_value=True,
        elem_id="vote-run",
    )
    notice = parts.drawn("notice", elem_id="vote-notice")
    booth = parts.drawn("vote", module="vote.js", elem_id="vote-booth")
    run.input(choose, run, [booth, notice], trigger_mode="always_last", **parts.QUICK)
    tab.select(arrive, run, [run, booth, notice], js=parts.live("preferred"), **parts.QUICK)
