"""Registered models: the versions there are, two beside each other, and what can be done with one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline.errors import LabError, sentence
from webapp import parts, registered
from webapp.home import store
from webapp.registered import AZURE, LOCAL, Version
from webapp.tabs import azure

NOT_A_BASE = (
    "This is an export of the lab, ONNX for answering, from which no training can start. A new run can start"
    " from its base model, {base}."
)
NOT_ASKED = "Refresh asks Azure which versions there are."
CLOSED = (
    "Keep this page open meanwhile. If it is closed or the line drops, Pull again: it goes on where it was."
)
PULLED = "Compare answers from runs of this lab only, so a pulled folder cannot be chosen there."


class Registered(NamedTuple):
    """What the tabs connect."""

    shown: list[gr.HTML]
    refresh: gr.Button
    chosen: gr.Textbox
    run: gr.Textbox
    use: gr.Button
    compare: gr.Button


def listed(where: str) -> tuple[Any, ...]:
    """The versions as they are known, without asking Azure: table, no differences, no details."""
    found = registered.versions(store(), where)
    asked = registered.asked(store().home) if where == AZURE else "This lab"
    empty = "Nothing is published yet." if where == LOCAL else NOT_ASKED
    if where == AZURE and asked:
        empty = "This workspace has no registered model yet."
    return registered.table(found, where, empty, asked), None, gr.update(visible=False)


def refresh(inputs: Any, where: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The versions as they are now: a notice, table, no differences, no details."""
    if where == AZURE:
        yield azure.ASKING, *(gr.skip(),) * 3
        try:
            registered.ask_azure(store().home, azure.place_of(inputs, values))
        except (LabError, OSError) as error:
            yield {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 3
            return
    yield None, *listed(where)


def check(where: str, event: gr.EventData) -> tuple[Any, Any]:
    """Two that are checked beside each other: a notice, and the table of their differences."""
    ids = event._data["ids"]
    if len(ids) != 2:
        return {"text": "Check two versions to see how they differ."} if ids else None, None
    try:
        one, other = (registered.one(store(), where, chosen) for chosen in ids)
    except LabError as error:
        return {"text": sentence(error), "kind": "bad"}, None
    return None, registered.differences(one, other)


def select(where: str, event: gr.EventData) -> tuple[Any, ...]:
    """The version whose row was chosen: notice, id, run, panel, title, table, link, and what can be done."""
    try:
        version = registered.one(store(), where, event._data["id"])
    except LabError as error:
        return {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 9
    run = registered.run_of(store(), version)
    return (
        None,
        version["id"],
        run.id if run else "",
        gr.update(visible=True),
        _title(version),
        registered.details(version),
        {"text": "Open in the Azure portal", "href": version["portal"]} if where == AZURE else None,
        gr.update(interactive=not registered.exported(version)),
        gr.update(visible=where == AZURE),
        gr.update(interactive=run is not None),
    )


def _title(version: Version) -> dict[str, str]:
    text = f"{version['name']}, version {version['version']}"
    if not registered.exported(version):
        return {"text": text}
    return {"text": text, "note": NOT_A_BASE.format(base=version["tags"].get("base") or "as its card says")}


async def pull(inputs: Any, where: str, chosen: str, *values: Any) -> AsyncIterator[tuple[Any, Any]]:
    """Download a version of Azure's into the home: a notice, and the command to try it."""
    try:
        version = registered.one(store(), where, chosen)
        folder = registered.folder(store().home, version)
        if not folder.exists():
            yield {"text": "Asking Azure for the files…", "note": CLOSED}, gr.update(visible=False)
            login = azure.place_of(inputs, values).login
            async for said in registered.pull(store().home, login, version):
                yield {"text": said, "note": CLOSED}, gr.skip()
    except (LabError, OSError) as error:
        yield {"text": sentence(error), "kind": "bad"}, gr.update(visible=False)
        return
    note = {"text": f"It is here, as it is in Azure: {folder}", "note": PULLED, "kind": "good"}
    yield note, gr.update(value=f"python -m pipeline verify {folder}", visible=True)


def base(where: str, chosen: str) -> tuple[Any, Any]:
    """A version as the model of the Lab's form, which is opened."""
    return registered.one(store(), where, chosen)["id"], gr.update(open=True)


def build(where: gr.Radio, inputs: Any) -> Registered:
    """Lay out the section. `where` says whose versions it is about, `inputs` is Azure's form."""
    with gr.Row(elem_classes="bar"):
        parts.fixed("<h2 class='lab-title'>Registered models</h2>")
        again = gr.Button("Refresh", size="sm", scale=0, elem_id="models-refresh")
    notice = parts.drawn("notice", elem_id="models-notice")
    versions = parts.drawn("table", elem_id="publish-versions")
    apart = parts.drawn("table", elem_id="models-differences")
    chosen, run = (gr.Textbox(visible="hidden", label=label) for label in ("Version", "Its run"))
    with gr.Column(visible=False, elem_id="models-details") as panel:
        title = parts.drawn("notice")
        with gr.Row(elem_classes="bar"):
            use = gr.Button(
                "Use as base of a new run", size="sm", scale=0, min_width=210, elem_id="models-use"
            )
            compare = gr.Button("Compare", size="sm", scale=0, elem_id="models-compare")
            get = gr.Button("Pull", size="sm", scale=0, elem_id="models-pull")
            stop = gr.Button("Stop", size="sm", scale=0, elem_id="models-stop", visible=False)
            link = parts.drawn("link", elem_id="models-portal")
        told = parts.drawn("notice", elem_id="models-pulled")
        same = gr.Code(label="Have it answer, in a terminal", language=None, interactive=False, lines=1,
                       show_line_numbers=False, buttons=["copy"], visible=False)  # fmt: skip
        table = parts.drawn("table", elem_id="models-facts")
    shown = [versions, apart, panel]
    asked = [where, *inputs.inputs]
    again.click(partial(refresh, inputs), asked, [notice, *shown], **azure.ASKS)
    versions.check(check, where, [notice, apart], trigger_mode="multiple", **parts.QUICK)
    versions.select(
        select, where, [notice, chosen, run, panel, title, table, link, use, get, compare], **parts.QUICK
    ).then(lambda: (None, gr.update(visible=False)), None, [told, same], **parts.QUICK)
    get.click(lambda: gr.update(visible=True), None, stop, **parts.QUICK)
    pulling = get.click(
        partial(pull, inputs), [where, chosen, *inputs.inputs], [told, same],
        concurrency_limit=1, concurrency_id="pull", **parts.QUEUED,
    )  # fmt: skip
    pulling.then(lambda: gr.update(visible=False), None, stop, **parts.QUICK)
    stop.click(None, None, None, cancels=[pulling], **parts.QUICK).then(
        lambda: ({"text": "Stopped. Pull again to go on where it was."}, gr.update(visible=False)),
        None, [told, stop], **parts.QUICK,
    )  # fmt: skip
    compare.click(None, run, None, js=parts.live("compare"), **parts.IN_PAGE)
    return Registered(shown, again, chosen, run, use, compare)
