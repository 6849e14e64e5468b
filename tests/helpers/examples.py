"""Runs whose evaluation measured rows, planted in a store: a dataset, its answers and its losses."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.store import Store
from tests.helpers import planted

Row = tuple[str, str, float, float]  # prompt, response, and the loss of base and adapter


def rows(count: int) -> list[Row]:
    """Examples of which every third is worse with the adapter, the later the more."""
    return [
        (f"What is {at}?", f"It is {at}.", 3.0, 3.0 + at / 100 if at % 3 == 0 else 1.0)
        for at in range(1, count + 1)
    ]


def two(store: Store, count: int = 20, **second: Any) -> tuple[str, str]:
    """Two runs on the same rows: the second one's adapter is better on all but the first, and by much on the
    last, which both have answered."""
    base = rows(count)
    answers = [answer(*base[-1][:2], "No.", f"It is {word}.") for word in ("nothing", str(count))]
    better = [(*row[:2], row[2], row[3] - 0.2 - at / 1000) for at, row in enumerate(base)]
    better[0] = (*base[0][:3], base[0][3] + 0.1)
    better[-1] = (*better[-1][:3], 0.1)
    one = measured(store, base, answers[:1], name="first")
    return one, measured(store, better, answers[1:], like=one, **{"name": "second", **second})


def write_data(path: Path, told: Sequence[Row]) -> Path:
    """The dataset of such rows."""
    made = [{"prompt": prompt, "response": response} for prompt, response, _, _ in told]
    path.write_text("".join(json.dumps(row) + "\n" for row in made), encoding="utf-8")
    return path


def write_losses(path: Path, told: Sequence[Row], floats: Sequence[float] = ()) -> Path:
    """`rows.jsonl` as evaluate writes it, with losses of the float model; other kinds are in it too."""
    lines: list[dict[str, Any]] = [{"inputs": {}}]
    lines += [
        {"kind": "held_out", "line": line, "tokens": 2, "base": 2 * base, "adapter": 2 * adapter}
        for line, (_, _, base, adapter) in enumerate(told, 1)
    ]
    if floats:
        lines += [
            {"kind": "float", "line": line, "tokens": 2, "float": 2 * loss}
            for line, loss in enumerate(floats, 1)
        ]
    lines.append({"kind": "general", "line": 1, "tokens": 2, "base": 900.0, "adapter": 0.0})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


def measured(
    store: Store,
    told: Sequence[Row],
    answers: list[dict[str, Any]] | None = None,
    like: str | None = None,
    **given: Any,
) -> str:
    """A finished run whose evaluation measured these rows and gave these answers, on the data of the run
    `like` if there is one; its id."""
    run = planted.finished(store, answers=answers or [], **given)
    worse = sum(adapter > base for _, _, base, adapter in told)
    verdict = given.get("verdict") or {
        "outcome": "worse",
        "text": f"Worse on {worse} of {len(told)} rows.",
        "worse": worse,
    }
    folder = store.folder(run, "evaluate")
    data = store.get(like).data if like else write_data(folder / "data.jsonl", told)
    losses = write_losses(folder / "rows.jsonl", told)
    found = store.get(run).stage("evaluate").artifacts
    made = [*found, {"name": "rows", "kind": "row_losses", "path": str(losses), "bytes": 1}]
    with store._write() as db:
        db.execute("UPDATE runs SET data = ? WHERE id = ?", (str(data), run))
        db.execute(
            "UPDATE stages SET artifacts = ?, metrics = json_set(metrics, '$.verdict', json(?))"
            " WHERE run = ? AND name = 'evaluate'",
            (json.dumps(made), json.dumps(verdict), run),
        )
    return run


def prove(store: Store, run: str) -> None:
    """Have the run's evaluation name files that answered, which are not those on disk."""
    graph = {"model.onnx": "b" * 64}
    files = {
        side: {"adapter": adapter, "graph": graph}
        for side, adapter in (("base", "none"), ("adapter", "a" * 64))
    }
    with store._write() as db:
        db.execute(
            "UPDATE stages SET metrics = json_set(metrics, '$.files', json(?))"
            " WHERE run = ? AND name = 'evaluate'",
            (json.dumps(files), run),
        )


def answer(prompt: str, expected: str, base: str, adapter: str, **more: Any) -> dict[str, Any]:
    """A row of `answers.json`."""
    facts = {"tokens": 3, "cut": False, "tokens_per_second": 40.0, "first_token_seconds": 0.1}
    sides = {"base": {"text": base, **facts}, "adapter": {"text": adapter, **facts}}
    return {"prompt": prompt, "system": "", "expected": expected, **sides, **more}
