"""What is wrong with the small files of a model's folder, found before any library reads them.

Pure functions: they take dictionaries and return a sentence without its full stop, "" if nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline import display

WAY_OUT = "put the model's original files there, or choose another base model"
MAPPINGS = ("quantization_config", "rope_parameters", "rope_scaling", "text_config")
COUNTS = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "vocab_size", "max_position_embeddings", "original_max_position_embeddings",
)  # fmt: skip
# Sizes that every decoder's config has once transformers has filled it in.
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def of_config(config: Any) -> str:
    """Faults of a config.json as given; transformers fills in what it leaves out."""
    if not isinstance(config, dict):
        return "config.json is not a mapping, so it is not one of a Hugging Face model"
    for name in MAPPINGS:
        if not isinstance(config.get(name), dict | None):
            return f"config.json: {name} is not a mapping; {WAY_OUT}"
    wrong = _of_names(config) or _of_sizes(config) or _of_sizes(config.get("text_config") or {})
    wrong = wrong or _of_packing(config.get("quantization_config") or {})
    return f"config.json: {wrong}; {WAY_OUT}" if wrong else ""


def of_filled(given: Mapping[str, Any], filled: Mapping[str, Any]) -> str:
    """Faults of a config.json after transformers has filled it in."""
    given, filled = given.get("text_config") or given, filled.get("text_config") or filled
    if not all(filled.get(name) for name in NEEDED):
        return unlike(filled)
    if wrong := _of_sizes(filled):
        return f"config.json: {wrong}; {WAY_OUT}"
    hidden, heads = filled["hidden_size"], filled["num_attention_heads"]
    size = filled.get("head_dim") or hidden // heads
    if hidden % heads and not given.get("head_dim") and size == hidden // heads:
        return f"config.json: num_attention_heads ({heads}) does not divide hidden_size ({hidden}); {WAY_OUT}"
    return f"config.json: head_dim is {size}, an odd number; {WAY_OUT}" if size % 2 else ""


def unlike(config: Mapping[str, Any]) -> str:
    """Why the lab does not support the architecture."""
    return (
        f"{display.value(config.get('model_type'))} models are not built of decoder layers like Llama's,"
        " which the lab works on"
    )


def of_generation(config: Any) -> str:
    """Faults of a generation_config.json."""
    if not isinstance(config, dict):
        return f"generation_config.json is not a mapping; {WAY_OUT}"
    ends = config.get("eos_token_id")
    listed = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if not all(type(end) is int and end >= 0 for end in listed):
        return (
            f"generation_config.json: eos_token_id is {display.value(ends)}, not a token's number; {WAY_OUT}"
        )
    return ""


def _of_names(config: Mapping[str, Any]) -> str:
    if not isinstance(config.get("model_type"), str | None):
        return "model_type is not text"
    known = config.get("architectures")
    if known is not None and not (isinstance(known, list) and all(isinstance(one, str) for one in known)):
        return "architectures is not a list of names"
    return ""


def _of_sizes(config: Mapping[str, Any]) -> str:
    for name in COUNTS:
        value = config.get(name)
        every = value if isinstance(value, list) and name == "intermediate_size" else [value]
        if value is not None and not all(type(one) is int and one > 0 for one in every):
            return f"{name} is {display.value(value)}, not a whole number from 1"
    heads, shared = config.get("num_attention_heads"), config.get("num_key_value_heads")
    if heads and shared and heads % shared:
        return f"num_key_value_heads ({shared}) does not divide num_attention_heads ({heads})"
    kinds, layers = config.get("layer_types"), config.get("num_hidden_layers")
    if kinds is not None and not isinstance(kinds, list):
        return "layer_types is not a list"
    if kinds is not None and layers and len(kinds) != layers:
        return f"layer_types has {len(kinds):,} entries for num_hidden_layers {layers:,}"
    return ""


def _of_packing(given: Mapping[str, Any]) -> str:
    """Faults of the quantization_config of a model that Olive packed."""
    if given.get("quant_method") != "olive":
        return ""
    for name in ("bits", "group_size"):
        if type(given.get(name)) is not int:
            return f"quantization_config: {name} is {display.value(given.get(name))}, not a whole number"
    return ""
