"""Serve the model of the Compare tab to other programs: start it, stop it, its address and its token.

They are shown to the browser that has started it, and to no other. Where all places are taken, others see the
labels of what is served, and may stop one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import InputError, LabError, sentence
from webapp import servers, threads
from webapp.home import store
from webapp.servers import Served
from webapp.ui import choices, parts

LOOK_SECONDS = 0.3
PATIENCE_SECONDS = 150.0  # for a model to load; one that waits for a GPU is looked at again later
ABOUT = (
    "Other programs can ask the model above by OpenAI's API, on this machine: `model` is `base` or an"
    " adapter's name. The address and the token are shown in this browser only."
)
NOW_SECONDS = 5.0
HIDDEN = (gr.update(visible=False), gr.update(choices=[], value=None))
NOTHING = {"text": "You serve no model."}


async def start(model: str | None, name: str) -> AsyncIterator[tuple[Any, ...]]:
    """Serve the chosen model; what is shown until it answers, and what others serve if there is no place."""
    try:
        if not model:
            raise InputError("Choose a model first.")
        source = await threads.run(threads.SERVING, choices.source, store(), model)
        served = await threads.run(threads.SERVING, servers.start, store().home, name, source)
    except (LabError, OSError) as error:
        full = isinstance(error, servers.Full)
        yield None, {"text": sentence(error), "kind": "bad"}, *(others() if full else HIDDEN)
        return
    for _ in range(int(PATIENCE_SECONDS / LOOK_SECONDS)):
        yield *shown(served), *HIDDEN
        if served.url or served.error:
            break
        await asyncio.sleep(LOOK_SECONDS)
    yield *shown(served), *HIDDEN


def others() -> tuple[Any, ...]:
    """What is served, by anybody: the row to stop one, and its choices."""
    now = time.monotonic()
    offered = [(f"{one.label}, {_age(now - one.started, one.idle())}", one.id) for one in servers.running()]
    return gr.update(visible=bool(offered)), gr.update(choices=offered, value=None)


def _age(since: float, idle: float) -> str:
    used = "in use" if idle < NOW_SECONDS else f"used {display.duration(idle)} ago"
    return f"started {display.duration(since)} ago, {used}"


def clear(chosen: str | None) -> tuple[Any, ...]:
    """Stop one that others may have started, to make room: a notice, and what is still served."""
    try:
        if not chosen:
            raise InputError("Choose a model that is served first.")
        said = f"Stopped serving {servers.clear(chosen).label}; start yours now."
    except LabError as error:
        return {"text": sentence(error), "kind": "bad"}, *others()
    return {"text": said}, *HIDDEN


def look(_: str | None, name: str) -> tuple[Any, ...]:
    """What this browser serves now."""
    served = servers.of(name)
    return (None, NOTHING) if served is None else shown(served)


def stop(_: str | None, name: str) -> tuple[Any, ...]:
    """Stop it."""
    found = servers.stop(name)
    return None, NOTHING if found is None else {"text": f"Stopped serving {found.label}."}


def shown(served: Served) -> tuple[Any, ...]:
    """Its address, models and token, and a notice."""
    if served.error:
        return None, {"text": served.error, "kind": "bad"}
    if not served.url:
        return None, {"text": served.note or f"Loading the model of {served.label}…"}
    facts = [["Address", served.url], ["Models", ", ".join(served.models)], ["Token", served.token]]
    text = (
        f"{served.label} is served until you stop it, until nobody has used it for"
        f" {servers.IDLE_SECONDS / 60:.0f} minutes, or until this page's process ends."
    )
    return facts, {"text": text, "note": served.note, "kind": "good"}


def build(tab: gr.Tab, model: gr.components.Component) -> None:
    """Lay out the panel, below the tab whose model it serves."""
    with gr.Accordion("Serve to other programs", open=False, elem_id="serve"):
        gr.Markdown(ABOUT)
        with gr.Row():
            go = gr.Button("Start serving", elem_id="serve-go")
            end = gr.Button("Stop serving", elem_id="serve-stop")
        notice = parts.drawn("notice", elem_id="serve-notice")
        facts = parts.drawn("facts", elem_id="serve-facts")
        with gr.Row(visible=False) as row:
            other = gr.Dropdown(
                [], label="Served now, by anybody", info="Programs that ask it get no answer any more",
                allow_custom_value=True, elem_id="serve-other",
            )  # fmt: skip
            free = gr.Button("Stop this one", scale=0, min_width=160, elem_id="serve-free")
    name = gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label="Served by this browser")
    given, mine = [model, name], parts.live("serving", "talk.js")
    go.click(start, given, [facts, notice, row, other], js=mine, **parts.QUEUED)
    free.click(clear, other, [notice, row, other], **parts.LOOKS)
    end.click(stop, given, [facts, notice], js=mine, **parts.LOOKS)
    tab.select(look, given, [facts, notice], js=mine, **parts.QUICK)
