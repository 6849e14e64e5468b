"""quantize: the base model's weights to 4 or 8 bit, calibrated on the user's own rows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from pipeline.errors import LabError
from pipeline.inputs.models import architectures
from pipeline.inputs.options import option
from pipeline.stages import workflow_parts
from pipeline.stages.context import Artifact, Context, Results
from pipeline.system import files, hardware

# Recipe name to Olive pass.
ALGORITHMS = {"awq": "LabAwq", "gptq": "LabGptq", "rtn": "LabRtn"}
AUTOAWQ = "LabAutoAwq"
# Architectures that AutoAWQ 0.2.9 supports, of those we can train and export.
AUTOAWQ_MODELS = ("gemma", "gemma2", "llama", "mistral", "phi3", "qwen2", "qwen3")
CALIBRATED = {"awq", "gptq"}
SENSITIVITY = "sensitivity"
GROUPS = (16, 32, 64, 128)  # MatMulNBits supports no smaller one, and larger ones cost too much accuracy
DOES = "quantized"
SMALLER = "a smaller quantize.calibration_blocks or quantize.calibration_length"
RENAMED = {"calibration_rows": "calibration_blocks"}
OTHER_ENGINE = "take quantize.engine: lab, which needs neither and is faster"


class Model(Protocol):
    """What `check` needs to know of a model: `config` is its config.json."""

    @property
    def config(self) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Options:
    algorithm: Literal["awq", "gptq", "rtn"] = option(
        "awq",
        "How weights are rounded: awq protects what your rows use, and with 4 bits corrects rounding errors"
        " too; gptq only corrects them and takes longer; rtn is quick and needs no text",
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
    lm_head: bool = option(
        False, "Quantize the output layer too", advanced=True, label="Quantize the output layer"
    )
    mixed_precision: Literal["none", "k_quant_down", "k_quant_mixed", "sensitivity"] = option(
        "none",
        "Keep some matrices at 8 bit: k_quant_down a few down projections, k_quant_mixed attention inputs"
        " too, sensitivity those whose rounding changes this model's predictions most",
        advanced=True,
    )
    eight_bit_share: float = option(
        0.2,
        "Share of the layers' weights that mixed_precision: sensitivity keeps at 8 bit, at most",
        advanced=True,
        min=0.01,
        max=0.9,
        label="Share at 8 bit",
    )
    compensate: bool | Literal["auto"] = option(
        "auto",
        "After awq, correct the errors of rounding column by column (GPTQ): nearer to the float model; auto:"
        " yes for awq with 4 bits",
        advanced=True,
        label="Error compensation",
    )
    calibration_blocks: int = option(
        32, "Blocks of text that awq and gptq calibrate on", advanced=True, min=1, max=4096
    )
    calibration_length: int = option(512, "Tokens of a block", advanced=True, min=16, max=8192)
    general_text: float = option(
        0.5,
        "Share of the calibration taken from a bundled general text, the rest from your rows",
        advanced=True,
        min=0.0,
        max=1.0,
        label="Share of general text",
    )
    engine: Literal["lab", "autoawq"] = option(
        "lab",
        "AWQ implementation: the lab's, or the archived AutoAWQ library, which needs an NVIDIA GPU",
        advanced=True,
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    problems = []
    if model.config.get("quantization_config"):
        problems.append(
            "quantize: the model is quantized already; give its float version, or set quantize to null"
        )
    problems += _check_engine(options, model)
    if compensates(options) and options.algorithm != "awq":
        problems.append(
            f"quantize.compensate: goes with algorithm awq, not {options.algorithm}; set it to auto or false"
        )
    if options.bits == 8 and options.mixed_precision != "none":
        problems.append(
            "quantize.mixed_precision: keeps some layers at 8 bit, and with bits 8 all are; set it to none"
        )
    longest = architectures.positions(model.config)
    if longest is not None and options.calibration_length > longest:
        problems.append(
            f"quantize.calibration_length: {options.calibration_length} is more than the model reads;"
            f" allowed: up to {longest}"
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
        else f"is not a power of two from {GROUPS[0]} to {GROUPS[-1]}"
    )
    listed = ", ".join(map(str, allowed)) or "none, so this model cannot be quantized; set quantize to null"
    return [*problems, f"quantize.group_size: {tried} {reason}; allowed: {listed}"]


def _check_engine(options: Options, model: Model) -> list[str]:
    """Why AutoAWQ does not support these options."""
    if options.engine == "lab":
        return []
    problems = []
    if not hardware.gpus():
        problems.append(
            f"quantize.engine: 'autoawq' needs an NVIDIA GPU, and nvidia-smi found none; {OTHER_ENGINE}"
        )
    if find_spec("awq") is None:
        problems.append(
            "quantize.engine: 'autoawq' needs the package autoawq, which only the GPU set has;"
            f" install requirements.txt, or {OTHER_ENGINE}"
        )
    fixed = {"algorithm": "awq", "bits": 4, "symmetric": False, "lm_head": False, "compensate": False}
    fixed["mixed_precision"] = "none"
    given = decided(options)
    problems += [
        f"quantize.{name}: {getattr(given, name)!r} is not what engine 'autoawq' does; allowed: {value!r},"
        " or quantize.engine: lab"
        for name, value in fixed.items()
        if getattr(given, name) != value
    ]
    kind = model.config.get("model_type")
    if kind not in AUTOAWQ_MODELS:
        problems.append(
            f"quantize.engine: 'autoawq' does not know {kind!r} models; allowed: {', '.join(AUTOAWQ_MODELS)},"
            " or quantize.engine: lab"
        )
    return problems


def compensates(options: Options) -> bool:
    """Whether GPTQ follows AWQ. At 8 bits AWQ alone errs too little to gain by it."""
    if options.compensate != "auto":
        return options.compensate
    return options.algorithm == "awq" and options.engine == "lab" and options.bits == 4


def decided(options: Options) -> Options:
    """The same options, with what `auto` stands for as far as it follows from the others."""
    return replace(options, compensate=compensates(options))


def group_sizes(inputs: list[int]) -> list[int]:
    """The groups that divide every layer's number of inputs."""
    return [group for group in GROUPS if all(size % group == 0 for size in inputs)]


def auto_group_size(config: dict[str, Any]) -> int:
    """The largest valid group. Raises LabError if there is none, which `check` reports earlier."""
    allowed = group_sizes(list(architectures.linears(config).values()))
    if not allowed:
        raise LabError(
            f"quantize.group_size: no group of {GROUPS[0]} or more divides every layer of this model, so it"
            " cannot be quantized; set quantize to null, or choose another base model."
        )
    return max(allowed)


def group_of(options: Options, config: Mapping[str, Any]) -> int:
    """The group size for a model. Raises what `auto_group_size` does."""
    chosen = options.group_size
    return chosen if isinstance(chosen, int) else auto_group_size(dict(config))


def needs_gpu(options: Options) -> str | None:
    """The option that needs a GPU."""
    return "quantize.engine: 'autoawq'" if options.engine == "autoawq" else None


def tried(options: Options, config: Mapping[str, Any]) -> Options:
    """The same options with little calibration, and the real model's group size."""
    return replace(
        options,
        group_size=group_of(options, config),
        calibration_blocks=4,
        calibration_length=64,
        general_text=0.5,
    )


def size_step(options: Options, config: Mapping[str, Any]) -> int:
    """Groups must divide the sizes of a model."""
    return group_of(options, config)


def uses_rows(options: Options) -> bool:
    """Whether the result depends on the dataset: rounding to nearest alone looks at weights only."""
    return _reads(options) and options.general_text < 1


def _reads(options: Options) -> bool:
    """Whether any part of the stage reads text."""
    return options.algorithm in CALIBRATED or options.mixed_precision == SENSITIVITY


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow; its last pass saves a checkpoint with `quant_method: olive`."""
    group_size = group_of(options, context.config)
    passes = _select(options, group_size)
    passes["quantize"] = {
        "type": ALGORITHMS[options.algorithm],
        "bits": options.bits,
        "group_size": group_size,
        "sym": options.symmetric,
        "lm_head": options.lm_head,
    }
    if options.algorithm == "awq":
        passes["quantize"]["compensate"] = compensates(options)
    if options.engine == "autoawq":
        passes["quantize"] = {"type": AUTOAWQ, "bits": options.bits, "q_group_size": group_size}
    if not _reads(options):
        return workflow_parts.workflow(context, workflow_parts.hf_model(context.model), passes)
    if options.algorithm in CALIBRATED:
        passes["quantize"]["data_config"] = "calibration"
    calibration = workflow_parts.rows(
        "calibration",
        context,
        kind="lab_calibration",
        blocks=options.calibration_blocks,
        length=options.calibration_length,
        general=options.general_text,
    )
    return workflow_parts.workflow(context, workflow_parts.hf_model(context.model), passes, [calibration])


def _select(options: Options, group_size: int) -> dict[str, dict[str, Any]]:
    """The pass that chooses what is kept at 8 bit, if one is to."""
    chosen = options.mixed_precision
    if chosen == "none":
        return {}
    if chosen != SENSITIVITY:
        return {"select": {"type": "SelectiveMixedPrecision", "algorithm": chosen, "bits": options.bits}}
    measured = {"share": options.eight_bit_share, "data_config": "calibration"}
    grid = {"bits": options.bits, "group_size": group_size, "sym": options.symmetric}
    return {"select": {"type": "LabSensitivity", **grid, **measured}}


def results(_: Options, context: Context) -> Results:
    """The checkpoint, and how much smaller it is."""
    folder = context.output / "model"
    quantized = json.loads((folder / "config.json").read_text("utf-8"))["quantization_config"]
    before = files.size(*context.model.glob("*.safetensors"))
    after = files.size(*folder.glob("*.safetensors"))
    metrics = {
        "bytes_before": before,
        "bytes_after": after,
        "bits": quantized["bits"],
        "group_size": quantized["group_size"],
    }
    return Results([Artifact("quantized model", "checkpoint", folder)], metrics)
