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

from pipeline.errors import LabError
from pipeline.inputs.data import datasets
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
        parts.drawn("problems", elem_id="preflight-problems"),
    ]


def wire(places: list[gr.HTML], inputs: form.Form, made: Made, settled: gr.Button) -> None:
    """Fill the places when a hidden button is clicked, which happens when the form has settled."""
    settled.click(
        partial(show, inputs, made), inputs.inputs, places, trigger_mode="always_last", **parts.CHECKS
    )


def show(inputs: form.Form, made: Made, *values: Any) -> Iterator[tuple[Any, Any, Any]]:
    """The table, what there is to say of it, and what does not fit; nothing for a form that cannot run."""
    try:
        recipe = made(inputs, values)
    except (LabError, OSError):  # it stands at the fields already
        yield None, None, None
        return
    yield gr.skip(), {"text": "Predicting memory and time…"}, None
    try:
        calibration.ensure(store())
        facts = yield from check_turns.steps(
            partial(_asked, recipe), lambda text: (gr.skip(), {"text": f"Predicting… {text}".strip()}, None)
        )
    except (LabError, OSError) as error:
        yield None, {"text": f"Memory and time are not predicted: {error}"}, None
        return
    items = [inputs.named(problem)["text"] for problem in facts["problems"]]
    yield shown(facts), notice(facts), {"title": LACKING, "items": items} if items else None


def _asked(recipe: Recipe, tell: Callable[[str], None]) -> dict[str, Any]:
    """The preflight of a recipe. Raises LabError, OSError."""
    file = Path(recipe.data).stat()
    about = recipe.template, recipe.model, changed(recipe.model), recipe.eval_fraction
    key = recipe.data, file.st_mtime_ns, file.st_size, *about
    given = {"recipe": recipe.to_dict(), "known": _known.get(key)}
    with closing(check_pool.ask("pipeline.runs.preflight.report:answer", given)) as steps:
        facts: dict[str, Any] = datasets.ended(steps, tell)
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
