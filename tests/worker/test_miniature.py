"""Configs made small, as dictionaries."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.stages import finetune, quantize
from pipeline.stages.recipe import Recipe
from pipeline.worker import miniature

LLAMA = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192},
    "tie_word_embeddings": False,
}
PHI3_LONG = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 131072,
    "original_max_position_embeddings": 4096,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48},
}
GEMMA3 = {
    "model_type": "gemma3_text",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "num_hidden_layers": 26,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 256,
    "vocab_size": 262144,
    "sliding_window": 512,
    "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 4 + ["sliding_attention"] * 2,
}
QWEN3 = {
    "model_type": "qwen3",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "layer_types": ["full_attention"] * 36,
}
CHANGED = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "layer_types",
)


@pytest.mark.parametrize("config", [LLAMA, PHI3_LONG, GEMMA3, QWEN3], ids=lambda config: config["model_type"])
@pytest.mark.parametrize("step", [64, 128, 256])
def test_only_sizes_change_and_heads_keep_theirs(config: dict[str, Any], step: int) -> None:
    small = miniature.small(config, step)
    same = {key: value for key, value in small.items() if key not in CHANGED}
    assert same == {key: value for key, value in config.items() if key not in CHANGED}
    size = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    assert (small.get("head_dim") or small["hidden_size"] // small["num_attention_heads"]) == size
    for width in (small["hidden_size"], small["intermediate_size"], small["num_attention_heads"] * size):
        assert width % step == 0
        assert width <= 2048
    # The two are one number or two, as in the model.
    assert (small["hidden_size"] == small["num_attention_heads"] * size) == (
        config["hidden_size"] == config["num_attention_heads"] * size
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [(LLAMA, (4, 2, 1)), (PHI3_LONG, (2, 2, 1)), (GEMMA3, (2, 1, 6)), (QWEN3, (4, 2, 1))],
)
def test_heads_are_shared_in_kind_and_every_kind_of_layer_is_there(
    config: dict[str, Any], expected: tuple[int, int, int]
) -> None:
    small = miniature.small(config)
    heads, shared, layers = (
        small[f"num_{name}"] for name in ("attention_heads", "key_value_heads", "hidden_layers")
    )
    assert (heads, shared, layers) == expected
    if "layer_types" in config:
        assert small["layer_types"] == config["layer_types"][:layers]
        assert set(small["layer_types"]) == set(config["layer_types"])


def test_a_quantized_model_is_made_small_as_a_float_one() -> None:
    assert "quantization_config" not in miniature.small({**LLAMA, "quantization_config": {"bits": 4}})


def test_the_text_part_of_a_model_that_sees_is_made_small() -> None:
    small = miniature.small(
        {"model_type": "x", "text_config": LLAMA, "vision_config": {"num_hidden_layers": 27}}
    )
    assert small["text_config"] == miniature.small(LLAMA)
    assert small["vision_config"]["num_hidden_layers"] == 1


def test_sizes_by_other_names_are_an_error() -> None:
    with pytest.raises(KeyError):
        miniature.small({"model_type": "gpt2", "n_layer": 12, "n_embd": 768})


def test_options_keep_what_can_fail_and_take_moments() -> None:
    recipe = Recipe(
        quantize=quantize.Options(algorithm="gptq", bits=8, calibration_blocks=512),
        finetune=finetune.Options(method="rslora", epochs=3.0, batch_size=32, eval_every=5, packing=True),
    )
    short = miniature.short(recipe.stages(), LLAMA)
    assert list(short) == ["quantize", "finetune", "optimize"]
    assert (short["quantize"].algorithm, short["quantize"].bits) == ("gptq", 8)
    assert short["quantize"].group_size == 128, "what auto means for the real model"
    assert short["quantize"].calibration_blocks == 4
    assert (short["finetune"].method, short["finetune"].packing) == ("rslora", True)
    assert (short["finetune"].max_steps, short["finetune"].epochs) == (1, None)
    assert (short["finetune"].batch_size, short["finetune"].eval_every) == (1, 0)
    assert short["optimize"] == recipe.optimize
    assert miniature.step_of(recipe.stages(), LLAMA) == 128


def test_sizes_fit_the_groups_of_a_model_that_is_quantized_already() -> None:
    stages = Recipe(quantize=None).stages()
    assert miniature.step_of(stages, LLAMA) == 64
    assert miniature.step_of(stages, {**LLAMA, "quantization_config": {"group_size": 128}}) == 128
    assert miniature.step_of(stages, {**LLAMA, "quantization_config": {"group_size": -1}}) == 64
    assert miniature.step_of(stages, {**LLAMA, "quantization_config": {"quant_method": "x"}}) == 64
