"""A model's config and a recipe's options made small: the same architecture, with little to compute.

Pure functions from dictionaries and dataclasses to the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipeline.stages.all_stages import ask

STEP = 64  # AutoAWQ and our kernels want sizes in multiples of it
MOST_LAYERS = 8
INNER = ("intermediate_size", "moe_intermediate_size", "shared_expert_intermediate_size")
TOWERS = ("vision_config", "audio_config")


def small(config: Mapping[str, Any], step: int = STEP) -> dict[str, Any]:
    """A config like `config`, but with few heads and layers and float weights.

    Heads keep their size, so that all rotary settings stay valid, and so does the vocabulary, which is the
    tokenizer's. Widths are multiples of `step`. `config` is one that transformers has filled in.
    Raises KeyError, TypeError or ValueError if it names its sizes differently.
    """
    made = {key: value for key, value in config.items() if key != "quantization_config"}
    for tower in TOWERS:
        if isinstance(made.get(tower), dict):
            made[tower] = {**made[tower], "num_hidden_layers": 1, "depth": 1}
    if isinstance(config.get("text_config"), dict):
        return {**made, "text_config": _decoder(config["text_config"], step)}
    return _decoder(made, step)


def _decoder(config: Mapping[str, Any], step: int) -> dict[str, Any]:
    layers = layers_needed(config)
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    size = config.get("head_dim") or hidden // heads
    few, shared = _heads(heads, config.get("num_key_value_heads") or heads, size, step)
    width = few * size
    if heads * size != hidden:  # the model keeps the two apart
        width = 2 * step if few * size != 2 * step else 3 * step
    made = {**config, "num_hidden_layers": layers, "num_attention_heads": few, "hidden_size": width}
    if "num_key_value_heads" in config:
        made["num_key_value_heads"] = shared
    for name in INNER:
        if config.get(name):
            value = 2 * width
            made[name] = [value] * layers if isinstance(config[name], list) else value
    for name in _by_layer(config):
        made[name] = made[name][:layers]
    return made


def _heads(heads: int, shared: int, size: int, step: int) -> tuple[int, int]:
    """A few heads and their key and value heads: equal, grouped or a single one, as in the model.

    As many as are needed for a width that `step` divides.
    """
    few = 2 if shared in (1, heads) else 4
    while few * size % step:
        few *= 2
    if shared == 1:
        return few, 1
    return few, few if shared == heads else few // 2


def layers_needed(config: Mapping[str, Any]) -> int:
    """How many of the first layers there must be for one of each kind."""
    layers = int(config["num_hidden_layers"])
    lists = [config[name] for name in _by_layer(config)]
    kinds = list(zip(*lists, strict=True))
    return (
        min(next((n for n in range(1, layers) if set(kinds[:n]) == set(kinds)), layers), MOST_LAYERS)
        if kinds
        else 1
    )


def _by_layer(config: Mapping[str, Any]) -> list[str]:
    """Settings with one entry per layer."""
    return [
        name
        for name, value in config.items()
        if isinstance(value, list) and "layer" in name and len(value) == config["num_hidden_layers"]
    ]


def step_of(stages: Mapping[str, Any], config: Mapping[str, Any]) -> int:
    """What sizes must be multiples of, for these options and this model's real config."""
    found = [STEP, (config.get("quantization_config") or {}).get("group_size") or STEP]
    found += [ask(name, "size_step", options, config, default=STEP) for name, options in stages.items()]
    return max(found)  # all are powers of two


def short(stages: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The stages to try, with options for a quick trial; stages that cannot fail for a model are left out."""
    made = {name: ask(name, "tried", options, config, default=options) for name, options in stages.items()}
    return {name: options for name, options in made.items() if options is not None}
