"""Registered models: list versions, compare two, and use one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import gradio as gr

from pipeline import settings
from pipeline.errors import InputError, LabError, sentence
from pipeline.runs import pulls
from pipeline.store.run import DONE
from webapp.handler_values import picked, ticked
from webapp.home import store
from webapp.tabs import azure
from webapp.ui import check_turns, choices, parts, version_tables, views
from webapp.ui.version_tables import AZURE, LOCAL, Version

NOT_A_BASE = (
    "This is an ONNX export of the lab, for answering; training cannot start from it. A new run can start"
    " from its base model, {base}."
)
NOT_ASKED = "Refresh asks Azure which versions there are."


class Registered(NamedTuple):
    """Components that the tabs connect."""

    shown: list[gr.HTML]
    refresh: gr.Button
    chosen: gr.Textbox
    use: gr.Button
    compare: gr.Button


def listed(inputs: Any, where: str, *values: Any) -> tuple[Any, ...]:
    """The known versions, without asking Azure: table, no differences, no details.

    For Azure, those of the workspace that the form names.
    """
    if where == LOCAL:
        found = version_tables.of_lab(store())
        table = version_tables.table(found, where, "Nothing is published yet.", "This lab")
        return table, None, gr.update(visible=False)
    kept = None
    with suppress(InputError):  # the form does not name one yet
        kept = version_tables.of_azure(store().home, azure.place_of(inputs, values))
    empty = f"{kept}: it has no registered model yet." if kept else NOT_ASKED
    shown = kept.versions if kept else []
    found = [*shown, *version_tables.pulled(store().home, shown)]
    table = version_tables.table(found, where, empty, str(kept or ""))
    return table, None, gr.update(visible=False)


def refresh(inputs: Any, where: str, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The current versions: a notice, table, no differences, no details."""
    if where == AZURE:
        yield azure.ASKING, *(gr.skip(),) * 3
        try:
            place = azure.place_of(inputs, values)
            yield from check_turns.steps(
                lambda tell: version_tables.ask_azure(store().home, place),
                lambda text: (azure.ASKING, *(gr.skip(),) * 3),
            )
        except (LabError, OSError) as error:
            yield {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 3
            return
    yield None, *listed(inputs, where, *values)


def check(where: str, event: gr.EventData) -> tuple[Any, Any]:
    """Compare two checked versions: a notice, and the table of their differences."""
    ids = ticked(event)
    if len(ids) != 2:
        return {"text": "Check two versions to see how they differ."} if ids else None, None
    try:
        one, other = (version_tables.one(store(), where, chosen) for chosen in ids)
    except LabError as error:
        return {"text": sentence(error), "kind": "bad"}, None
    return None, version_tables.differences(one, other)


def select(where: str, event: gr.EventData) -> tuple[Any, ...]:
    """Show the selected version: notice, id, panel, title, table, link, base, and `copy`."""
    try:
        version = version_tables.one(store(), where, picked(event))
    except LabError as error:
        return {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 12
    return (
        None,
        version["id"],
        gr.update(visible=True),
        _title(version),
        version_tables.details(version),
        {"text": "Open in the Azure portal", "href": version["portal"]} if version.get("portal") else None,
        gr.update(interactive=not version_tables.exported(version)),
        *copy(where, version["id"]),
    )


def copy(where: str, chosen: str) -> tuple[Any, ...]:
    """The local copy of a version: its name in Compare, the Compare, Pull and Remove buttons, the progress of
    its pull, and the command to try it."""
    try:
        version = version_tables.one(store(), where, chosen)
    except LabError:  # the list has changed meanwhile
        return (gr.skip(),) * 6
    comparable = version_tables.comparable(store(), where, version)
    known = pulls.facts(store().home, version_tables.key(store().home, version)) if where == AZURE else None
    here = known is not None and known["status"] == DONE
    folder = pulls.folder(store().home, version_tables.key(store().home, version))
    return (
        comparable,
        gr.update(interactive=bool(comparable)),
        gr.update(visible=where == AZURE and not here),
        gr.update(visible=known is not None),
        {"pulled": known["key"], "status": known["status"]} if known else None,
        gr.update(
            value=f"{settings.command()} verify {folder}",
            visible=known is not None and choices.answers(store(), known),
        ),
    )


def _title(version: Version) -> dict[str, str]:
    text = f"{version['name']}, version {version['version']}"
    if not version_tables.exported(version):
        return {"text": text}
    return {"text": text, "note": NOT_A_BASE.format(base=version["tags"].get("base") or "as its card says")}


def pull(inputs: Any, where: str, chosen: str, *values: Any) -> tuple[Any, ...]:
    """Start or resume pulling a version from Azure: a notice, and `copy`."""
    try:
        version = version_tables.one(store(), where, chosen)
        pulls.start(store().home, version, azure.place_of(inputs, values).login)
    except (LabError, OSError) as error:
        return {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 6
    return None, *copy(where, chosen)


def ask_remove() -> dict[str, Any]:
    """The question before a copy is removed."""
    return views.question(
        "Remove this copy?", ["It stays in Azure, from where it can be pulled again."], "Remove"
    )


def remove(where: str, chosen: str) -> tuple[Any, ...]:
    """Remove the local copy of a version: a notice, and `copy`."""
    try:
        version = version_tables.one(store(), where, chosen)
        pulls.remove(store().home, version_tables.key(store().home, version))
    except (LabError, OSError) as error:
        return {"text": sentence(error), "kind": "bad"}, *(gr.skip(),) * 6
    return {"text": "The copy was removed."}, *copy(where, chosen)


def base(where: str, chosen: str) -> tuple[Any, Any]:
    """Open the Lab's form with a version as its model."""
    return version_tables.one(store(), where, chosen)["id"], gr.update(open=True)


def build(where: gr.Radio, inputs: Any) -> Registered:
    """Lay out the section. `where` says whose versions it is about, `inputs` is Azure's form."""
    with gr.Row(elem_classes="bar"):
        parts.fixed("<h2 class='lab-title'>Registered models</h2>")
        again = gr.Button("Refresh", size="sm", scale=0, elem_id="models-refresh")
    notice = parts.drawn("notice", elem_id="models-notice")
    versions = parts.drawn("table", elem_id="publish-versions")
    apart = parts.drawn("table", elem_id="models-differences")
    chosen, comparable = (
        gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label=label)
        for label in ("Version", "In Compare")
    )
    with gr.Column(visible=False, elem_id="models-details") as panel:
        title = parts.drawn("notice")
        with gr.Row(elem_classes="bar"):
            use = gr.Button(
                "Use as base of a new run", size="sm", scale=0, min_width=210, elem_id="models-use"
            )
            compare = gr.Button(
                "Compare answers", size="sm", scale=0, min_width=150, elem_id="models-compare"
            )
            get = gr.Button("Pull", size="sm", scale=0, elem_id="models-pull")
            drop = gr.Button("Remove the copy", size="sm", scale=0, min_width=150, elem_id="models-remove")
            link = parts.drawn("link", elem_id="models-portal")
        told = parts.drawn("stage", elem_id="models-pulled")
        whether = parts.drawn("question")
        same = gr.Code(label="Check it in a terminal", language=None, interactive=False, lines=1,
                       show_line_numbers=False, buttons=["copy"], visible=False)  # fmt: skip
        table = parts.drawn("table", elem_id="models-facts")
    shown = [versions, apart, panel]
    asked = [where, *inputs.inputs]
    again.click(partial(refresh, inputs), asked, [notice, *shown], **azure.ASKS)
    versions.check(check, where, [notice, apart], trigger_mode="multiple", **parts.QUICK)
    here = [comparable, compare, get, drop, told, same]
    versions.select(
        select, where, [notice, chosen, panel, title, table, link, use, *here],
        trigger_mode="multiple", **parts.QUICK,
    )  # fmt: skip
    get.click(partial(pull, inputs), [where, chosen, *inputs.inputs], [notice, *here], **parts.QUICK)
    told.select(copy, [where, chosen], here, **parts.QUICK)
    drop.click(ask_remove, None, whether, **parts.QUICK)
    whether.select(remove, [where, chosen], [notice, *here], **parts.QUICK)
    compare.click(None, comparable, None, js=parts.live("compare"), **parts.IN_PAGE)
    return Registered(shown, again, chosen, use, compare)
