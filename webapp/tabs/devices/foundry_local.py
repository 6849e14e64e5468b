"""Foundry Local as a place to publish to: a version's name, the dry run, and what was published for it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.publish import check_process, targets
from webapp.home import store
from webapp.tabs import publishing
from webapp.ui import form, parts, views

TO = "foundry-local"
NAME = "Foundry Local"
ASKING = {"text": "Comparing prompts with training… you can keep working meanwhile."}
ABOUT = (
    "Microsoft's runtime for devices takes exports for a CPU; a detachable adapter is bound to the graph."
    " Before a version counts, the real runtime on this machine loads it and answers as the lab does; nothing"
    " is sent anywhere. At first use its package is installed, about 300 MB."
)
NONE = "Nothing was published for it yet."
COLUMNS = ["Verified", "Name", "Version", "Published", "Run", "Model id", "Size", "Folder"]
# At most this many threads of the page wait for it.
ASKS: dict[str, Any] = {**parts.QUEUED, "concurrency_limit": 2, "concurrency_id": TO}


class Foundry(NamedTuple):
    """Components that the Publish tab connects."""

    column: gr.Column
    inputs: form.Form
    check: gr.Button
    go: gr.Button


class Published(NamedTuple):
    """The list of published versions."""

    column: gr.Column
    table: gr.HTML


def check(inputs: form.Form, run: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The dry run: see `publishing.check`."""

    def found(of: str, given: dict[str, Any]) -> dict[str, Any]:
        return check_process.preflight(store().home, NAME, of, TO, given)

    yield from publishing.check(TO, ASKING, found, inputs, run, *values)


def publish(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """Queue the publishing: see `publishing.publish`."""
    return publishing.publish(TO, inputs, run, *values)


def listed() -> views.Table:
    """Versions that this lab published and that are still there."""
    rows = [
        [
            {"status": "done", "word": "Yes"} if version["verified"] else {"status": "failed", "word": "No"},
            version["name"],
            version["version"],
            display.moment(version["created"]),
            version["run"],
            version["id"],
            display.size(version["bytes"]),
            version["path"],
        ]
        for version in targets.PUBLISHERS[TO].versions(store().home)
    ]
    return views.table(COLUMNS, rows, empty=NONE, caption="Published for Foundry Local")


def build() -> Foundry:
    """Lay out the part of the tab that is about it."""
    inputs = form.Form()
    column: gr.Column
    with gr.Column(visible=False) as column:
        gr.Markdown(ABOUT)
        inputs.fields(TO, targets.PUBLISHERS[TO].Options)
        with gr.Row():
            dry = gr.Button("Check first (dry run)", elem_id="foundry-check")
            go = gr.Button("Publish", variant="primary", elem_id="foundry-go")
    return Foundry(column, inputs, dry, go)


def published() -> Published:
    """Lay out what was published from this lab."""
    column: gr.Column
    with gr.Column(visible=False) as column:
        table = parts.drawn("table", elem_id="foundry-versions")
    return Published(column, table)


def connect(made: Foundry, run: Any, said: list[Any], progress: Any) -> None:
    """Connect the buttons with the tab's outputs: problems, summary, findings, files."""
    given = [run, *made.inputs.inputs]
    made.check.click(partial(check, made.inputs), given, said, **ASKS)
    made.go.click(partial(publish, made.inputs), given, [*said, progress], **ASKS)
