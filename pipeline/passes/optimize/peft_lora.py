"""A PEFT LoRA adapter as arrays, read from safetensors alone."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load_file

from pipeline import display

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
KEY = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$")
# Variants that do more than y + (xA)B: exported as plain LoRA they would give wrong answers.
VARIANTS = (
    "use_dora", "use_bdlora", "use_qalora", "modules_to_save", "fan_in_fan_out", "lora_bias",
    "megatron_config", "trainable_token_indices", "layer_replication", "alora_invocation_tokens",
    "arrow_config",
)  # fmt: skip
# Initializations that also change the base's weights: the adapter fits only the changed weights.
RESIDUAL = ("pissa", "olora", "corda", "loftq", "lora_ga", "eva_residual")
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Lora:
    """One module's adapter: a [rank, inputs], b [outputs, rank] with the scale folded in, both float32."""

    a: Array
    b: Array

    def rows(self, start: int, stop: int) -> Lora:
        """The adapter of some of the outputs."""
        return Lora(self.a, self.b[start:stop])


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's config. Raises ValueError if the folder is not a plain LoRA adapter in safetensors."""
    if not (folder / CONFIG).is_file():  # a pipe would be waited for
        raise ValueError(f"{folder.name} has no {CONFIG}; give the folder of a PEFT adapter")
    try:
        config = json.loads((folder / CONFIG).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder.name}: {CONFIG} is not JSON: {error}") from None
    kind = str(config.get("peft_type", "")) if isinstance(config, dict) else ""
    if kind != "LORA":
        raise ValueError(f"the adapter is of type {kind or 'unknown'}; only LORA has a place in the graph")
    for variant in VARIANTS:
        if config.get(variant):
            raise ValueError(f"the adapter uses {variant}, which the exported graph has no place for")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(RESIDUAL):
        raise ValueError(f"the adapter began as {start}, which changes the base's weights too")
    _check_scales(config)
    if not (folder / WEIGHTS).is_file():
        raise ValueError(f"{folder.name} has no {WEIGHTS}; other formats can hold code and are not read")
    return dict(config)


def _check_scales(config: Mapping[str, Any]) -> None:
    """Raise ValueError if a scale is not a number."""
    patterns = config.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise ValueError(f"{CONFIG}: alpha_pattern is not a mapping")
    for name, alpha in {"lora_alpha": config.get("lora_alpha"), **patterns}.items():
        if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"{CONFIG}: {name} is {display.value(alpha)}, not a number")
    if special := [name for name in patterns if not re.fullmatch(r"[\w.]{1,200}", name)]:
        raise ValueError(f"{CONFIG}: alpha_pattern {display.value(special[0])} is not the name of a module")


def read_adapter(folder: Path) -> dict[tuple[int, str], Lora]:
    """A PEFT adapter by (layer, last name of the module). Ranks may differ from module to module.

    Raises ValueError for anything but plain LoRA, because it would be exported wrongly.
    """
    config = read_config(folder)
    found: dict[tuple[int, str], dict[str, Array]] = {}
    paths: dict[tuple[int, str], str] = {}  # the modules' whole names
    for key, tensor in load_file(folder / WEIGHTS).items():
        match = KEY.search(key)
        if match is None:
            raise ValueError(
                f"the adapter's {key} has no place in the graph; it adapts attention and MLP layers only"
            )
        layer, _, module, side = match.groups()
        if tensor.ndim != 2 or not tensor.numel():
            raise ValueError(f"the adapter's {key} has shape {list(tensor.shape)}, not two sizes from 1")
        found.setdefault((int(layer), module), {})[side] = tensor.float().numpy()
        paths[int(layer), module] = key.partition(".lora_")[0]
    for (layer, module), sides in found.items():
        if set(sides) != {"A", "B"} or sides["A"].shape[0] != sides["B"].shape[1]:
            raise ValueError(f"layer {layer} {module} of the adapter: A and B do not belong together")
    return {
        place: Lora(sides["A"], sides["B"] * np.float32(scale(config, paths[place], sides["A"].shape[0])))
        for place, sides in found.items()
    }


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's output with: alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA.

    `module` is its whole name; an alpha_pattern holds for names that end in it, as PEFT reads them.
    """
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for name, value in patterns.items() if re.fullmatch(rf"(.*\.)?({name})", module)),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)
