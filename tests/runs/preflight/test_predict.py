"""Predictions as pure functions: what they depend on, and that more work never takes less."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.runs.preflight import predict
from pipeline.runs.preflight.predict import Question
from pipeline.stages import recipe
from pipeline.stages.costs.cost import Rows
from pipeline.stages.costs.machine import GPU, Machine
from tests.helpers.lab import CONFIG

STARTER: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
    "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    "dtype": "float32",
}  # fmt: skip
ROWS = Rows(1000, 100, 150.0, 400.0)
QUESTION = Question(STARTER, ROWS, Machine())


def made(**stages: Any) -> recipe.Recipe:
    return recipe.from_dict({"data": "x.jsonl", **stages})


def test_every_stage_has_ranges() -> None:
    found = predict.costs(made(score={}), QUESTION)
    assert list(found) == ["quantize", "finetune", "optimize", "evaluate", "score"]
    for cost in found.values():
        assert cost.gpu_memory is None
        for range_ in (cost.memory, cost.disk, cost.seconds):
            assert 0 < range_.low <= range_.likely <= range_.high


def test_a_gpu_has_memory_of_its_own() -> None:
    on_gpu = predict.costs(made(), replace(QUESTION, machine=GPU))["finetune"]
    on_cpu = predict.costs(made(), QUESTION)["finetune"]
    assert on_gpu.gpu_memory is not None
    assert on_gpu.seconds.likely < on_cpu.seconds.likely + GPU.import_seconds


@pytest.mark.parametrize(
    ("less", "more"),
    [
        ({"batch_size": 2}, {"batch_size": 8}),
        ({"max_length": 100}, {"max_length": 400}),
        ({"r": 8}, {"r": 64}),
        ({"gradient_checkpointing": True}, {}),
        ({"target_modules": "q_proj"}, {}),
        ({"loss_on": "response"}, {"loss_on": "all"}),
        ({"precision": "bfloat16"}, {"precision": "float32"}),
    ],
)
def test_what_needs_less_memory(less: dict[str, Any], more: dict[str, Any]) -> None:
    small, large = (predict.costs(made(finetune=options), QUESTION)["finetune"] for options in (less, more))
    assert small.memory.high < large.memory.high


def test_more_steps_take_longer_and_hardly_more_memory() -> None:
    few, many = (
        predict.costs(made(finetune={"max_steps": steps}), QUESTION)["finetune"] for steps in (10, 100)
    )
    assert (
        few.memory.high <= many.memory.high <= 1.2 * few.memory.high
    )  # the longest rows come up sooner or later
    assert 2 < many.seconds.likely / few.seconds.likely < 10


def test_quantized_weights_are_smaller_on_the_disk() -> None:
    costs = [predict.costs(made(quantize={"bits": bits}), QUESTION)["quantize"].disk for bits in (4, 8)]
    assert costs[0].likely < costs[1].likely < 4 * 135e6


def test_libraries_are_loaded_while_earlier_stages_work() -> None:
    """All of them, once; a stage waits for what is left, and a fork takes a moment."""
    question = replace(QUESTION, config=CONFIG)
    costs = predict.costs(made(finetune={"max_steps": 1}), question)
    alone = predict.costs(made(finetune={"max_steps": 1}), replace(question, ahead=False))
    assert costs["quantize"] == alone["quantize"]
    saved = alone["finetune"].seconds.likely - costs["finetune"].seconds.likely
    assert saved > Machine().import_seconds / 2
    left = [predict._left_to_import(20.0, before) for before in (0.0, 5.0, 15.0, 100.0)]
    assert left == [20.0, 16.0, 6.0, 20.0 * predict.WARM_LEFT]


def test_the_trial_counts_once_in_the_first_stage() -> None:
    tried, first = (
        predict.costs(made(), replace(QUESTION, config=CONFIG, tried=known)) for known in (True, False)
    )
    assert first["quantize"].seconds.likely > tried["quantize"].seconds.likely + Machine().import_seconds
    assert first["quantize"].memory.high > tried["quantize"].memory.high
    assert first["finetune"].memory == tried["finetune"].memory


def test_a_window_of_millions_takes_memory_where_it_is_exported() -> None:
    long = replace(QUESTION, config={**STARTER, "max_position_embeddings": 30_000_000}, tried=False)
    half = replace(long, config={**long.config, "rope_parameters": {"partial_rotary_factor": 0.5}})
    usual = replace(long, config={**STARTER, "max_position_embeddings": 131_072})
    found = [predict.costs(made(), question) for question in (long, half, usual)]
    for stage in ("quantize", "optimize"):  # the trial exports too
        memory = [each[stage].memory.low for each in found]
        assert memory[0] > 0.8 * predict.TURNED * 30_000_000 * 64
        assert memory[0] > 1.5 * memory[1] > 2 * memory[2]
    assert found[2] == predict.costs(made(), replace(QUESTION, tried=False))
    unexported = made(optimize=None, evaluate=None)
    assert predict.costs(unexported, long) == predict.costs(unexported, usual)


def test_steps_by_batch_are_passes_over_the_data() -> None:
    assert predict.passes(made(finetune={"max_steps": 60, "batch_size": 4}), ROWS) == 0.24
    assert predict.passes(made(finetune={"epochs": 3.0}), ROWS) == 3.0
    assert predict.passes(made(finetune={"gradient_accumulation": 5, "max_steps": 100}), ROWS) == 2.0
    assert predict.passes(made(finetune=None, optimize={}), ROWS) is None


def test_a_model_of_unknown_sizes_is_not_predicted() -> None:
    assert predict.costs(made(), replace(QUESTION, config={"model_type": "new"})) == {}


sizes = st.integers(-(2**40), 2**40)


@settings(max_examples=60, deadline=None)
@given(st.fixed_dictionaries({name: sizes for name in CONFIG if name not in ("architectures", "model_type")}))
def test_any_config_has_finite_costs_or_none(config: dict[str, int]) -> None:
    for cost in predict.costs(made(), replace(QUESTION, config=config)).values():
        assert all(0 <= value < float("inf") for value in cost.memory.to_list() + cost.seconds.to_list())


def test_nothing_of_it_imports_torch() -> None:
    import subprocess
    import sys

    code = "import sys, pipeline.runs.preflight.report; print({'torch', 'olive'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_rows_of_a_file_count_in_time_memory_and_disk() -> None:
    """Whose rows are not known are taken for as many as are asked for."""

    def evaluated(rows: Any, count: int | None) -> Any:
        brought = {} if count is None else {"evaluate": Rows(1, count, 150.0, 400.0)}
        recipe = made(evaluate={"rows": rows, "data": "/prompts.jsonl"})
        return predict.costs(recipe, replace(QUESTION, brought=brought))["evaluate"]

    few, many = evaluated("all", 500), evaluated("all", 1_000_000)
    assert many.seconds.likely > 100 * few.seconds.likely
    assert 4e8 < many.memory.likely - few.memory.likely < 6e8
    assert many.disk.likely - few.disk.likely > 2e8
    assert evaluated(500, 3).seconds.likely < evaluated(500, 500).seconds.likely
    assert evaluated(500, None).seconds == evaluated(500, 500).seconds


def test_a_float_model_beside_the_graph_takes_time_and_memory() -> None:
    plain, beside = (
        predict.costs(made(evaluate={"float": given}), QUESTION)["evaluate"] for given in (False, True)
    )
    assert beside.memory.likely - plain.memory.likely > 4e8
    assert beside.seconds.likely > plain.seconds.likely
    without = predict.costs(made(score={}, optimize=None, evaluate=None), QUESTION)["score"]
    scored = predict.costs(made(score={}), QUESTION)["score"]
    assert scored.seconds.likely > without.seconds.likely
