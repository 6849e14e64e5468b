"""Runs: the history; one selected run in detail."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from pipeline import takeaway, worker
from pipeline.errors import LabError
from pipeline.run import ENDED, RETRYABLE, Run
from webapp import parts, views
from webapp.home import store


class Runs(NamedTuple):
    """What app.py connects with the other tabs."""

    chosen: gr.Textbox
    use: gr.Button


def listed() -> views.Table:
    """All runs as a table."""
    return views.history(store().list())


def select(event: gr.EventData) -> tuple[Any, ...]:
    """Show the run whose row was chosen."""
    return event._data["id"], *details(event._data["id"])


def details(run: str) -> tuple[Any, ...]:
    """Everything recorded of a run: the panel, its title, stages, recipe and what can be done now."""
    found = store().get(run)
    return (
        gr.update(visible=True),
        {"text": f"{found.name} · {found.id}", "note": _error(found)},
        views.stages(found),
        views.recipe_yaml(found.recipe),
        gr.update(interactive=found.status not in ENDED),
        gr.update(interactive=found.status in RETRYABLE),
        gr.update(interactive=takeaway.exported(found) is not None),
    )


def show(run: str) -> tuple[Any, ...]:
    """The history and the selected run as they stand now."""
    return listed(), *details(run)


def retry(run: str) -> tuple[Any, ...]:
    """Queue the selected run again, and show how things stand."""
    try:
        store().retry(run)
    except LabError as error:
        gr.Warning(str(error))
    worker.ensure(store().home)
    return show(run)


def _error(run: Run) -> str:
    return next((stage.error for stage in run.stages if stage.error), "")


def build(tab: gr.Tab) -> Runs:
    """Lay out the tab."""
    with gr.Row(elem_classes="bar"):
        refresh = gr.Button("Refresh", size="sm", elem_id="runs-refresh", scale=0)
    history = parts.drawn("table", elem_id="runs-table")
    chosen = gr.Textbox(visible="hidden", label="Selected run")
    with gr.Column(visible=False, elem_id="run-details") as panel:
        title = parts.drawn("notice")
        with gr.Row(elem_classes="bar"):
            view = gr.Button("Open in the Lab", size="sm", variant="primary", elem_id="runs-open", scale=0)
            use = gr.Button("Use this recipe", size="sm", scale=0, elem_id="runs-use")
            take = gr.Button("Download the model", size="sm", scale=0, elem_id="runs-download")
            stop = gr.Button("Cancel", size="sm", scale=0, elem_id="runs-cancel")
            again = gr.Button("Retry", size="sm", scale=0)
        stages = parts.drawn("table")
        recipe = gr.Code(
            label="Recipe",
            language="yaml",
            interactive=False,
            wrap_lines=True,
            show_line_numbers=False,
            buttons=["copy"],
        )

    shown = [panel, title, stages, recipe, stop, again, take]
    tab.select(listed, None, history, **parts.QUICK)
    refresh.click(listed, None, history, **parts.QUICK)
    history.select(select, None, [chosen, *shown], **parts.QUICK)
    take.click(None, chosen, None, js=parts.live("take"), **parts.IN_PAGE)
    view.click(None, chosen, None, js=parts.live("open"), **parts.IN_PAGE)
    stop.click(None, chosen, None, js=parts.live("cancel"), trigger_mode="multiple", **parts.IN_PAGE).then(
        show, chosen, [history, *shown], **parts.QUICK
    ).then(None, chosen, None, js=parts.live("canceled"), **parts.IN_PAGE).then(
        show, chosen, [history, *shown], **parts.QUICK
    )
    again.click(retry, chosen, [history, *shown], **parts.QUICK)
    return Runs(chosen, use)
