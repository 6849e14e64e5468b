"""Beside Launch: what each stage of the form's recipe takes of this machine, and whether it fits.

A process of the app looks at the rows and predicts (`pipeline.runs.preflight.report`); this one reads none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from pipeline.errors import InputError, LabError
from pipeline.inputs.data import telling
from pipeline.runs import check_pool
from pipeline.runs.preflight import calibration, wording
from pipeline.stages.recipe import Recipe
from webapp.home import store
from webapp.ui import check_turns, form, parts

CAPTION, LACKING = "What this run takes", "This does not fit this machine"
MOST_KEPT = 64
Made = Callable[[form.Form, tuple[Any, ...]], Recipe]  # the form's recipe; raises InputError


def place() -> list[gr.HTML]:
    """Lay out the table, what there is to say of it, and what does not fit."""
    return [
        parts.drawn("table", elem_id="preflight"),
        parts.drawn("notice", elem_id="preflight-notice"),
        parts.drawn("refused", module="fields.js", elem_id="preflight-problems"),
    ]


def wire(
    places: list[gr.HTML], launch: list[gr.components.Component], inputs: form.Form, made: Made,
    settled: gr.Button,
) -> None:  # fmt: skip
    """Fill the places, and Launch with why it is off, when a hidden button is clicked, which happens when the
    form has settled."""
    settled.click(
        partial(show, inputs, made),
        inputs.inputs,
        [*places, *launch],
        trigger_mode="always_last",
        **parts.CHECKS,
    )


def show(inputs: form.Form, made: Made, *values: Any) -> Iterator[tuple[Any, ...]]:
    """The table, what there is to say of it, what does not fit, and Launch, with why it is off.

    Nothing is said of a form that cannot run, but that it cannot. All of Launch is in the last answer: one of
    an earlier form may have come after the preview of this one.
    """
    try:
        recipe = made(inputs, values)
    except (LabError, OSError) as error:  # it stands at the fields already
        yield None, None, None, *not_yet(error)
        return
    as_it_is = gr.skip(), gr.skip()
    yield gr.skip(), {"text": "Predicting memory and time…"}, None, *as_it_is
    try:
        calibration.ensure(store())
        facts = yield from check_turns.steps(
            partial(_asked, recipe),
            lambda text: (gr.skip(), {"text": f"Predicting… {text}".strip()}, None, *as_it_is),
        )
    except (LabError, OSError) as error:
        yield None, {"text": f"Memory and time are not predicted: {error}"}, None, *can_launch()
        return
    if not facts["problems"]:
        yield shown(facts), notice(facts), None, *can_launch()
        return
    lacking = inputs.refused(LACKING, InputError(facts["problems"]))
    # What is left out may be just what does not fit, and is known at launch, which refuses it all the same.
    launch = can_launch() if recipe.leave_out else does_not_fit([item["text"] for item in lacking["items"]])
    yield shown(facts), notice(facts), lacking, *launch


def can_launch() -> tuple[Any, None]:
    """Launch, which is on, and no reason why not."""
    return gr.update(interactive=True), None


def not_yet(error: LabError | OSError) -> tuple[Any, str]:
    """Launch, which is off, and why: what is wrong stands at the fields."""
    count = len(error.problems) if isinstance(error, InputError) else 1
    points = "the point below is" if count == 1 else f"the {count} points below are"
    return gr.update(interactive=False), f"Launch is off until {points} put right."


def does_not_fit(problems: list[str]) -> tuple[Any, str]:
    """Launch, which is off, and why: the first of what does not fit, with the nearest setting that does."""
    more = f" ({len(problems) - 1} more below)" if len(problems) > 1 else ""
    why = f"Launch is off, this does not fit this machine. {problems[0]}{more}."
    return gr.update(interactive=False), why


def _asked(recipe: Recipe, tell: Callable[[str], None]) -> dict[str, Any]:
    """The preflight of a recipe. Raises LabError, OSError."""
    file = Path(recipe.data).stat()
    about = recipe.template, recipe.model, changed(recipe.model), recipe.eval_fraction
    key = recipe.data, file.st_mtime_ns, file.st_size, *about
    given = {"recipe": recipe.to_dict(), "known": _known.get(key)}
    with closing(check_pool.ask("pipeline.runs.preflight.report:answer", given)) as steps:
        facts: dict[str, Any] = telling.ended(steps, tell)
    while len(_known) >= MOST_KEPT:
        _known.pop(next(iter(_known)), None)
    _known[key] = facts.pop("known")
    return facts


def changed(model: str) -> int:
    """When the config.json of a model's folder was changed; 0 for a model that is not in one."""
    try:
        return (Path(model) / "config.json").stat().st_mtime_ns
    except OSError:
        return 0


# What was counted of datasets and known of models, the newest last. So a form that changes asks no hub again.
_known: dict[tuple[Any, ...], dict[str, Any]] = {}


def shown(facts: dict[str, Any]) -> dict[str, Any] | None:
    """The table as the page draws it."""
    rows = wording.table(facts)
    if not rows:
        return None
    return {"caption": CAPTION, "columns": list(rows[0]), "rows": [list(row) for row in rows[1:]]}


def notice(facts: dict[str, Any]) -> dict[str, Any]:
    """What else there is to say."""
    return {"text": wording.fits(facts), "note": "\n".join([*wording.sentences(facts), *facts["auto"]])}
