"""The best way of a scorecard, by the rows that its runs have kept."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.inputs.data.telling import ended
from pipeline.runs.comparing import compare_ways, scorecard
from pipeline.stages.recipe import load
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.planted import artifact, finish_all, plant

GROUP = "scorecard-20261122-120000-abcd"
FOUND = {"difference": 0.1, "low": 0.0, "high": 0.2, "words": "of its own run"}


def measured(
    store: Store,
    name: str,
    size: int,
    losses: Iterable[float],
    *,
    tokens: int = 10,
    against: Any = FOUND,
    exact: bool = True,
    copies: int | None = None,
    **more: Any,
) -> Run:
    """A run of a scorecard that has kept these losses of its export, and those of the float model, by row."""
    recipe = load(settings.SAMPLES / "travel.yaml").to_dict()
    quantize = None if name == "float" else recipe["quantize"] | {"algorithm": name}
    stages = ("optimize", "score") if name == "float" else ("quantize", "optimize", "score")
    given = recipe | {"group": GROUP, "quantize": quantize} | more
    run = plant(store, stages=stages, **given)
    told = artifact(store, run, "row_losses")
    file = Path(told["path"]) / "rows.jsonl"
    lines: list[dict[str, Any]] = [{"inputs": {}}]
    draw = random.Random(0)
    for line, loss in enumerate(losses, 1):
        hard = draw.gauss(3, 1)
        lines.append({"kind": "held_out", "line": line, "tokens": tokens, "base": tokens * (hard + loss)})
        if exact:
            lines.append({"kind": "float", "line": line, "tokens": tokens, "float": tokens * hard})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return finish_all(
        store,
        run,
        {
            "optimize": {"artifacts": [{**artifact(store, run, "onnx"), "bytes": size}]},
            "score": {
                "metrics": {"rows": 20, "against_float": against, "copies_left_out": copies},
                "artifacts": [{**told, "path": str(file)}],
            },
        },
    )


def noise(seed: int, mean: float, width: float = 0.01, rows: int = 20) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, width) for _ in range(rows)]


def best(store: Store) -> str:
    return ended(compare_ways.best(store, GROUP))


def test_ways_are_compared_by_rows_and_not_by_their_intervals(store: Store) -> None:
    """By the intervals, which overlap, RTN would be the best, as it is smaller."""
    measured(store, "float", 600, noise(0, 0), against=None, exact=False)
    shared = noise(1, 0.06, 0.02)
    measured(store, "awq", 90, shared)
    assert best(store) == ""
    measured(store, "rtn", 85, [a + b for a, b in zip(shared, noise(2, 0.02), strict=True)])
    said = best(store)
    assert said.startswith("AWQ with GPTQ suits best: 2.1 % more loss than float on your rows (1.")
    assert said.endswith("), 15 % of the size.")
    measured(store, "gptq", 95, noise(3, 0.06, 0.02))
    assert best(store).endswith("15 % of the size. Your rows cannot tell it from GPTQ.")
    assert ended(compare_ways.asked(GROUP)) == best(store)


def test_copies_of_training_rows_are_counted(store: Store) -> None:
    measured(store, "awq", 90, noise(1, 0.05), copies=3)
    measured(store, "rtn", 85, noise(2, 0.3))
    said = "3 held-out rows nearly repeat training rows and are left out"
    assert best(store).endswith(f" {said}.")
    notes = {row.algorithm: row.note for row in scorecard.rows(store, GROUP)}
    assert notes == {"awq": f"of its own run; {said}", "rtn": "of its own run"}
    assert scorecard.copies(1) == "1 held-out row nearly repeats training rows and is left out"


def test_only_rows_that_all_have_read_as_the_same_tokens_are_compared(store: Store) -> None:
    measured(store, "awq", 90, noise(1, 0.05, rows=30))
    measured(store, "rtn", 85, noise(2, 0.3, rows=9))
    assert best(store).startswith("RTN suits best: no measurable difference from float on your 9 rows (")
    measured(store, "gptq", 70, noise(2, 0.3), tokens=11)
    assert best(store) == ""


def test_ways_on_other_data_are_named_and_not_compared(store: Store) -> None:
    measured(store, "awq", 90, noise(1, 0.05))
    measured(store, "rtn", 85, noise(2, 0.3))
    measured(store, "gptq", 70, noise(3, 0.0), template="{a}\n{b}")
    said = best(store)
    assert said.startswith("AWQ with GPTQ suits best: ")
    assert said.endswith(" Not compared, as the data, model or template is another one: GPTQ.")


def test_what_cannot_be_compared_is_left_out(store: Store) -> None:
    """Files that are gone, exports without a float model's rows, losses that are no numbers."""
    gone = measured(store, "awq", 90, noise(1, 0.05))
    Path(str(gone.artifact("row_losses"))).unlink()
    measured(store, "gptq", 70, noise(3, 0.0), exact=False)
    measured(store, "rtn", 85, noise(2, 0.3))
    assert best(store) == ""
    broken = measured(store, "awq", 90, noise(1, 0.05))
    file = Path(str(broken.artifact("row_losses")))
    lines = file.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "base": None})
    file.write_text("\n".join(lines) + "\n")
    assert best(store) == ""


def test_a_scorecard_of_an_earlier_version_is_compared_as_it_was(store: Store) -> None:
    old = [scorecard.Row(name, name, "done", bytes=90, against_float=FOUND) for name in ("rtn", "awq")]
    assert scorecard.comparable(old) == []
    assert compare_ways.scorecard.best_of_checkpoints(old).startswith("RTN suits best: of its own run.")
