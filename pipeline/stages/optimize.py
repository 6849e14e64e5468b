"""optimize: the ONNX graph ONNX Runtime GenAI runs, with the adapter as a file of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
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
    """The Olive workflow: export, then the adapter's inputs if there is an adapter.

    An earlier export with places for the adapter is taken as it is, and only the adapter is written.
    """
    adapter = {
        "type": "LoraInputs",
        "adapter_path": str(context.inputs.get("adapter", "")),
        "base": context.name,
    }
    graph = earlier(context)
    if graph is not None:
        made = {"type": "ONNXModel", "model_path": str(graph), "onnx_file_name": GRAPH}
        return olive.workflow(context, made, {"adapter": adapter}, provider=options.provider)
    passes: dict[str, dict[str, Any]] = {
        "export": {
            "type": "GenaiBuilder",
            "precision": options.precision,
            "template": context.template,
            "extra_options": {"block_size": options.block_size, "accuracy_level": options.accuracy_level},
        }
    }
    if options.device == "cpu":
        passes["flat"] = {"type": "FlatTokens"}
    if "adapter" in context.inputs:
        passes["adapter"] = adapter
    return olive.workflow(context, olive.hf_model(context.base), passes, provider=options.provider)


def earlier(context: Context) -> Path | None:
    """An export of the same checkpoint that has places for all modules of the adapter."""
    if "adapter" not in context.inputs:
        return None
    wanted = set(adapted(context.inputs["adapter"]))
    return next((graph for graph, places in context.graphs.items() if wanted <= set(places)), None)


def adapted(adapter: Path) -> list[str]:
    """Names of the modules that a PEFT adapter is for; [] if it does not say."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text("utf-8")).get("target_modules")
    except FileNotFoundError:
        return []
    return sorted(named) if isinstance(named, list) else []


def results(context: Context) -> Results:
    """The folder ONNX Runtime GenAI loads, and the adapter's file in it. Writes the folder's checksums."""
    folder = context.output
    artifacts = [Artifact("ONNX model", "onnx", folder)]
    metrics: dict[str, Any] = {"model_bytes": sum(f.stat().st_size for f in folder.glob(f"{GRAPH}*"))}
    if "adapter" in context.inputs:
        artifacts.append(Artifact("ONNX adapter", "onnx_adapter", folder / ADAPTER))
        metrics["adapter_bytes"] = (folder / ADAPTER).stat().st_size
        graph = earlier(context)
        metrics["places"] = context.graphs[graph] if graph else adapted(context.inputs["adapter"])
        metrics["graph_reused"] = graph is not None
    checksums.write(folder)  # of what was just written, so that later damage shows
    return Results(artifacts, metrics)
