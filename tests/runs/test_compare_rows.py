"""Two runs judged on the same rows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from pipeline.runs import compare_rows
from pipeline.store import Store
from pipeline.store.run import Run
from tests.helpers.planted import artifact, finish_all, plant


def evaluated(
    store: Store,
    better: float = 0.0,
    sides: tuple[str, ...] = ("base", "adapter"),
    rows: int = 20,
    coarse: float = 0.0,
    **more: Any,
) -> Run:
    """A run whose evaluation has kept losses; its adapter's are lower by so many nats a token, both sides'
    higher by `coarse`."""
    run = plant(store, **more)
    told = artifact(store, run, "row_losses")
    file = Path(told["path"]) / "rows.jsonl"
    draw = random.Random(0)
    lines = [json.dumps({"inputs": {}})]
    for number in range(1, rows + 1):
        loss = {"base": 40 + draw.random(), "adapter": 20 + draw.random() - 10 * better}
        loss = {side: total + 10 * coarse for side, total in loss.items()}
        totals = {side: loss[side] for side in sides}
        lines.append(json.dumps({"kind": "held_out", "line": number, "tokens": 10, **totals}))
    lines.append(json.dumps({"kind": "trained", "line": 99, "tokens": 10, "adapter": 5.0}))
    file.write_text("\n".join(lines) + "\n")
    return finish_all(store, run, {"evaluate": {"artifacts": [{**told, "path": str(file)}]}})


def test_the_better_adapter_is_found_and_equal_bases_are_equal(store: Store) -> None:
    one, other = evaluated(store), evaluated(store, better=0.5)
    found = compare_rows.judge(one, other)
    assert (found["runs"], found["rows"]) == ([one.id, other.id], 20)
    assert found["adapter"]["outcome"] == "better"
    assert found["adapter"]["difference"] == pytest.approx(-0.5)
    assert found["base"]["outcome"] == "cannot_tell"
    said = compare_rows.sentences(found)
    assert said[0].startswith(f"{other.id} against {one.id}, with their adapters: Better: 24 % less loss")
    assert said[1].endswith("without adapters: No difference: equal losses on all 20 rows.")
    assert compare_rows.judge(other, one)["adapter"]["outcome"] == "worse"


def test_the_better_quantization_is_found_by_the_models_without_adapters(store: Store) -> None:
    """Also of a run that has no adapter at all."""
    one = evaluated(store, quantize={"algorithm": "awq"})
    other = evaluated(store, quantize={"algorithm": "rtn"}, coarse=0.2, sides=("base",), finetune=None)
    found = compare_rows.judge(one, other)
    assert found["base"]["outcome"] == "worse"
    assert found["base"]["difference"] == pytest.approx(0.2)
    (said,) = compare_rows.sentences(found)
    assert said.startswith(f"{other.id} against {one.id}, without adapters: Worse: 4.9 % more loss")


def test_only_sides_that_both_have_are_compared(store: Store) -> None:
    found = compare_rows.judge(evaluated(store), evaluated(store, sides=("base",)))
    assert "adapter" not in found
    with pytest.raises(InputError, match="have no side in common, with or without an adapter"):
        compare_rows.judge(evaluated(store, sides=("adapter",)), evaluated(store, sides=("base",)))
    with pytest.raises(InputError, match="have no held-out row in common"):
        compare_rows.judge(evaluated(store), evaluated(store, rows=0))


def test_rows_that_are_no_numbers_are_worse(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    file = Path(str(other.artifact("row_losses")))
    lines = file.read_text().splitlines()
    lines[1] = json.dumps({**json.loads(lines[1]), "adapter": None})
    file.write_text("\n".join(lines))
    assert compare_rows.judge(one, other)["adapter"]["text"].startswith("Worse: what it predicts")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": "/elsewhere/rows.jsonl"}, "were evaluated on different data"),
        ({"template": "{a}\n{b}"}, "differ in template"),
        ({"eval_fraction": 0.3}, "differ in eval_fraction"),
        ({"seed": 5}, "differ in seed"),
    ],
)
def test_rows_that_are_no_pairs_are_refused(store: Store, changes: dict[str, Any], said: str) -> None:
    one, other = evaluated(store), evaluated(store, **changes)
    with pytest.raises(InputError, match=said):
        compare_rows.judge(one, other)


def test_another_tokenizer_is_refused(store: Store) -> None:
    one, other = evaluated(store), evaluated(store)
    file = Path(str(other.artifact("row_losses")))
    file.write_text(file.read_text().replace('"line": 7, "tokens": 10', '"line": 7, "tokens": 11'))
    with pytest.raises(InputError, match="read line 7 as other tokens"):
        compare_rows.judge(one, other)


def test_a_run_without_losses_is_named(store: Store) -> None:
    one, other = evaluated(store), finish_all(store, plant(store))
    with pytest.raises(InputError, match=f"{other.id}: has no losses row by row"):
        compare_rows.judge(one, other)
