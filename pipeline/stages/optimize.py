"""optimize: the ONNX graph ONNX Runtime GenAI runs, with the adapter as a file of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from pipeline import checksums
from pipeline.options import option
from pipeline.stages import Artifact, Context, Results, olive
from pipeline.stages.quantize import Model

GRAPH, ADAPTER = "model.onnx", "adapter_weights.onnx_adapter"


@dataclass(frozen=True)
class Options:
    device: Literal["cpu", "gpu"] = option("cpu", "Where the exported model will run")
    provider: Literal["CPUExecutionProvider", "CUDAExecutionProvider"] = option(
        "CPUExecutionProvider", "ONNX Runtime execution provider; CUDAExecutionProvider goes with device gpu"
    )
    precision: Literal["int4", "fp16", "fp32"] = option(
        "int4", "Precision of weights that are not quantized yet; a quantized checkpoint goes in unchanged"
    )
    block_size: Literal[16, 32, 64, 128, 256] = option(
        32, "Weights per scale where the export itself quantizes", advanced=True
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = option(
        4, "Precision of the activations in int4 products: 4 is int8, 1 is float32", advanced=True
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work, one sentence each."""
    problems = []
    wanted = olive.PROVIDERS[options.device]
    if options.provider != wanted:
        problems.append(
            f"optimize.provider: {options.provider!r} does not run on device {options.device!r};"
            f" allowed: {wanted!r}"
        )
    if options.device == "cpu" and options.precision == "fp16":
        problems.append("optimize.precision: 'fp16' is for device gpu; allowed on cpu: 'int4' or 'fp32'")
    return problems


def uses_rows(_: Options) -> bool:
    """Whether the result depends on the dataset: it follows from the checkpoint and the adapter."""
    return False


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow: export, then the adapter's inputs if there is an adapter."""
    passes: dict[str, dict[str, Any]] = {
        "export": {
            "type": "GenaiBuilder",
            "precision": options.precision,
            "template": context.template,
            "extra_options": {"block_size": options.block_size, "accuracy_level": options.accuracy_level},
        }
    }
    if "adapter" in context.inputs:
        passes["adapter"] = {"type": "LoraInputs", "adapter_path": str(context.inputs["adapter"])}
    return olive.workflow(context, olive.hf_model(context.base), passes, provider=options.provider)


def results(context: Context) -> Results:
    """The folder ONNX Runtime GenAI loads, and the adapter's file in it. Writes the folder's checksums."""
    folder = context.output
    artifacts = [Artifact("ONNX model", "onnx", folder)]
    metrics = {"model_bytes": sum(f.stat().st_size for f in folder.glob(f"{GRAPH}*"))}
    if "adapter" in context.inputs:
        artifacts.append(Artifact("ONNX adapter", "onnx_adapter", folder / ADAPTER))
        metrics["adapter_bytes"] = (folder / ADAPTER).stat().st_size
    checksums.write(folder)  # of what was just written, so that later damage shows
    return Results(artifacts, metrics)
