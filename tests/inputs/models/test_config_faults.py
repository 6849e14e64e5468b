"""config_faults: what is wrong with a model's small files, in words."""

from __future__ import annotations

import re
from typing import Any

import pytest

from pipeline.inputs.models import config_faults
from tests.helpers.lab import CONFIG


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"num_key_value_heads": 3}, "num_key_value_heads (3) does not divide num_attention_heads (4)"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0, not a whole number from 1"),
        ({"num_attention_heads": -4}, "num_attention_heads is -4, not"),
        ({"hidden_size": "64"}, "hidden_size is '64', not"),
        ({"hidden_size": 64.0}, "hidden_size is 64.0, not"),
        ({"vocab_size": True}, "vocab_size is True, not"),
        ({"intermediate_size": [96, 0]}, "intermediate_size is [96, 0], not"),
        ({"layer_types": ["full_attention"]}, "layer_types has 1 entries for num_hidden_layers 2"),
        ({"layer_types": "full"}, "layer_types is not a list"),
        ({"model_type": ["llama"]}, "model_type is not text"),
        ({"architectures": {"a": 1}}, "architectures is not a list of names"),
        ({"architectures": "LlamaForCausalLM"}, "architectures is not a list of names"),
        ({"architectures": ["Llama\ud800ForCausalLM"]}, "architectures is not a list of names"),
        ({"architectures": ["Llama\x1b[2J"]}, "architectures is not a list of names"),
        ({"rope_scaling": 8}, "rope_scaling is not a mapping"),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers is 0, not"),
        ({"quantization_config": {"quant_method": "olive", "bits": "4"}}, "bits is '4', not a whole number"),
    ],
)
def test_a_broken_config_is_a_sentence_with_a_way_out(changed: dict[str, Any], said: str) -> None:
    found = config_faults.of_config(CONFIG | changed)
    assert found.startswith("config.json: ")
    assert said in found
    assert found.endswith("; put the model's original files there, or choose another base model")


@pytest.mark.parametrize(
    "changed",
    [
        {"vocab_size": 17_000_000}, {"vocab_size": 10**12}, {"num_hidden_layers": 10**9},
        {"partial_rotary_factor": 3e7},
        {"num_mtp_layers": 10**8},
        {"hidden_size": 10**30}, {"hidden_size": 10**4000}, {"head_dim": 2 * 10**8},
        {"max_position_embeddings": 10**12},
        {"num_local_experts": 10**7}, {"moe_intermediate_size": 1e300}, {"num_labels": 10**9},
        {"intermediate_size": [96, 10**9]}, {"num_attention_heads": 10**9, "num_key_value_heads": 10**9},
        {"n_layer": 10**9}, {"n_positions": float("inf")},
    ],
)  # fmt: skip
def test_what_no_model_has_is_refused_by_name(changed: dict[str, Any]) -> None:
    inside = {"text_config": {**CONFIG, **changed}}
    for given in (CONFIG | changed, CONFIG | inside, CONFIG | {"vision_config": {"inner": changed}}):
        found = config_faults.of_config(given)
        named = "|".join(changed)
        assert re.match(rf"config\.json: ({named}) is .+, and no model has more than [\d,]+; ", found)
        assert len(found) < 300
    assert "and no model has more than" in config_faults.of_filled(CONFIG, CONFIG | changed)


def test_positions_of_large_heads_are_refused_together() -> None:
    scout = {"max_position_embeddings": 10_485_760, "head_dim": 128}
    assert config_faults.of_filled(CONFIG | scout, CONFIG | scout) == ""
    larger = CONFIG | scout | {"head_dim": 512}
    assert "max_position_embeddings is 10,485,760 with heads of 512, and no model has" in (
        config_faults.of_filled(larger, larger)
    )


@pytest.mark.parametrize("config", [[], None, "x", 3])
def test_one_that_is_no_mapping_is_refused(config: Any) -> None:
    assert config_faults.of_config(config).startswith("config.json is not a mapping")
    assert config_faults.of_generation(config).startswith("generation_config.json is not a mapping")


@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"num_key_value_heads": None, "head_dim": None},
        {"intermediate_size": [96, 192], "layer_types": ["a", "b"]},
        {"quantization_config": {"quant_method": "olive", "bits": 4, "group_size": -1}},
        {"quantization_config": {"quant_method": "awq"}},
        {"vocab_size": 1_000_000, "num_hidden_layers": 200, "max_position_embeddings": 10_485_760},
        {"hidden_size": 18432, "intermediate_size": 73728, "num_attention_heads": 128, "num_experts": 512},
    ],
)
def test_a_good_one_is_none(changed: dict[str, Any]) -> None:
    assert config_faults.of_config(CONFIG | changed) == ""
    assert config_faults.of_filled(CONFIG | changed, CONFIG | changed) == ""


@pytest.mark.parametrize(
    ("given", "filled", "said"),
    [
        ({"hidden_size": 66}, {"head_dim": 16}, "num_attention_heads (4) does not divide hidden_size (66)"),
        ({"hidden_size": 66, "head_dim": 16}, {}, ""),
        ({"hidden_size": 66}, {"head_dim": 128}, ""),  # the kind of model has a size of its own
        ({"head_dim": 15}, {}, "head_dim is 15, an odd number"),
        ({}, {"num_key_value_heads": 8}, "num_key_value_heads (8) does not divide num_attention_heads (4)"),
        ({"num_attention_heads": None}, {}, "'llama' models are not built of decoder layers like Llama's"),
    ],
)
def test_what_transformers_has_filled_in_is_looked_at_too(
    given: dict[str, Any], filled: dict[str, Any], said: str
) -> None:
    found = config_faults.of_filled(CONFIG | given, CONFIG | given | filled)
    assert said in found
    assert bool(said) == bool(found)


@pytest.mark.parametrize(("ends", "good"), [(None, 1), (2, 1), ([2, 3], 1), ("x", 0), ([True], 0), (-1, 0)])
def test_ends_are_tokens_numbers(ends: Any, good: bool) -> None:
    assert (config_faults.of_generation({"eos_token_id": ends}) == "") == good
