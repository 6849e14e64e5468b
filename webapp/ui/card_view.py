"""The data card on the Data tab: figures, findings, a table of all rows, and which rows to leave out.

It is made by a process of its own (`pipeline.runs.data.data_card`); this one reads no row of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr

from pipeline.errors import LabError
from pipeline.inputs.data.hub import dataset_id
from pipeline.inputs.data.telling import ended
from pipeline.runs import check_pool
from pipeline.stages import finetune
from webapp import local_models
from webapp.home import store
from webapp.ui import check_turns, choices, parts


def show(picked: str | None, template: str, model: str) -> Iterator[tuple[Any, Any, Any]]:
    """Make the card of a dataset: how far that is; then the card, boxes of its findings, and its rows."""
    none = gr.update(choices=[], value=[], visible=False)
    if not picked or dataset_id.is_id(picked):  # which has a card once it is in the lab
        yield None, none, None
        return
    yield {"text": "Looking through the rows…"}, none, None
    try:
        card = yield from check_turns.steps(
            lambda tell: _made(picked, template, model, tell),
            lambda text: ({"text": f"Looking through the rows… {text}".strip()}, gr.skip(), gr.skip()),
        )
    except (LabError, OSError) as error:
        yield {"text": f"There is no data card: {error}"}, none, None
        return
    boxes = [(f"{found['title']} ({found['rows']:,})", found["name"]) for found in card["findings"]]
    yield card, gr.update(choices=boxes, value=[], visible=bool(boxes)), {"key": card["key"]}


def _made(picked: str, template: str, model: str, tell: Callable[[str], None]) -> dict[str, Any]:
    """The card of an offered dataset. Raises LabError, OSError."""
    path = choices.known_data(store().home, picked)
    try:
        known = local_models.known(model)
    except LabError:  # the check above says why
        known = ""
    given = {"path": str(path), "template": template}
    read = "pipeline.runs.data.prepare_data:answer_template"
    template = ended(check_pool.ask(read, given), tell)
    asked = {"path": str(path), "template": template, "model": known}
    steps = check_pool.ask(
        "pipeline.runs.data.data_card:shown", {**asked, "max_length": finetune.Options.max_length}
    )
    card: dict[str, Any] = ended(steps, tell)
    return {name: value for name, value in card.items() if name != "path"}


def joined(names: list[str] | None) -> str:
    """The boxes as a recipe writes them."""
    return ",".join(names or [])


def build(
    picked: gr.Dropdown, template: gr.Textbox, model: gr.Dropdown, again: gr.Button, rows: gr.HTML
) -> gr.CheckboxGroup:
    """Lay out the card and wire it; what is to be left out. `rows` is a place for the table of all rows."""
    card = parts.drawn("card", module="card.js", elem_id="data-card")
    leave_out = gr.CheckboxGroup(
        label="Leave these rows out",
        info="The run's copy of the dataset is made without them; its recipe says so",
        visible=False,
        elem_id="data-leave-out",
    )
    gr.on(
        [picked.change, model.input, template.submit, again.click],
        show,
        [picked, template, model],
        [card, leave_out, rows],
        **parts.CHECKS,
    )
    return leave_out
