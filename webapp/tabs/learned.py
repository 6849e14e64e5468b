"""What it learns: any row of the chosen dataset as the tokens that training reads, on the Data tab."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import gradio as gr

from pipeline.errors import InputError, LabError
from pipeline.exports import row_view
from pipeline.inputs.data import one_row, telling
from pipeline.runs import check_pool
from pipeline.runs.data import data_check
from pipeline.stages import finetune
from webapp import local_models
from webapp.home import store
from webapp.ui import check_turns, choices, parts, views

BUTTONS = {
    "Show": one_row.LINE, "Previous": one_row.PREVIOUS, "Next": one_row.NEXT,
    "Random": one_row.RANDOM, "Longest": one_row.LONGEST,
}  # fmt: skip


def look(
    where: str, picked: str | None, template: str, model: str, line: float | None
) -> Iterator[tuple[Any, Any]]:
    """A row, and its line: what is drawn while it is looked for, and in the end.

    The tokenizer of a hub model may take a minute.
    """
    try:
        found = yield from check_turns.steps(
            lambda tell: _found(where, picked, template, model, line, tell),
            lambda text: ({"text": text or "Reading…"}, gr.skip()),
        )
    except (LabError, OSError) as error:
        yield {"problems": views.problems("", error)["items"]}, gr.skip()
        return
    yield views.tokens(found, finetune.Options.max_length), found["line"]


def _found(
    where: str,
    picked: str | None,
    template: str,
    model: str,
    line: float | None,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Raises LabError, OSError."""
    number = 1 if line is None else line
    if number != int(number) or number < 0:
        raise InputError("line: write a whole number, such as 1")
    path = choices.known_data(store().home, picked)
    asked = {"path": str(path), "template": template}
    read = "pipeline.runs.data.prepare_data:answer_template"
    template = telling.ended(check_pool.ask(read, asked), tell)
    with closing(data_check.tokenizing(local_models.known(model), template)) as steps:
        reads = telling.ended(steps, tell)
    return row_view.asked(reads, path, template, where, int(number), finetune.Options.max_length)


def build(picked: gr.Dropdown, template: gr.Textbox, model: gr.Dropdown) -> None:
    """Lay out the panel and wire it to the choices of the tab."""
    with gr.Accordion("What it learns: a row as tokens", open=False, elem_id="data-learned"):
        with gr.Row():
            line = gr.Number(
                1, label="Line", precision=0, minimum=0, min_width=90, scale=0, elem_id="data-line"
            )
            buttons = {name: gr.Button(name, size="sm", min_width=80) for name in BUTTONS}
        tokens = parts.drawn("tokens", module="tokens.js", elem_id="data-tokens")
    for name, button in buttons.items():
        button.click(
            partial(look, BUTTONS[name]), [picked, template, model, line], [tokens, line], **parts.CHECKS
        )
