"""Sizes read off config.json, against models that transformers builds of the same file."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.stages.costs import shape
from pipeline.stages.costs.shape import Packed
from tests.helpers.lab import CONFIG
from tests.helpers.tiny import COMMON, MODELS


@pytest.mark.parametrize("kind", ["llama", "llama3", "phi3", "qwen2", "qwen3", "gemma", "mistral"])
def test_weights_are_those_that_transformers_makes(kind: str) -> None:
    import torch
    import transformers

    name, more = MODELS[kind]
    config = getattr(transformers, f"{name}Config")(**COMMON, **more)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForCausalLM")(config)
    counted = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1)
    found = shape.of(config.to_dict())
    assert found is not None
    assert found.body + found.ends == counted


def test_a_packed_model_is_as_large_as_its_file() -> None:
    found = shape.of({**CONFIG, "torch_dtype": "float32"})
    assert found is not None
    packed = found.with_packed(Packed(4, 16))
    # A scale of 4 bytes and half a byte of zero point for each 16 codes of half a byte.
    assert packed.stored == found.body * (0.5 + 4.5 / 16) + 4 * found.ends
    head = found.with_packed(Packed(4, 16, head=True)).stored
    assert head < packed.stored


@pytest.mark.parametrize(
    "change",
    [
        {"hidden_size": None}, {"num_hidden_layers": 0}, {"vocab_size": "many"}, {"hidden_size": True},
        {"num_attention_heads": 128}, {"num_experts": 8}, {"text_config": 5},
    ],
)  # fmt: skip
def test_a_config_that_does_not_say_has_no_shape(change: dict[str, Any]) -> None:
    assert shape.of({**CONFIG, **change}) is None


@pytest.mark.parametrize("name", ["hidden_size", "num_hidden_layers", "vocab_size"])
@pytest.mark.parametrize("value", [1 << 30, 10**400], ids=["large", "no float"])
def test_what_is_larger_than_any_model_is_large_and_not_unknown(name: str, value: int) -> None:
    found = shape.of({**CONFIG, name: value})
    assert found is not None
    assert found.float_bytes > 1 << 36


@pytest.mark.parametrize("packed", [{"bits": 99, "group_size": -1}, {"bits": None}, {"group_size": "x"}])
def test_an_odd_quantization_is_taken_for_a_usual_one(packed: dict[str, Any]) -> None:
    found = shape.of({**CONFIG, "quantization_config": packed})
    assert found is not None
    assert found.packed == Packed(4, 128)
