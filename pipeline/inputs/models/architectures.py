"""What a model's config.json says about its weight matrices, without loading the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# A fused matrix has one name here, because PEFT gives it one LoRA adapter.
FUSED = {"phi3"}
PHI3_POSITIONS = 4096  # what transformers takes where a Phi-3 config.json does not say


def linears(config: Mapping[str, Any]) -> dict[str, int]:
    """Input size of each linear layer of a decoder layer, by its path below `model.layers.N`.

    Empty if the config does not say (then nothing can be checked before the model is loaded).
    """
    config = config.get("text_config") or config
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    intermediate = config.get("intermediate_size")
    if not (isinstance(hidden, int) and isinstance(heads, int) and isinstance(intermediate, int)):
        return {}
    attention = heads * (config.get("head_dim") or hidden // heads)
    if config.get("model_type") in FUSED:
        return {
            "self_attn.qkv_proj": hidden,
            "self_attn.o_proj": attention,
            "mlp.gate_up_proj": hidden,
            "mlp.down_proj": intermediate,
        }
    sizes = {f"self_attn.{name}": hidden for name in ("q_proj", "k_proj", "v_proj")}
    if config.get("model_type") == "phi":
        return {**sizes, "self_attn.dense": attention, "mlp.fc1": hidden, "mlp.fc2": intermediate}
    return {
        **sizes,
        "self_attn.o_proj": attention,
        "mlp.gate_proj": hidden,
        "mlp.up_proj": hidden,
        "mlp.down_proj": intermediate,
    }


def layers(config: Mapping[str, Any]) -> int:
    """How many decoder layers there are, 0 if the config does not say."""
    config = config.get("text_config") or config
    return int(config.get("num_hidden_layers") or 0)


def vocabulary(config: Mapping[str, Any]) -> int | None:
    """How many tokens a model knows; None if the config does not say."""
    size = (config.get("text_config") or config).get("vocab_size")
    return size if isinstance(size, int) else None


def positions(config: Mapping[str, Any]) -> int | None:
    """The context length: tokens of prompt and answer together; None if the config does not say."""
    longest = (config.get("text_config") or config).get("max_position_embeddings")
    return longest if isinstance(longest, int) else None


def turned_part(config: Mapping[str, Any]) -> float:
    """How much of each head rotary embeddings turn, from 0 to 1: all of it unless the config says less."""
    config = config.get("text_config") or config
    rope = config.get("rope_parameters") or {}
    part = config.get("partial_rotary_factor", rope.get("partial_rotary_factor"))
    return float(part) if isinstance(part, int | float) and 0 < part <= 1 else 1.0


def mismatched_windows(config: Mapping[str, Any]) -> tuple[int, int] | None:
    """The two context lengths of a Phi-3 model that needs two sets of rotary factors but has none; else None.

    Such a model trains, but ONNX Runtime GenAI's exporter decides by the two lengths and finds no factors.
    """
    if (config.get("architectures") or [""])[0] != "Phi3ForCausalLM":
        return None
    longest = config.get("max_position_embeddings", PHI3_POSITIONS)
    original = config.get("original_max_position_embeddings", PHI3_POSITIONS)
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    scaled = (rope.get("rope_type") or rope.get("type") or "default") != "default"
    return None if scaled or longest == original else (longest, original)


def longrope_window(config: Mapping[str, Any]) -> int | None:
    """Tokens up to which a model with LongRoPE uses its short factors; None for other models."""
    config = config.get("text_config") or config
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if "longrope" not in (rope.get("rope_type"), rope.get("type")):
        return None
    window = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return int(window) if window else None
