"""What is alive at a stage's peak in main memory, where nothing else computes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pipeline.stages import finetune, optimize, quantize
from pipeline.stages.costs import finetune_cost, optimize_cost, quantize_cost, shape
from pipeline.stages.costs.cost import Rows
from pipeline.stages.costs.machine import Machine

CONFIG: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4,
    "num_attention_heads": 8, "num_key_value_heads": 8, "vocab_size": 32000, "dtype": "float32",
    "tie_word_embeddings": False,
}  # fmt: skip
ROWS = Rows(36, 4, 120.0, 140.0)
CPU, GPU = Machine(native_bf16=False), Machine(native_bf16=False, gpu=True)


def sizes(**changes: Any) -> shape.Shape:
    """A model's sizes, with other settings in its config.json."""
    found = shape.of({**CONFIG, **changes})
    assert found is not None
    return found


def test_calibrating_and_writing_the_result_are_not_at_the_same_time() -> None:
    small = quantize.Options(algorithm="awq", calibration_blocks=1, calibration_length=64)
    large = quantize.Options(algorithm="awq", calibration_blocks=32, calibration_length=512)
    written = quantize_cost.memory_parts(small, sizes(), CPU)
    calibrated = quantize_cost.memory_parts(large, sizes(), CPU)
    assert ("ends" in written, "running" in written) == (True, False)
    assert ("ends" in calibrated, "running" in calibrated) == (False, True)


def test_gptq_after_awq_is_the_peak_where_a_matrix_reads_much() -> None:
    wide = sizes(intermediate_size=1 << 15)
    alone = quantize.Options(compensate=False, calibration_blocks=1)
    found = quantize_cost.memory_parts(replace(alone, compensate="auto"), wide, CPU)
    assert "running" in quantize_cost.memory_parts(alone, wide, CPU)
    assert (found["gram"], found["inverted"]) == (20.0 * 2**30, 12.0 * 512 * 2**15)
    assert "running" not in quantize_cost.gpu_parts(quantize.Options(), wide)


def test_what_takes_less_begins_with_awq_alone_where_gptq_follows() -> None:
    assert quantize_cost.smaller(quantize.Options())[0] == ("compensate", False, {"compensate": False})
    for given in ({"compensate": False}, {"algorithm": "gptq"}):
        assert quantize_cost.smaller(quantize.Options(**given))[0][0] == "calibration_blocks"


def test_what_sensitivity_tries_counts_where_it_is_more_than_rounding() -> None:
    """Of each of four layers q, k and v together, o, gate, up, down: all on 2 blocks of 256 tokens."""
    plain = quantize.Options(algorithm="rtn")
    tried = replace(plain, mixed_precision="sensitivity")
    hidden, logits = 2 * 4 * 5 * 512 * 512 * 4, 16 * 512 * 32000
    found = quantize_cost.memory_parts(tried, sizes(), CPU)
    assert (found["hidden"], found["running"]) == (hidden, logits)
    assert "hidden" not in quantize_cost.memory_parts(plain, sizes(), CPU)
    assert quantize_cost.gpu_parts(tried, sizes())["hidden"] == hidden
    assert "hidden" not in quantize_cost.memory_parts(tried, sizes(), GPU)  # it is on the GPU
    before, after = (quantize_cost.seconds_parts(given, sizes(), CPU) for given in (plain, tried))
    assert (before["products"], after["products"] > 0) == (0, True)
    assert after["files"] > before["files"]


def test_what_takes_less_is_first_no_search_for_sensitive_matrices() -> None:
    none = {"mixed_precision": "none"}
    for algorithm in ("awq", "rtn"):
        tried = quantize.Options(algorithm=algorithm, mixed_precision="sensitivity")
        assert quantize_cost.smaller(tried)[0] == ("mixed_precision", "none", none)
    assert (
        quantize_cost.smaller(quantize.Options(mixed_precision="sensitivity"))[-1][2].items() >= none.items()
    )


def test_gptq_after_awq_waits_for_each_column_of_a_gpu_and_no_clipping_is_searched() -> None:
    shape = sizes()
    after, alone = (
        quantize_cost.seconds_parts(quantize.Options(compensate=compensate), shape, GPU)
        for compensate in (True, False)
    )
    columns = 4 * (3 * 512 + 1408)  # of four layers, each input once
    assert after["columns"] == pytest.approx(columns * 4 * GPU.call_seconds)
    assert alone["columns"] == 0
    after, alone = (
        quantize_cost.seconds_parts(quantize.Options(compensate=compensate), shape, CPU)
        for compensate in (True, False)
    )
    assert after["search"] < alone["search"]


def test_awq_has_two_layers_on_a_gpu_and_looks_at_their_weights_in_less_time() -> None:
    of_awq, of_gptq = (
        quantize_cost.gpu_parts(quantize.Options(algorithm=algorithm, compensate=False), sizes())
        for algorithm in ("awq", "gptq")
    )
    assert of_awq["kept"] == 2 * of_gptq["kept"]
    alike = replace(CPU, gpu=True)
    here, there = (
        quantize_cost.seconds_parts(quantize.Options(compensate=False), sizes(), machine)["search"]
        for machine in (CPU, alike)
    )
    assert there == pytest.approx(quantize_cost.FUSED * here)


def test_each_of_several_gpus_takes_as_many_steps_of_its_part_of_the_rows() -> None:
    alone = finetune.Options(batch_size=8, epochs=2.0)
    each = finetune_cost.on_each_gpu(replace(alone, gpus=2), ROWS)
    assert each == replace(alone, batch_size=4, epochs=None, max_steps=finetune_cost.steps(alone, ROWS))
    many = replace(alone, gpus=3, batch_size=2, gradient_accumulation=8)
    each = finetune_cost.on_each_gpu(many, ROWS)
    assert (each.batch_size, each.gradient_accumulation) == (2, 3)
    one, two = (finetune_cost.estimate(replace(alone, gpus=gpus), sizes(), ROWS, GPU) for gpus in (1, 2))
    assert two.memory.likely == 2 * one.memory.likely
    assert two.gpu_memory is not None
    assert one.gpu_memory is not None
    assert two.gpu_memory.likely < one.gpu_memory.likely
    assert two.seconds.likely < one.seconds.likely


@pytest.mark.parametrize(("dtype", "ends"), [("float32", 1), ("bfloat16", 2)])
def test_of_a_mapped_file_the_embedding_is_not_all_in_memory(dtype: str, ends: int) -> None:
    packed = sizes(dtype=dtype).with_packed(shape.Packed(4, 128))
    parts = finetune_cost.memory_parts(finetune.Options(), packed, ROWS, CPU)
    assert parts["weights"] == 4 * (packed.body + ends * packed.embedding)
    assert (parts["packed"] > 0) == (dtype == "float32")


def test_what_the_logits_took_is_free_for_the_layer_that_is_computed_again() -> None:
    options = finetune.Options(gradient_checkpointing=True, precision="float32")
    found = finetune_cost.step_parts(options, sizes(), ROWS, CPU)
    plain = finetune_cost.step_parts(replace(options, gradient_checkpointing=False), sizes(), ROWS, CPU)
    assert found["logits"] == plain["logits"] > found["kept in float32"]
    tokens = found["logits"] / (ROWS.answer * CONFIG["vocab_size"] * finetune_cost.LOGIT)
    assert found["kept in float32"] == pytest.approx(tokens * 4 * 4 * CONFIG["hidden_size"])


@pytest.mark.parametrize(
    ("vocabulary", "machine", "copied"), [(200000, CPU, True), (300, CPU, False), (200000, GPU, False)]
)
def test_copies_of_a_large_tied_embedding_are_a_moment_of_their_own(
    vocabulary: int, machine: Machine, copied: bool
) -> None:
    tied = sizes(vocab_size=vocabulary, tie_word_embeddings=True)
    parts = optimize_cost.memory_parts(optimize.Options(), tied, ROWS, machine, True)
    assert ("imported" in parts, "written" in parts) == (copied, not copied)
    assert parts["tied" if copied or machine.gpu else "ends"] == 4 * tied.embedding
