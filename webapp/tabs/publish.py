"""Publish: make a finished run a named version in this lab or in another place, and list versions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.errors import LabError
from pipeline.publish import targets
from pipeline.runs import submit
from webapp.home import store
from webapp.tabs import azure, hub, versions
from webapp.tabs.devices import foundry_local
from webapp.ui import check_turns, choices, form, parts, views

TO = "local"
PUBLISH = "publish"
PLACES = [
    ("This lab", TO), ("Azure AI", azure.TO), ("Hugging Face Hub", hub.TO),
    (foundry_local.NAME, foundry_local.TO),
]  # fmt: skip
REFUSED = "Nothing was published"
# A plan may read the whole dataset, in a process; at most this many threads of the page wait for one.
PLANS: dict[str, Any] = {**parts.QUEUED, "concurrency_limit": 2, "concurrency_id": "plans"}
ABOUT = (
    "Before anything is copied, the export is verified: its files fit together and are as they were"
    " written, and it answers, differently with its adapter. Each folder holds the model, its card"
    " (`README.md`), and checksums: `sha256sum -c SHA256SUMS`."
)


def check(inputs: form.Form, run: str | None, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The dry run: what would be published, or what prevents it."""
    try:
        options, chosen = _options(inputs, values), choices.run(store(), run)
        plan = yield from check_turns.steps(
            lambda tell: submit.plan(store(), chosen, TO, options),
            lambda text: (None, {"text": "Planning what would be published…"}, None),
        )
    except (LabError, OSError) as error:
        yield views.problems(REFUSED, error), None, None
        return
    what = f"{len(plan['files'])} files, {display.size(plan['bytes'])}"
    text = f"Version {plan['version']} of {plan['name']}: {what}"
    files = [[file["path"], display.size(file["bytes"])] for file in plan["files"]]
    note = f"They would be copied to {plan['target']}, with a model card and checksums. Nothing was written."
    yield None, {"text": text, "note": note, "kind": "good"}, views.table(["File", "Size"], files)


def publish(inputs: form.Form, run: str | None, *values: Any) -> tuple[Any, ...]:
    """Queue the publishing; the page follows its stage."""
    try:
        found = choices.run(store(), run)
        stage = submit.publish(store(), found, TO, _options(inputs, values))
    except (LabError, OSError) as error:
        return views.problems(REFUSED, error), None, None, None
    return None, None, None, {"run": found.id, "stage": stage}


def arrive(cloud: form.Form, run: str | None, where: str = TO, *values: Any) -> tuple[Any, ...]:
    """The finished runs and the known published versions."""
    found = choices.finished(store())
    ids = [value for _, value in found]
    empty = None if found else {"text": "No finished run yet. When one is done, you can publish it here."}
    return (
        gr.update(choices=found, value=run if run in ids else next(iter(ids), None)),
        empty,
        *versions.listed(cloud, where, *values),
    )


def moved(where: str) -> tuple[Any, ...]:
    """Show the fields and versions of the chosen target, and clear messages about another."""
    columns = [gr.update(visible=where == place) for _, place in PLACES]
    lists = (where in (TO, azure.TO), where == hub.TO, where == foundry_local.TO)
    there = [gr.update(visible=shown) for shown in lists]
    return *columns, *there, *(None,) * 4, gr.update(visible=False)


def ended(cloud: form.Form, where: str) -> tuple[Any, ...]:
    """The versions after a publish has ended; Azure is asked only on request."""
    return versions.listed(cloud, where) if where == TO else (gr.skip(),) * 3


def _options(inputs: form.Form, values: tuple[Any, ...]) -> Any:
    return targets.options_of(TO, inputs.collect(values)[PUBLISH])


class Publish(NamedTuple):
    """Components that app.py connects with other tabs."""

    where: gr.Radio
    models: versions.Registered


def build(tab: gr.Tab) -> Publish:
    """Lay out the tab."""
    inputs = form.Form()
    empty = parts.drawn("notice")
    with gr.Row(elem_classes="fields"):
        run = gr.Dropdown(
            label="Run", info="Finished runs, newest first", allow_custom_value=True, elem_id="publish-run"
        )
        where = gr.Radio(
            PLACES, value=TO, label="Where", elem_id="publish-where",
            info="Where to publish, and whose models are listed below",
        )  # fmt: skip
    with gr.Column() as local:
        inputs.fields(PUBLISH, targets.PUBLISHERS[TO].Options)
        with gr.Row():
            dry = gr.Button("Check first (dry run)", elem_id="publish-check")
            go = gr.Button("Publish", variant="primary", elem_id="publish-go")
    cloud = azure.build()
    on_hub = hub.build()
    on_device = foundry_local.build()
    problems = parts.drawn("problems", elem_id="publish-problems")
    planned = parts.drawn("notice", elem_id="publish-planned")
    findings = parts.drawn("table", elem_id="publish-findings")
    command = gr.Code(
        label="About the same with the Azure CLI", language=None, interactive=False, lines=1,
        wrap_lines=True, show_line_numbers=False, buttons=["copy"], visible=False, elem_id="azure-command",
    )  # fmt: skip
    files = parts.drawn("table")
    progress = parts.drawn("stage", elem_id="publish-progress")
    gr.Markdown(ABOUT)
    with gr.Column() as registry:
        models = versions.build(where, cloud.inputs)
    on_it = hub.published()
    for_device = foundry_local.published()

    given = [run, *inputs.inputs]
    dry.click(partial(check, inputs), given, [problems, planned, files], **PLANS)
    go.click(partial(publish, inputs), given, [problems, planned, files, progress], **PLANS)
    said = [problems, planned, findings, files, command]
    given = [run, *cloud.inputs.inputs]
    cloud.check.click(partial(azure.check, cloud.inputs), given, said, **azure.ASKS)
    cloud.go.click(partial(azure.publish, cloud.inputs), given, [*said, progress], **azure.ASKS)
    hub.connect(on_hub, run, [problems, planned, findings, files], progress)
    foundry_local.connect(on_device, run, [problems, planned, findings, files], progress)
    asked = [where, *cloud.inputs.inputs]
    columns = [local, cloud.column, on_hub.column, on_device.column]
    columns += [registry, on_it.column, for_device.column]
    where.input(moved, where, [*columns, *said], trigger_mode="always_last", **parts.QUICK).then(
        partial(versions.listed, cloud.inputs), asked, models.shown, **parts.QUICK
    )
    for event in (where.input, progress.select, tab.select):
        event(hub.listed, None, on_it.shown, **parts.QUICK)
        event(foundry_local.listed, None, for_device.table, **parts.QUICK)
    progress.select(partial(ended, cloud.inputs), where, models.shown, **parts.QUICK)
    tab.select(partial(arrive, cloud.inputs), [run, *asked], [run, empty, *models.shown], **parts.QUICK)
    tab.select(azure.arrive, cloud.remembered, cloud.remembered, **parts.QUICK)
    return Publish(where, models)
