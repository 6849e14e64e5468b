"""The examples of a run as a file: CSV for a spreadsheet, or JSON lines."""

from __future__ import annotations

import csv
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline import display
from pipeline.evaluation.examples import answered_by, rows
from pipeline.evaluation.examples.answered_by import ADAPTER, BASE, FLOAT, Answered
from pipeline.evaluation.examples.rows import Example, Sources
from pipeline.system.files import to_json

Kind = Literal["csv", "jsonl"]
KINDS: tuple[Kind, ...] = get_args(Kind)
# SHA-256 of the files that answered: of the adapter that was active, and of the graph's files.
PROOF = ("base_adapter_sha256", "adapter_sha256", "graph_sha256")
COLUMNS = ("line", "prompt", "system", "expected", "base", "adapter", "float", "tokens", "base_loss",
           "adapter_loss", "float_loss", "difference", *PROOF)  # fmt: skip
FORMULA = ("=", "+", "-", "@", "\t", "\r")  # beginnings of what a spreadsheet carries out


def write(sources: dict[str, Any], kind: Kind, to: str) -> Generator[str, None, int]:
    """Write all examples to a file that is there already; returns how many. Other adapters that answered have
    columns of their own behind the others. Raises InputError, OSError."""
    yield "Writing examples…"
    count = 0
    with Path(to).open("r+", encoding="utf-8", newline="") as file:  # who has left has removed it
        table = csv.writer(file)
        where = Sources(**sources)
        proof = proven(where.answered)
        others = [side for side in where.answered.sides if answered_by.is_other(side)]
        columns = [*COLUMNS, *others, *(_summed(side) for side in others)]
        if kind == "csv":
            file.write("\ufeff")  # else a spreadsheet takes it for text of another encoding
            table.writerow(columns)
        for example in rows.each(where):
            facts = flat(example, others) | proof
            if kind == "csv":
                table.writerow([_cell(facts[name]) for name in columns])
            else:
                file.write(to_json(facts, ensure_ascii=False) + "\n")
            count += 1
    return count


def flat(example: Example, others: Sequence[str] = ()) -> dict[str, Any]:
    """An example by COLUMNS without PROOF, and the answers of other sides; an answer's text has a mark where
    it was cut."""
    answers = example.answers
    told = {
        name: display.valid(display.answer({"text": answers[name].text, "cut": answers[name].cut}))
        if name in answers
        else None
        for name in (BASE, ADAPTER, FLOAT, *others)
    }
    names = [name for name in COLUMNS if name not in PROOF]
    return {name: told[name] if name in told else getattr(example, name) for name in (*names, *others)}


def proven(answered: Answered) -> dict[str, Any]:
    """PROOF of all examples, and the same of other adapters: an adapter is "none" where none was active; None
    where nothing is recorded."""
    sides = answered.sides
    adapters = [sides[name].adapter if name in sides else None for name in (BASE, ADAPTER)]
    graph = next((dict(files.graph) for files in sides.values()), None)
    others = {_summed(side): files.adapter for side, files in sides.items() if answered_by.is_other(side)}
    return dict(zip(PROOF, (*adapters, graph), strict=True)) | others


def _summed(side: str) -> str:
    """The column of the checksum of another adapter; no file's name has a slash."""
    return f"{side}/sha256"


def harmless(text: str) -> str:
    """The text of a cell that no spreadsheet takes for a formula."""
    return f"'{text}" if text.startswith(FORMULA) else text


def _cell(value: Any) -> Any:
    if isinstance(value, dict):
        value = "; ".join(f"{name} {digest}" for name, digest in sorted(value.items()))
    return harmless(value) if isinstance(value, str) else "" if value is None else value
