"""Sweep, on the Lab tab: a run for each value of one or two options, as a group."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import gradio as gr

from pipeline.errors import InputError, LabError
from pipeline.inputs.options import describe
from pipeline.runs import sweep
from pipeline.stages import recipe
from webapp.home import store
from webapp.ui import check_turns, form, parts, views

AXES = 2
ABOUT = "<p>Start a run for each value, or each pair of values. Stages that they have in common run once.</p>"
Read = Callable[[form.Form, tuple[Any, ...]], dict[str, Any]]


def offered() -> list[tuple[str, str]]:
    """Options that can be swept over, as (label, key)."""
    found = [("Seed", "seed"), ("Held-out share", "eval_fraction")]
    for stage, cls in recipe.OPTIONS.items():
        found += [
            (f"{stage.capitalize()}: {option.titled()}", f"{stage}.{option.name}")
            for option in describe(cls)
            if option.page
        ]
    return found


def axes(values: tuple[Any, ...]) -> list[str]:
    """What is swept over, as `sweep.variants` takes it: option=value,value. Raises InputError."""
    chosen = [
        f"{key}={text}" for key, text in zip(values[::2], values[1::2], strict=True) if key and text.strip()
    ]
    if not {axis.partition("=")[0] for axis in chosen} <= {key for _, key in offered()}:
        raise InputError("Choose an option from the list; others cannot be swept over.")
    if not chosen:
        raise InputError(
            "Choose an option, and write its values with commas between them, such as 8, 16, 32."
        )
    return chosen


def launch(inputs: form.Form, read: Read, *values: Any) -> Iterator[tuple[Any, ...]]:
    """Check all recipes and queue their runs: notice, problems, and the run to show."""
    checking = {"text": "Checking the recipes, the data and the model…"}, None, gr.skip()
    yield checking
    *given, owner = values
    notes: list[str] = []
    filled = tuple(given[: len(inputs.inputs)])
    try:
        over, chosen = axes(tuple(given[len(filled) :])), read(inputs, filled)
        runs, group = yield from check_turns.steps(
            lambda _: sweep.launch(store(), chosen, over, owner, notes.append),
            lambda _: checking,
            to_its_end=True,
        )
    except (LabError, OSError) as error:
        yield None, views.problems("Nothing was started", error), gr.skip()
        return
    found = f"They form the group {group}; find and compare them in the Runs tab."
    yield views.queued(f"Queued {len(runs)} runs.", [found, *notes]), None, runs[0]


def build(inputs: form.Form, read: Read, run: gr.Textbox, you: gr.Textbox) -> None:
    """Lay out the panel; `read(inputs, values)` makes a recipe's mapping of the form's inputs."""
    over: list[Any] = []
    with gr.Accordion("Sweep", open=True, elem_id="sweep"):
        parts.fixed(ABOUT)
        for number in range(1, AXES + 1):
            with gr.Row(elem_classes="fields"):
                over.append(
                    gr.Dropdown(
                        offered(), value=None, label="Option" if number == 1 else "And", min_width=220,
                        elem_id=f"sweep-option-{number}",
                    )
                )  # fmt: skip
                over.append(
                    gr.Textbox(
                        label="Values",
                        placeholder="8, 16, 32",
                        min_width=220,
                        elem_id=f"sweep-values-{number}",
                    )
                )
        start = gr.Button("Launch the sweep", variant="primary", elem_id="sweep-start", scale=0)
        notice = parts.drawn("notice", elem_id="sweep-notice")
        problems = parts.drawn("problems", elem_id="sweep-problems")
    start.click(
        partial(launch, inputs, read), [*inputs.inputs, *over, you], [notice, problems, run],
        js=parts.live("signed", "queue.js"), **parts.CHECKS,
    )  # fmt: skip
