"""quantize: the base model's weights to 4 or 8 bit, calibrated on the user's own rows."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pipeline import architectures
from pipeline.options import option
from pipeline.stages import Artifact, Context, Results, olive

# Recipe name to Olive pass. AWQ becomes a choice with its own pass: "awq": "Awq".
ALGORITHMS = {"rtn": "LabRtn", "gptq": "LabGptq"}
CALIBRATED = {"gptq"}
GROUPS = (16, 32, 64, 128)  # MatMulNBits knows no smaller one, and larger ones cost too much accuracy


class Model(Protocol):
    """What `check` needs to know of a model: `config` is its config.json."""

    @property
    def config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Options:
    algorithm: Literal["rtn", "gptq"] = option(
        "rtn", "How weights are rounded: rtn is quick, gptq corrects rounding errors with your rows"
    )
    bits: Literal[4, 8] = option(4, "Bits per weight")
    group_size: int | Literal["auto"] = option(
        "auto",
        "Weights that share one scale: a power of two that divides every layer",
        min=16,
        max=128,
    )
    symmetric: bool = option(
        False, "Leave out zero points: a little smaller, a little less exact", advanced=True
    )
    lm_head: bool = option(False, "Quantize the output layer too", advanced=True)
    calibration_rows: int = option(64, "Rows that GPTQ looks at", advanced=True, min=1, max=4096)
    calibration_length: int = option(
        512, "Tokens of each calibration row at most", advanced=True, min=16, max=8192
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    problems = []
    if model.config.get("quantization_config"):
        problems.append(
            "quantize: the model is quantized already; give its float version, or set quantize to null"
        )
    sizes = architectures.linears(model.config)
    allowed = group_sizes(list(sizes.values()))
    if options.group_size in allowed or (options.group_size == "auto" and allowed):
        return problems
    tried = GROUPS[0] if options.group_size == "auto" else options.group_size
    name, size = next(((n, s) for n, s in sizes.items() if s % tried), ("", 0))
    reason = (
        f"does not divide model.layers.*.{name} ({size} inputs)"
        if name
        else f"is no power of two from {GROUPS[0]} to {GROUPS[-1]}"
    )
    listed = ", ".join(map(str, allowed)) or "none, so this model cannot be quantized; set quantize to null"
    return [*problems, f"quantize.group_size: {tried} {reason}; allowed: {listed}"]


def group_sizes(inputs: list[int]) -> list[int]:
    """The groups that divide every layer's number of inputs."""
    return [group for group in GROUPS if all(size % group == 0 for size in inputs)]


def auto_group_size(config: dict[str, Any]) -> int:
    """The largest valid group. Raises ValueError if there is none, which `check` has said before."""
    return max(group_sizes(list(architectures.linears(config).values())))


def uses_rows(options: Options) -> bool:
    """Whether the result depends on the dataset: rounding to nearest looks at weights only."""
    return options.algorithm in CALIBRATED


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow; its pass saves a checkpoint with `quant_method: olive`."""
    group_size = options.group_size
    step: dict[str, Any] = {
        "type": ALGORITHMS[options.algorithm],
        "bits": options.bits,
        "group_size": group_size if isinstance(group_size, int) else auto_group_size(context.config),
        "sym": options.symmetric,
        "lm_head": options.lm_head,
    }
    data_configs = []
    if options.algorithm in CALIBRATED:
        step["data_config"] = "calibration"
        data_configs.append(
            olive.rows(
                "calibration",
                context,
                part="train",
                max_length=options.calibration_length,
                limit=options.calibration_rows,
            )
        )
    return olive.workflow(context, olive.hf_model(context.model), {"quantize": step}, data_configs)


def results(context: Context) -> Results:
    """The checkpoint, and how much smaller it is."""
    folder = context.output / "model"
    quantized = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    before = sum(f.stat().st_size for f in context.model.glob("*.safetensors"))
    after = sum(f.stat().st_size for f in folder.glob("*.safetensors"))
    metrics = {
        "bytes_before": before,
        "bytes_after": after,
        "bits": quantized["bits"],
        "group_size": quantized["group_size"],
    }
    return Results([Artifact("quantized model", "checkpoint", folder)], metrics)
