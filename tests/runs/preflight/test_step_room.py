from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.runs.preflight import fitting, predict, step_room
from pipeline.stages import finetune, quantize
from pipeline.stages.costs.cost import Rows
from pipeline.stages.costs.machine import GPU, Machine
from pipeline.system.capacity import Capacity
from tests.runs.preflight.test_predict import STARTER, made

GB = 1000**3
THERE = Capacity(10 * GB, 6 * GB, 100 * GB)


def room(machine: Machine = Machine(), there: Capacity = THERE, **options: Any) -> step_room.StepRoom | None:  # noqa: B008
    return step_room.of(STARTER, finetune.Options(**options), quantize.Options(), machine, there)


def test_a_batch_of_as_many_tokens_is_what_the_preflight_says_fits() -> None:
    for machine in (Machine(), GPU):
        found = room(machine)
        assert found is not None
        length = float(found.tokens // 8)
        rows = Rows(8000, 0, length, length, 1.0)
        question = predict.Question(STARTER, rows, machine)

        def lacking(batch: int, question: predict.Question = question) -> list[fitting.Lack]:
            given = {"batch_size": batch, "max_length": int(question.rows.most)}
            costs = predict.costs(made(finetune=given, optimize=None, evaluate=None), question)
            return [one for one in fitting.lacks(costs, THERE) if one.stage == "finetune"]

        assert lacking(7) == []
        assert lacking(12)


def test_what_needs_more_leaves_room_for_fewer_tokens() -> None:
    plain, checked, exact = room(), room(gradient_checkpointing=True), room(precision="float32")
    assert plain is not None
    assert checked is not None
    assert exact is not None
    assert exact.tokens < plain.tokens < checked.tokens


def test_where_sizes_are_not_known_there_is_no_answer() -> None:
    assert room(GPU, replace(THERE, gpu_memory=None)) is None
    assert step_room.of({"hidden_size": "many"}, finetune.Options(), None, Machine(), THERE) is None


def test_a_model_that_is_too_large_leaves_room_for_none() -> None:
    found = room(there=replace(THERE, memory=GB // 2))
    assert found is not None
    assert found.tokens == 0
