"""Serve the model of the Compare tab to other programs: start it, stop it, its address and its token.

They are shown to the browser that has started it, and to no other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from pipeline.errors import InputError, LabError, sentence
from webapp import servers
from webapp.home import store
from webapp.servers import Served
from webapp.ui import choices, parts

LOOK_SECONDS = 0.3
PATIENCE_SECONDS = 150.0  # for a model to load; one that waits for a GPU is looked at again later
ABOUT = (
    "Other programs can ask the model above by OpenAI's API, on this machine: `model` is `base` or an"
    " adapter's name. The address and the token are shown in this browser only."
)
NOTHING = {"text": "You serve no model."}


async def start(model: str | None, name: str) -> AsyncIterator[tuple[Any, ...]]:
    """Serve the chosen model; what is shown until it answers."""
    try:
        if not model:
            raise InputError("Choose a model first.")
        source = await asyncio.to_thread(choices.source, store(), model)
        served = await asyncio.to_thread(servers.start, store().home, name, source)
    except (LabError, OSError) as error:
        yield None, {"text": sentence(error), "kind": "bad"}
        return
    for _ in range(int(PATIENCE_SECONDS / LOOK_SECONDS)):
        yield shown(served)
        if served.url or served.error:
            break
        await asyncio.sleep(LOOK_SECONDS)
    yield shown(served)


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
    text = f"{served.label} is served until you stop it, or until this page's process ends."
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
    name = gr.Textbox("", visible="hidden", elem_classes=parts.HIDDEN, label="Served by this browser")
    given, mine = [model, name], parts.live("serving", "talk.js")
    go.click(start, given, [facts, notice], js=mine, **parts.QUEUED)
    end.click(stop, given, [facts, notice], js=mine, **parts.LOOKS)
    tab.select(look, given, [facts, notice], js=mine, **parts.QUICK)
