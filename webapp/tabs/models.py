"""The Lab tab's panel of base models: what one is and whether it fits, fetching it, and those in the lab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from pipeline.inputs.data import telling
from pipeline.inputs.models import about, catalogue
from pipeline.inputs.models.base_models import Model
from pipeline.runs import cached_models, disk, pulls
from pipeline.runs.cached_models import Cached
from pipeline.system import capacity
from webapp import local_models
from webapp.handler_values import picked
from webapp.home import store
from webapp.ui import check_turns, choices, form, parts, views

ASKING = {"text": "Asking what this model is… you can keep working meanwhile."}
REFUSED = "This model cannot be used"
ABOUT = (
    f"Size, license and context of the listed models are as known on {catalogue.KNOWN}; of any other they"
    " come from its own files. Give an id of the Hugging Face Hub (`org/name`) or of Azure"
    " (`azureml:NAME:VERSION`, `azureml://…`), or choose a folder that is offered."
)
FACTS = ["What", "Value"]
COLUMNS = ["Model", "Size", "Last used", "State"]
NONE = "No base model is in this lab yet. The first run fetches the one it needs; Download does it before."


def look(model: str | None) -> Iterator[tuple[Any, ...]]:
    """What a model is: notice, problems, facts, progress of a download, the Download button."""
    yield ASKING, None, None, gr.skip(), gr.update(interactive=False)
    try:
        found, one = yield from check_turns.steps(
            lambda tell: _resolved(model, tell),
            lambda _: (ASKING, None, None, gr.skip(), gr.update(interactive=False)),
        )
        rows, good = _facts(found, one)
    except (LabError, OSError) as error:
        yield None, views.problems(REFUSED, error), None, None, gr.update(interactive=False)
        return
    fetchable = found.kind in ("hub", "azureml") and not found.folder(store().home).is_dir()
    told = {
        "text": display.line(found.id),
        "note": good.reason,
        "kind": "bad" if good.fits is False else "good",
    }
    yield told, None, rows, None, gr.update(interactive=fetchable)


def _resolved(model: str | None, tell: Callable[[str], None]) -> tuple[Model, about.About]:
    """A model that the page offers or a hub has, and what is known of it. Raises LabError, OSError."""
    with closing(cached_models.looking(local_models.known(model))) as steps:
        return telling.ended(steps, tell)


def _facts(model: Model, one: about.About) -> tuple[views.Table, about.Fit]:
    """The facts of a model as a table, and whether this machine can take it."""
    fit = about.fit(one, capacity.of(store().home))
    gate = about.gate(one)
    rows = [
        ["Parameters", display.parameters(one.parameters) if one.parameters else "unknown"],
        ["Weights", display.size(one.bytes) or "unknown"],
        ["License", one.licence or "unknown: see its card before you use it"],
        ["Context", f"{one.context:,} tokens" if one.context else "unknown"],
        [
            "Gated",
            f"yes: {gate}" if gate else "yes" if one.gated else "no" if one.gated is False else "unknown",
        ],
        ["This machine", f"{fit.word}: {fit.reason}"],
        ["In this lab", "yes" if one.here else "it comes with it" if model.kind == "starter" else "no"],
    ]
    return views.table(FACTS, rows, caption=display.line(model.id)), fit


def fetch(model: str | None) -> Iterator[tuple[Any, ...]]:
    """Begin to download a model, or go on: problems, progress, the Download button."""
    yield None, gr.skip(), gr.update(interactive=False)
    try:
        found, _ = yield from check_turns.steps(
            lambda tell: _resolved(model, tell),
            lambda _: (None, gr.skip(), gr.update(interactive=False)),
        )
        if found.kind not in ("hub", "azureml"):
            raise InputError(f"model: {display.line(found.id)} is on this machine already")
        key = pulls.start_base(store().home, found)
    except (LabError, OSError) as error:
        yield views.problems("Nothing is downloaded", error), gr.skip(), gr.update(interactive=True)
        return
    yield None, {"pulled": key}, gr.skip()


def ended() -> tuple[Any, ...]:
    """After a download has ended: the Download button, which resumes an interrupted one, and `listed`."""
    return gr.update(interactive=True), *listed()


def listed() -> tuple[Any, ...]:
    """The models in the lab as a table, what they take, no choice, and the Delete button."""
    found = cached_models.listed(store())
    rows = [
        [display.line(one.name), display.size(one.bytes), display.moment(one.used) or "never", state(one)]
        for one in found
    ]
    table = views.table(COLUMNS, rows, empty=NONE, caption="Base models in this lab")
    free = display.size(capacity.of(store().home).disk)
    taken = display.size(disk.total(store().home)["models"])
    note = {"text": f"Base models take {taken}; {free} are free on this disk."}
    return (
        {**table, "ids": [display.valid(one.name) for one in found]},
        note,
        "",
        gr.update(interactive=False),
    )


def state(one: Cached) -> str:
    """How things stand with a model, and why it stays where it does."""
    if one.users:
        return f"used by {display.names(one.users)}"
    if one.busy:
        return "being fetched"
    if not one.whole:
        return "unfinished: download it again to resume"
    return "ready" if one.ours else "put there by somebody, stays"


def choose(event: gr.EventData) -> tuple[Any, Any, Any]:
    """The model whose row was chosen: what it is called, a word on it, and the Delete button."""
    found = _one(picked(event))
    if found is None:
        return "", {"text": "This model is not here any more.", "kind": "bad"}, gr.update(interactive=False)
    note = {"text": f"{display.line(found.name)}: {display.size(found.bytes)}, {state(found)}"}
    return found.name, note, gr.update(interactive=found.ours and not found.users and not found.busy)


def ask_delete(chosen: str) -> dict[str, Any] | None:
    """The question before a model is deleted."""
    found = _one(chosen)
    if found is None:
        return None
    notes = [
        f"{display.size(found.bytes)} come free at once. This cannot be undone.",
        "A run that needs it fetches it again. Exported and published models stay.",
    ]
    return views.question(f"Delete {display.line(found.name)}?", notes, "Delete", found.name)


def delete(event: gr.EventData) -> tuple[Any, ...]:
    """Delete a model that the lab has fetched and no queued or running run uses: as `listed`."""
    try:
        freed = cached_models.remove(store(), picked(event))
    except (LabError, OSError) as error:
        table, _, chosen, button = listed()
        return table, {"text": sentence(error), "kind": "bad"}, chosen, button
    table, _, chosen, button = listed()
    return table, {"text": f"{display.size(freed)} are free again.", "kind": "good"}, chosen, button


def _one(name: str) -> Cached | None:
    return next((one for one in cached_models.listed(store()) if one.name == name), None)


def use(model: str | None) -> tuple[Any, Any]:
    """A model as the one of the Lab's form, which is opened."""
    return local_models.known(model), gr.update(open=True)


def build(chosen: form.Input, new: gr.Accordion) -> None:
    """Lay out the panel. `chosen` is the model of the Lab's form, `new` what the form lies in."""
    with gr.Accordion("Base models", open=False, elem_id="base-models") as panel:
        gr.Markdown(ABOUT)
        with gr.Row(elem_classes="fields"):
            model = gr.Dropdown(
                choices.models(), value="starter", label="Base model", allow_custom_value=True,
                info="Each with parameters, size, license, context, and whether it fits this machine",
                elem_id="base-model",
            )  # fmt: skip
        with gr.Row(elem_classes="bar"):
            ask = gr.Button("Look it up", size="sm", scale=0, min_width=120, elem_id="base-look")
            get = gr.Button(
                "Download", size="sm", scale=0, min_width=120, interactive=False, elem_id="base-download"
            )
            take = gr.Button("Use in a new run", size="sm", scale=0, min_width=160, elem_id="base-take")
        notice = parts.drawn("notice", elem_id="base-about")
        problems = parts.drawn("problems", elem_id="base-problems")
        facts = parts.drawn("table", elem_id="base-facts")
        progress = parts.drawn("stage", elem_id="base-progress")
        with gr.Row(elem_classes="bar"):
            again = gr.Button("Refresh", size="sm", scale=0, elem_id="base-refresh")
            drop = gr.Button("Delete…", size="sm", scale=0, interactive=False, elem_id="base-delete")
        note = parts.drawn("notice", elem_id="base-note")
        table = parts.drawn("table", elem_id="base-cached")
        name = gr.Textbox(visible="hidden", elem_classes=parts.HIDDEN, label="Model to delete")
        whether = parts.drawn("question")
    here = [table, note, name, drop]
    ask.click(look, model, [notice, problems, facts, progress, get], **parts.CHECKS)
    get.click(fetch, model, [problems, progress, get], **parts.CHECKS)
    take.click(use, model, [chosen, new], **parts.QUICK)
    progress.select(ended, None, [get, *here], **parts.LOOKS)
    panel.expand(listed, None, here, **parts.LOOKS).then(
        lambda: gr.update(choices=choices.models()), None, model, **parts.QUICK
    )
    again.click(listed, None, here, **parts.LOOKS)
    table.select(choose, None, [name, note, drop], trigger_mode="multiple", **parts.LOOKS)
    drop.click(ask_delete, name, whether, **parts.LOOKS)
    whether.select(delete, None, here, **parts.LOOKS)
