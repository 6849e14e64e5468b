from __future__ import annotations

import json
from typing import Any

import pytest

from pipeline.runs.preflight import earlier
from pipeline.runs.preflight.earlier import Past
from pipeline.stages.costs.cost import Cost
from pipeline.store import Store
from pipeline.store.run import COST
from tests.helpers.planted import finish_all, plant

COST_OF = Cost.of(1e9, None, 1e6, 100.0)


def past(seconds: float = 200.0, memory: float = 1.1e9, **given: Any) -> Past:
    facts: dict[str, Any] = {"options": {"r": 8}, "model": "m", "data": "d", "predicted": COST_OF, **given}
    return Past("finetune", measured={"seconds": seconds, "memory": memory}, **facts)


def test_what_stages_took_is_read_from_their_folders(store: Store) -> None:
    run = plant(store, model="m")
    finish_all(store, run, {"quantize": {"reused": True}})
    measured = {"memory": 5, "gpu_memory": None, "disk": 7, "seconds": 1.5, "odd": "x"}
    for stage in ("quantize", "finetune"):
        folder = store.folder(run, stage)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / COST).write_text(json.dumps({"predicted": COST_OF.to_dict(), "measured": measured}))
    (found,) = earlier.stages(store)  # what was reused took nothing
    assert (found.stage, found.model, found.predicted) == ("finetune", "m", COST_OF)
    assert found.measured == {"memory": 5.0, "disk": 7.0, "seconds": 1.5}


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measured": 5}', '{"measured": {"memory": "x"}}'])
def test_records_that_are_none_are_skipped(store: Store, text: str) -> None:
    run = plant(store)
    finish_all(store, run)
    store.folder(run, "finetune").mkdir(parents=True, exist_ok=True)
    (store.folder(run, "finetune") / COST).write_text(text)
    assert earlier.stages(store) == []


def test_predictions_come_nearer_to_what_was_measured() -> None:
    one, many = (earlier.corrected(COST_OF, [past()] * count, "finetune") for count in (1, 20))
    assert 100 < one.seconds.likely < 130 < many.seconds.likely < 200
    assert many.memory.likely > COST_OF.memory.likely
    assert earlier.corrected(COST_OF, [past()], "quantize") == COST_OF  # another stage


def test_memory_is_never_predicted_to_be_less() -> None:
    assert earlier.corrected(COST_OF, [past(memory=1e8)] * 20, "finetune").memory == COST_OF.memory


def test_one_odd_stage_moves_little() -> None:
    assert earlier.corrected(COST_OF, [past(seconds=1e9)], "finetune").seconds.likely < 150


def test_the_same_stage_again_takes_what_it_took() -> None:
    known = [past(seconds=123.0, options={"r": 4}), past(seconds=456.0)]
    before = earlier.same(known, "finetune", {"r": 8}, "m", "d")
    assert before is known[1]
    again = earlier.like(COST_OF, before)
    assert (again.seconds.likely, again.memory.likely) == (456.0, 1.1e9)
    assert earlier.same(known, "finetune", {"r": 8}, "m", "other") is None


def test_errors_so_far() -> None:
    told = earlier.errors([past(seconds=200.0), past(seconds=50.0), past(predicted=None)])
    assert told == {"finetune": {"stages": 2, "memory": pytest.approx(0.0909, abs=1e-3), "seconds": 0.75}}
    assert earlier.errors([]) == {}
