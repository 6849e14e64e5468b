"""The scorecard on the Lab tab: the chosen model quantized in several ways, each measured."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipeline import display
from pipeline.errors import LabError
from pipeline.runs.comparing import scorecard
from pipeline.stages.recipe import Recipe
from pipeline.system import hardware
from webapp.home import store
from webapp.ui import check_turns, form, parts, views

ABOUT = """<p>Which quantization suits this model and your data? Each one chosen below is made and measured,
one after the other: size, perplexity of your held-out responses and of a general text (lower is better),
distance from the model that is not quantized (KL divergence in nats a token; 0 is the same), both again for
the exported graph, where options of Optimize show, time, memory and speed. Model, dataset, template and the
options of Quantize and Optimize are those of the form on the Lab tab.</p>"""
WORDS = {"float": "Not quantized", **scorecard.NAMES}


def measure(inputs: form.Form, read: Any, *given: Any) -> Iterator[tuple[Any, ...]]:
    """Queue the chosen ways; refusals are shown beside the button. `read` makes the form's recipe."""
    *values, chosen, owner = given
    checking = {"text": "Checking the recipe, the data and the model…"}, None, gr.skip(), gr.skip()
    yield checking
    notes: list[str] = []
    try:
        recipe: Recipe = read(inputs, tuple(values))
        group, refused = yield from check_turns.steps(
            lambda _: scorecard.start(store(), recipe, chosen, owner, notes.append),
            lambda _: checking,
            to_its_end=True,
        )
    except (LabError, OSError) as error:
        yield None, views.problems("Nothing was started", error), gr.skip(), gr.skip()
        return
    left_out = [f"{WORDS[name]}: {reason}" for name, reason in refused.items()]
    shown = {"title": "Some are left out", "items": left_out} if left_out else None
    said = views.queued("Queued. About the data:", notes) if notes else None
    yield said, shown, gr.update(choices=listed(), value=group), {"group": group}


def listed() -> list[tuple[str, str]]:
    """All scorecards, newest first, as (label, group)."""
    found = []
    for group, rows in scorecard.every(store()).items():
        ways = ", ".join(WORDS.get(row.algorithm, row.algorithm) for row in rows)
        found.append((f"{display.moment(rows[0].created)} · {rows[0].model} · {ways}", group))
    return found


def show(group: str | None) -> dict[str, str] | None:
    """The value for the drawing of a scorecard, None if there is none."""
    return {"group": group} if group in scorecard.groups(store()) else None


def arrive(group: str | None) -> tuple[Any, ...]:
    """The current scorecards; the choice stays, at first the newest."""
    found = listed()
    values = [value for _, value in found]
    chosen = group if group in values else next(iter(values), None)
    return gr.update(choices=found, value=chosen), show(chosen)


def build(tab: gr.Tab, inputs: form.Form, read: Any, you: gr.Textbox) -> None:
    """Lay out the panel; `read(inputs, values)` makes a recipe of the form's inputs."""
    ways = [scorecard.FLOAT, *scorecard.WAYS]
    offered = [way for way in ways if way != "autoawq" or hardware.gpus()]
    with gr.Accordion("Scorecard", open=True, elem_id="scorecard"):
        parts.fixed(ABOUT)
        with gr.Row(elem_classes="fields"):
            chosen = gr.CheckboxGroup(
                [(WORDS[way], way) for way in offered],
                value=[way for way in scorecard.DEFAULT if way in offered],
                label="Ways to quantize", elem_id="scorecard-ways", min_width=320,
            )  # fmt: skip
            picked = gr.Dropdown(
                [],
                label="Shown",
                info="Earlier scorecards are kept",
                elem_id="scorecard-shown",
                min_width=320,
            )
        start = gr.Button("Measure", variant="primary", elem_id="scorecard-start", scale=0)
        notice = parts.drawn("notice")
        problems = parts.drawn("problems", elem_id="scorecard-problems")
        drawing = parts.drawn("scorecard", elem_id="scorecard-view")
    start.click(
        partial(measure, inputs, read), [*inputs.inputs, chosen, you], [notice, problems, picked, drawing],
        js=parts.live("signed", "queue.js"), **parts.CHECKS,
    )  # fmt: skip
    picked.input(show, picked, drawing, trigger_mode="always_last", **parts.QUICK)
    tab.select(arrive, picked, [picked, drawing], **parts.QUICK)
