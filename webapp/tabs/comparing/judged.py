"""Which of two runs is better, row by row: on the Runs tab, below the examples of the selected one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import gradio as gr

from pipeline import display
from pipeline.errors import LabError, sentence
from pipeline.inputs.data.telling import ended
from pipeline.runs import check_pool, history
from pipeline.runs.comparing import compare_rows
from pipeline.store.run import Run
from webapp.home import known_run
from webapp.routes.watch import watch
from webapp.ui import check_turns, parts, views

MOST_OFFERED = 200  # runs, the newest ones
MOST_DIFFERENCES = 6  # of two recipes, in a line
ABOUT = "Row by row, on the rows that both were evaluated on: another adapter, or another quantization"
NONE = (
    "No other run was evaluated on the same rows yet: use this recipe again with another adapter or"
    " quantization, and keep data, template, share and seed"
)
WITH = {"adapter": "With their adapters", "base": "Without adapters"}
MEASURED = {"adapter": "Loss with adapter", "base": "Loss without adapter"}
SIZE = "optimize.model_bytes"  # speeds of two runs were measured at two times, and say less


class Judged(NamedTuple):
    """Components that other modules connect."""

    picker: gr.Dropdown
    drawing: gr.HTML


def offer(run: str) -> tuple[Any, Any]:
    """The runs that a run can be judged against, none of them chosen, and nothing drawn."""
    return _offered(known_run(run), None), {"run": run}


def _offered(run: Run, chosen: str | None) -> Any:
    found = compare_rows.offered(run, watch().history(deleted=False))[:MOST_OFFERED]
    labels = [(f"{one.name} · {display.moment(one.created)} · {one.id}", one.id) for one in found]
    about = ABOUT if found else NONE
    shown = not compare_rows.why_none(run)
    return gr.update(choices=labels, value=chosen, info=about, visible=shown)


def judge(run: str, against: str | None) -> Iterator[dict[str, Any]]:
    """What the drawing shows: how far it is, then the verdict on a run against another one, or why there is
    none."""
    if not against:
        yield {"run": run}
        return
    try:
        runs = known_run(against), known_run(run)
        given = {"one": runs[0].id, "other": runs[1].id}
        found = yield from check_turns.steps(
            lambda tell: ended(check_pool.ask("pipeline.runs.comparing.compare_rows:asked", given), tell),
            lambda text: {"run": run, "text": text or "Comparing…"},
        )
    except (LabError, OSError) as error:
        yield {"run": run, "refused": sentence(error)}
        return
    yield shown(runs, found)


def again(run: str, against: str) -> Iterator[tuple[Any, dict[str, Any]]]:
    """`judge` for runs that a link or the page's address names, and the list with that choice."""
    choice: Any = _offered(known_run(run), against)
    for told in judge(run, against):
        yield choice, {**told, "seen": True}
        choice = gr.skip()


def shown(runs: tuple[Run, Run], found: dict[str, Any]) -> dict[str, Any]:
    """What `compare_rows.asked` has found of the second run against the first, as it is drawn."""
    first, second = runs
    sides = [side for side in compare_rows.SIDES if side in found]
    return {
        "run": second.id,
        "against": first.id,
        "names": [first.name, second.name],
        "said": [{**_said(side, found[side]), "outcome": found[side]["outcome"]} for side in sides],
        "differ": _differ(history.differences(runs)),
        "numbers": _numbers(runs, found, sides),
        "apart": found["apart"],
        "answered": found["answered"],
        "changed": found["changed"],
    }


def _said(side: str, verdict: dict[str, Any]) -> dict[str, str]:
    """The words that lead to a verdict, and the rest: "With their adapters this run is better: …"."""
    text = str(verdict["text"])
    if verdict["outcome"] == "cannot_tell":
        return {"lead": f"{WITH[side]}:", "text": text}
    outcome, _, rest = text.partition(": ")
    return {"lead": f"{WITH[side]} this run is {outcome.lower()}:", "text": rest}


def _differ(rows: list[history.Row]) -> str:
    """Where the recipes differ, as one line: this run's value, then the other's."""
    if not rows:
        return "The recipes are the same."
    told = [f"{row.key} {_value(row.values[1])} here, {_value(row.values[0])} there" for row in rows]
    more = len(told) - MOST_DIFFERENCES
    rest = [f"and {more} more"] if more > 0 else []
    return f"The recipes differ in {'; '.join([*told[:MOST_DIFFERENCES], *rest])}."


def _value(value: Any) -> str:
    return "nothing" if value in (None, "") else display.short(display.line(display.number(value)))


def _numbers(runs: tuple[Run, Run], found: dict[str, Any], sides: list[compare_rows.Side]) -> views.Table:
    rows = [[MEASURED[side], *_losses(found[side])] for side in sides]
    sizes = next((row.values for row in history.metrics(runs) if row.key == SIZE), (None, None))
    if all(sizes):
        there, here = sizes
        share = f"{100 * (here / there - 1):+.0f} %".replace("-", "−") if here != there else "none"
        rows.append(["Size of the model", display.size(here), display.size(there), share, ""])
    columns = ["Measured", "This run", "The other run", "Difference (95 % interval)", "Rows"]
    return views.table(columns, rows, caption=f"On {found['rows']:,} rows, losses in nats a token")


def _losses(verdict: dict[str, Any]) -> list[str]:
    there, here = (("" if mean is None else f"{mean:.3f}") for mean in verdict["means"])
    ends = [verdict[name] for name in ("difference", "low", "high")]
    size = "" if ends[0] is None else _signed(ends[0])
    if size and ends[1] is not None:
        size += f" ({_signed(ends[1])} to {_signed(ends[2])})"
    return [here, there, size, f"{verdict['better']:,} better, {verdict['worse']:,} worse"]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−")


def build() -> Judged:
    """Lay out the panel."""
    picker = gr.Dropdown(
        [], label="Is this run better than another?", info=ABOUT, allow_custom_value=True, visible=False,
        elem_id="runs-against",
    )  # fmt: skip
    drawing = parts.drawn("judged", module="judged.js", elem_id="runs-judged")
    return Judged(picker, drawing)
