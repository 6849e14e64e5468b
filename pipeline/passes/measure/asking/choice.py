"""Which prompts are asked: from all over the new rows, of those that leave the model room for an answer."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass
from typing import Any

from pipeline import display
from pipeline.exports import generation
from pipeline.inputs.data import datasets
from pipeline.inputs.data.sampling import spread
from pipeline.passes.new_rows import ALL_COPIES, NewRows
from pipeline.stages.events import emit

MOST_LOOKED = 2_000  # prompts that are looked at until enough fit: long ones take a tenth of a second each
AT_ONCE = 256  # of these whose rows are in memory


@dataclass(frozen=True)
class Chosen:
    """Rows to ask by their positions, ascending. `looked` prompts were looked at, of which `too_long` leave
    no room for an answer."""

    rows: dict[int, dict[str, Any]]
    looked: int
    too_long: int


def choose(loaded: generation.Model, new: NewRows, count: int, answered: Container[int] = ()) -> Chosen:
    """`count` prompts of the new rows, or as many as fit; those at positions `answered` are known to fit.

    First those that are spread over all; where some of these do not fit, others take their place, again from
    all over what is left. Raises InputError if a row is broken or does not fit the template.
    """
    found: dict[int, dict[str, Any]] = {}
    left, looked, too_long, batch = new.asked, 0, 0, count
    while len(found) < count and left and looked < max(MOST_LOOKED, count):
        tried = spread(left, batch)
        rows = datasets.load(new.file, loaded.template, set(tried))
        fit = [at for at in tried if at in answered or _fits(loaded, rows[at])]
        looked, too_long = looked + len(tried), too_long + len(tried) - len(fit)
        found |= {at: rows[at] for at in spread(fit, count - len(found))}
        left = [at for at in left if at not in rows]
        batch = min(2 * batch, AT_ONCE)
    if too_long:
        emit(message=f"Left out {too_long:,} of {looked:,} prompts: longer than the model's context")
    return Chosen(dict(sorted(found.items())), looked, too_long)


def why_none(loaded: generation.Model, new: NewRows, chosen: Chosen, brought: bool) -> str:
    """Why nothing was asked, as a sentence; "" if something was."""
    if chosen.rows:
        return ""
    row = f"each row of {display.short(new.file.name)}" if brought else "each held-out row"
    if not chosen.looked:
        return f"No answers: {row} {ALL_COPIES}."
    which = "the" if chosen.looked < len(new.asked) else "all"
    looked = " that were looked at" if which == "the" else ""
    return (
        f"No answers: {which} {chosen.looked:,} prompts{looked} are longer than the"
        f" {loaded.context_length:,} tokens that this model reads."
    )


def _fits(loaded: generation.Model, row: dict[str, Any]) -> bool:
    return generation.room(loaded, loaded.reader.text(row)) > 0
