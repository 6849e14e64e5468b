"""Publish: a finished run as a named version in the local registry."""

from __future__ import annotations

from functools import partial
from typing import Any

import gradio as gr

from pipeline import publishers, submit
from pipeline.errors import InputError, LabError
from webapp import choices, form, parts, views
from webapp.home import store

TO = "local"
PUBLISH = "publish"
REFUSED = "Nothing was published"


def check(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """The dry run: what would be published, or what stands against it."""
    try:
        options = _options(inputs, values)
        plan = publishers.PUBLISHERS[TO].plan(store().home, _run(run), options)
    except (LabError, OSError) as error:
        return views.problems(REFUSED, error), None, None
    what = f"{len(plan['files'])} files, {views.size(plan['bytes'])}"
    text = f"Version {plan['version']} of {plan['name']}: {what}"
    files = [[file["path"], views.size(file["bytes"])] for file in plan["files"]]
    note = f"They would be copied to {plan['target']}, with a model card and checksums. Nothing was written."
    return None, {"text": text, "note": note, "kind": "good"}, views.table(["File", "Size"], files)


def publish(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """Queue the publishing; the page follows its stage."""
    try:
        found = _run(run)
        stage = submit.publish(store(), found, TO, _options(inputs, values))
    except (LabError, OSError) as error:
        return views.problems(REFUSED, error), None, None, None
    return None, None, None, {"run": found.id, "stage": stage}


def arrive(run: str | None) -> tuple[Any, ...]:
    """The finished runs and the published versions there are now."""
    found = choices.finished(store())
    ids = [value for _, value in found]
    empty = None if found else {"text": "No finished run yet. When one is done, you can publish it here."}
    return gr.update(choices=found, value=run if run in ids else next(iter(ids), None)), empty, listed()


def listed() -> views.Table:
    """The registry as a table."""
    return views.published(publishers.PUBLISHERS[TO].versions(store().home))


def _run(run: str | None) -> Any:
    if not run:
        raise InputError("run: choose a finished run")
    return store().get(run)


def _options(inputs: form.Form, values: tuple[Any, ...]) -> Any:
    return publishers.options_of(TO, inputs.collect(values)[PUBLISH])


def build(tab: gr.Tab) -> None:
    """Lay out the tab."""
    inputs = form.Form()
    empty = parts.drawn("notice")
    run = gr.Dropdown(
        label="Run", info="Finished runs, newest first", allow_custom_value=True, elem_id="publish-run"
    )
    inputs.fields(PUBLISH, publishers.PUBLISHERS[TO].Options)
    with gr.Row():
        dry = gr.Button("Check first (dry run)", elem_id="publish-check")
        go = gr.Button("Publish", variant="primary", elem_id="publish-go")
    problems = parts.drawn("problems", elem_id="publish-problems")
    planned = parts.drawn("notice")
    files = parts.drawn("table")
    progress = parts.drawn("stage", elem_id="publish-progress")
    versions = parts.drawn("table", elem_id="publish-versions")
    gr.Markdown(
        "Before anything is copied, the export is verified: its files fit together and are as they were"
        " written, and it answers, differently with its adapter. Each folder holds the model, its card"
        " (`README.md`), and checksums: `sha256sum -c SHA256SUMS`."
    )

    given = [run, *inputs.inputs]
    dry.click(partial(check, inputs), given, [problems, planned, files], **parts.QUICK)
    go.click(partial(publish, inputs), given, [problems, planned, files, progress], **parts.QUICK)
    progress.select(listed, None, versions, **parts.QUICK)
    tab.select(arrive, run, [run, empty, versions], **parts.QUICK)
