"""What is wrong with the small files of a model's folder, found before any library reads them.

Pure functions: they take dictionaries and return a sentence without its full stop, "" if nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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

# More than any real model has, by names that libraries know it by. Whatever is larger takes all memory in
# code that builds a model or a list of its layers, before anything else is wrong with it.
MOST = {
    name: most
    for most, names in {
        1: ("partial_rotary_factor", "rotary_pct"),  # a part of each head
        10_000: (  # real: 126
            "num_hidden_layers", "num_layers", "n_layer", "n_layers", "depth", "num_mtp_layers",
            "num_nextn_predict_layers",
        ),
        1 << 14: (  # heads and their sizes, real: 128 and 576; experts, real: 512
            "num_attention_heads", "num_key_value_heads", "num_heads", "n_head", "n_heads", "head_dim",
            "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
            "num_local_experts", "num_experts", "n_routed_experts", "n_shared_experts", "moe_num_experts",
            "num_experts_per_tok",
        ),
        1 << 17: (  # real: 18,432
            "hidden_size", "n_embd", "d_model", "q_lora_rank", "kv_lora_rank", "hidden_size_per_layer_input",
        ),
        1 << 20: (  # real: 57,344
            "intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size", "n_inner",
            "ffn_dim", "d_ff", "num_labels",
        ),
        1 << 22: ("vocab_size", "vocab_size_per_layer_input"),  # real: 262,144
        1 << 25: (  # real: 10,485,760
            "max_position_embeddings", "original_max_position_embeddings", "n_positions", "n_ctx",
        ),
    }.items()
    for name in names
}  # fmt: skip
MOST_ANGLES = 1 << 31  # positions times a head's size: an export has a table of their sines and cosines


def of_config(config: Any) -> str:
    """Faults of a config.json as given; transformers fills in what it leaves out."""
    if not isinstance(config, dict):
        return "config.json is not a mapping, so it is not one of a Hugging Face model"
    for name in MAPPINGS:
        if not isinstance(config.get(name), dict | None):
            return f"config.json: {name} is not a mapping; {WAY_OUT}"
    wrong = _of_names(config) or _too_large(config)
    wrong = wrong or _of_sizes(config) or _of_sizes(config.get("text_config") or {})
    wrong = wrong or _of_packing(config.get("quantization_config") or {})
    return f"config.json: {wrong}; {WAY_OUT}" if wrong else ""


def of_filled(given: Mapping[str, Any], filled: Mapping[str, Any]) -> str:
    """Faults of a config.json after transformers has filled it in."""
    given, filled = given.get("text_config") or given, filled.get("text_config") or filled
    if not all(filled.get(name) for name in NEEDED):
        return unlike(filled)
    if wrong := _too_large(filled) or _of_sizes(filled) or _too_long(filled):
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
    named = isinstance(known, list) and all(isinstance(one, str) and one.isidentifier() for one in known)
    if known is not None and not named:
        return "architectures is not a list of names"
    return ""


def _too_large(config: Mapping[str, Any]) -> str:
    """What is larger than any real model, in the config or one inside it."""
    for each in _configs(config):
        for name in MOST.keys() & each.keys():
            value = each[name]
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, int | float) and one > MOST[name]:
                    return f"{name} is {display.value(one)}, and no model has more than {MOST[name]:,}"
    return ""


def _configs(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A config and those inside it, however deep."""
    left = [config]
    while left:
        each = left.pop()
        yield each
        left += [value for value in each.values() if isinstance(value, dict)]


def _too_long(filled: Mapping[str, Any]) -> str:
    """Positions, of a config that is good so far and has a head's size."""
    longest, hidden = filled.get("max_position_embeddings") or 0, filled["hidden_size"]
    size = filled.get("head_dim") or hidden // filled["num_attention_heads"]
    if longest * size <= MOST_ANGLES:
        return ""
    return f"max_position_embeddings is {longest:,} with heads of {size:,}, and no model has so much"


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
