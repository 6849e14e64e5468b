"""optimize: the ONNX graph ONNX Runtime GenAI runs, with the adapter as a file of its own, bound or merged.

For devices without a runtime here, only the workflow is made: generated, checked by Olive, not run.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.exports.contract import ADAPTER, MERGED
from pipeline.inputs.models import architectures
from pipeline.inputs.options import option
from pipeline.stages import artifacts, workflow_parts
from pipeline.stages.context import Artifact, Context, Results
from pipeline.stages.quantize import Model
from pipeline.system import checksums, files, hardware

GRAPH = "model.onnx"
BOUND_FOLDER = "bound"  # in the exported folder
MOST_GRAPHS = 3  # earlier exports considered for reuse: each is read completely
DOES = "exported"
SMALLER = "a smaller model"
MODULES = (
    "pipeline.passes.optimize.genai_builder",
    "pipeline.passes.optimize.fewer_nodes",
    "pipeline.passes.optimize.lora_inputs",
)
WORKFLOW = "workflow.json"
LOSS = "loss.json"  # what is measured of a graph with its adapter
JUDGED = "judged.json"  # in an adapter's folder: its held-out loss, and which rows it was measured on
CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
TRT_RTX = "NvTensorRTRTXExecutionProvider"
# By device and provider, the precisions for which the model builder makes a graph that loads: its float32
# graph for CUDA has outputs that no node makes (onnxruntime-genai 0.18). The last groups have no graph of
# their own: their runtimes compile the CPU's.
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "cpu": {CPU: ("int4", "int8", "fp32"), "OpenVINOExecutionProvider": ("int4", "int8", "fp32")},
    "gpu": {
        CUDA: ("int4", "int8", "fp16", "bf16"),
        "DmlExecutionProvider": ("int4", "fp16"),
        "WebGpuExecutionProvider": ("int4", "int8"),
        TRT_RTX: ("int4", "fp16"),
        "OpenVINOExecutionProvider": ("int4", "int8", "fp32"),
        "QNNExecutionProvider": ("int4", "int8", "fp32"),
    },
    "npu": {
        "QNNExecutionProvider": ("int4", "int8", "fp32"),
        "OpenVINOExecutionProvider": ("int4", "int8", "fp32"),
        "VitisAIExecutionProvider": ("int4", "int8", "fp32"),
        "DmlExecutionProvider": ("int4",),
    },
}
RUN_HERE = {("cpu", CPU), ("gpu", CUDA)}
FLOATS = ("fp16", "bf16", "fp32")
HELD_OUT: dict[str, Any] = {
    "max_length": 2048,
    "loss_on": "response",
    "limit": 64,
}  # as the score stage measures


@dataclass(frozen=True)
class Options:
    device: Literal["cpu", "gpu", "npu"] = option(
        "cpu",
        "Where the exported model will run; for npu, and for providers other than the CPU's and CUDA's, the"
        " workflow is written and checked but not run here",
    )
    provider: Literal[
        "CPUExecutionProvider",
        "CUDAExecutionProvider",
        "DmlExecutionProvider",
        "WebGpuExecutionProvider",
        "NvTensorRTRTXExecutionProvider",
        "OpenVINOExecutionProvider",
        "QNNExecutionProvider",
        "VitisAIExecutionProvider",
    ] = option(
        "CPUExecutionProvider",
        "ONNX Runtime execution provider: CPUExecutionProvider goes with device cpu, CUDAExecutionProvider"
        " with gpu",
    )
    precision: Literal["int4", "int8", "fp16", "bf16", "fp32"] = option(
        "int4",
        "Type of the weights; packed weights of a quantized checkpoint go in unchanged, and its output layer"
        " as lm_head says. fp16 and bf16 are for GPUs. Activations are float32 on a CPU; on a GPU"
        " they are float16, or with bf16 bfloat16",
    )
    adapter: Literal["detachable", "bound", "merged"] = option(
        "detachable",
        "The adapter as a separate file that the graph can use or not; bound, which is that and a second"
        " folder with the adapter as constants of the graph, to ship to runtimes that load no adapters; or"
        " merged into the weights, which are then rounded again: one model without a base side",
    )
    merged_bits: Literal[4, 8] = option(
        8,
        "Bits of packed weights with a merged adapter: 8 keeps what was learned, 4 is half"
        " as large and can undo most of it",
        advanced=True,
    )
    block_size: Literal[16, 32, 64, 128, 256] = option(
        32,
        "Weights per scale where the export itself quantizes",
        advanced=True,
        label="Quantization block",
    )
    accuracy_level: Literal[0, 1, 2, 3, 4] = option(
        4,
        "Precision of the activations in products with packed weights on a CPU: 4 is int8, 1 is float32;"
        " weights in 8 bits need 4",
        advanced=True,
        label="Accuracy of int4 products",
    )
    lm_head: Literal["auto", "int4", "int8", "float"] = option(
        "auto",
        "Type of the output layer: auto keeps what quantize.lm_head packed; else it is int8 with precision"
        " int4 or int8, and float with the others, or where accuracy_level is not 4",
        advanced=True,
        label="Output layer",
    )
    embedding: Literal["auto", "int4", "float"] = option(
        "auto",
        "Type of the token embedding: auto shares the output layer's weights in models that tie the two (or"
        " is int4, where the exporter cannot), and is float in others; int4 and float store one of its own if"
        " the output layer's type is another",
        advanced=True,
        label="Embedding layer",
    )


def not_run_here(options: Options) -> str | None:
    """Why the export does not run for this target; None if it does."""
    if (options.device, options.provider) in RUN_HERE:
        return None
    return f"optimize for {options.device} with {options.provider} is not run here"


def needs_gpu(options: Options) -> str | None:
    """The option that needs a GPU."""
    wanted = options.device == "gpu" and not not_run_here(options)
    return "optimize.device: 'gpu'" if wanted else None


def gpu_problems(options: Options) -> list[str]:
    """What cannot be exported on a machine without a GPU."""
    needed = needs_gpu(options)
    if needed is None or hardware.gpus():
        return []
    return [f"{needed} needs an NVIDIA GPU, and nvidia-smi found none; allowed: 'cpu'"]


def size_step(options: Options, _: Mapping[str, Any]) -> int:
    """Blocks must divide the sizes of a model."""
    return options.block_size


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work, one sentence each."""
    allowed = TARGETS[options.device]
    if options.provider not in allowed:
        return [
            f"optimize.provider: {options.provider!r} does not run on device {options.device!r};"
            f" allowed: {_listed(allowed)}"
        ]
    precisions = allowed[options.provider]
    if options.precision not in precisions:
        where = "device gpu with CUDA" if options.precision == "bf16" else f"{options.provider}"
        other = f"is for {where}" if options.precision == "bf16" else f"has no graph for {where}"
        return [
            f"optimize.precision: {options.precision!r} {other};"
            f" allowed on {options.device} with {options.provider}: {_listed(precisions)}"
        ]
    return _model_problems(model)


def _model_problems(model: Model) -> list[str]:
    """Why the exporter cannot export a model, as far as its config.json says."""
    windows = architectures.mismatched_windows(model.config)
    if windows is None:
        return []
    return [
        f"optimize: this model's config.json does not fit together: max_position_embeddings is {windows[0]},"
        f" original_max_position_embeddings {windows[1]}, and there is no longrope scaling to get from one to"
        " the other, so it cannot be exported; choose another base model, or correct its config.json"
    ]


def check_among(options: Options, stages: Mapping[str, Any], model: Model) -> list[str]:
    """Why these options cannot work beside the other stages of a run, whose options by name are `stages`."""
    quantize = stages.get("quantize")
    packed = quantize is not None or bool(model.config.get("quantization_config"))
    head_packed = bool(quantize and quantize.lm_head) or bool(
        (model.config.get("quantization_config") or {}).get("lm_head")
    )
    problems = [
        *_type_problems(options, packed, head_packed),
        *_speed_problems(options, quantize, model, packed),
        *_adapter_problems(options, stages),
    ]
    reason = not_run_here(options)
    problems += [
        f"{name}: needs a graph, and {reason}; set {name} to null, or take device cpu, or gpu with {CUDA}"
        for name in ("evaluate", "score")
        if reason and name in stages
    ]
    return problems


def _type_problems(options: Options, packed: bool, head_packed: bool) -> list[str]:
    """Types that the builder cannot give to these matrices."""
    problems = []
    if head_packed and options.lm_head != "auto":
        problems.append(
            f"optimize.lm_head: {options.lm_head!r} has no effect, the checkpoint's output layer is packed"
            " already; set it to 'auto', or quantize.lm_head to false"
        )
    if packed:
        return problems
    for name in ("lm_head", "embedding"):
        kind = getattr(options, name)
        if options.precision in FLOATS and kind not in ("auto", "float"):
            problems.append(
                f"optimize.{name}: {kind!r} does not go with precision {options.precision!r} of a float"
                " model; allowed: 'auto' or 'float', or precision 'int4' or 'int8', or the quantize stage"
            )
    if options.precision == "int8" and options.embedding == "int4":
        problems.append(
            "optimize.embedding: 'int4' does not go with precision 'int8' of a float model; allowed: 'auto'"
            " or 'float', or the quantize stage"
        )
    return problems


def _speed_problems(options: Options, quantize: Any, model: Model, packed: bool) -> list[str]:
    """8-bit weights that would be slow: CPUs have no kernel for their products with float activations.

    ONNX Runtime unpacks them to float for every token: 255 ms of CPU time instead of 3 for the starter's
    output layer (ONNX Runtime 1.32).
    """
    if options.device != "cpu" or options.accuracy_level == 4:
        return []
    own = model.config.get("quantization_config") or {}
    eight = {
        "optimize.lm_head": options.lm_head == "int8",
        "optimize.precision": options.precision == "int8" and not packed,
        "optimize.merged_bits": options.adapter == "merged" and options.merged_bits == 8,
        "quantize.bits": quantize.bits == 8 if quantize else own.get("bits") == 8,
        "quantize.mixed_precision": bool(quantize) and quantize.mixed_precision != "none",
    }
    return [
        f"{name}: weights in 8 bits take many times as long on a CPU with optimize.accuracy_level"
        f" {options.accuracy_level}, for which ONNX Runtime has no kernel; set accuracy_level to 4, or take"
        " other weights"
        for name, there in eight.items()
        if there
    ]


def _adapter_problems(options: Options, stages: Mapping[str, Any]) -> list[str]:
    """Adapters that have no place in the graph."""
    tuned = stages.get("finetune") is not None
    if options.adapter != "detachable" and not tuned:
        return [
            f"optimize.adapter: {options.adapter!r} needs the finetune stage, which makes the adapter; set it"
            " to 'detachable', or give finetune options"
        ]
    if options.adapter == "merged":
        return []
    if options.adapter == "bound" and (reason := not_run_here(options)):
        return [
            f"optimize.adapter: 'bound' is made of a graph, and {reason}; allowed: 'detachable' or 'merged'"
        ]
    if tuned and options.precision == "bf16":
        return [
            f"optimize.precision: 'bf16' has no place for a {options.adapter} adapter; allowed: 'int4',"
            " 'int8' or 'fp16', or adapter 'merged'"
        ]
    if tuned and options.provider == TRT_RTX and options.precision == "int4":
        return [
            f"optimize.adapter: 'detachable' has no place in the graph for {TRT_RTX} at int4, which unpacks"
            " weights beside their products; allowed: 'merged'"
        ]
    return []


def _listed(words: Any) -> str:
    return ", ".join(repr(word) for word in words)


def uses_rows(options: Options) -> bool:
    """Whether the result depends on the dataset: what merging loses is measured on held-out rows."""
    return options.adapter == "merged"


def uses_template(_: Options) -> bool:
    """Whether the result depends on the template: the export includes it."""
    return True


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow: export, and the adapter before it, merged, or after it, as inputs of the graph.

    An earlier export with places for the adapter is reused, and only the adapter is written.
    """
    target = (options.device, options.provider)
    graph = None if options.adapter == "merged" else earlier(context)
    if graph is not None:
        made = {"type": "ONNXModel", "model_path": str(graph), "onnx_file_name": GRAPH}
        return workflow_parts.workflow(
            context, made, {"adapter": _places(context)}, [_judged_by(context)], target=target
        )
    passes: dict[str, dict[str, Any]] = {"export": _export(options, context)}
    if options.provider == CUDA and "adapter" in context.inputs and options.adapter != "merged":
        passes["export"]["judged"] = True
    if options.provider == "CPUExecutionProvider":
        passes["fewer"] = {"type": "FewerNodes"}
    data_configs: list[dict[str, Any]] = []
    if "adapter" in context.inputs and options.adapter == "merged":
        passes = {"merge": _merge(options, str(context.inputs["adapter"]), context), **passes}
        data_configs = [workflow_parts.rows("held_out", context, part="eval", **HELD_OUT)]
    elif "adapter" in context.inputs:
        passes["adapter"] = _places(context)
        data_configs = [_judged_by(context)]
    return workflow_parts.workflow(
        context, workflow_parts.hf_model(context.base), passes, data_configs, target=target
    )


def _places(context: Context) -> dict[str, Any]:
    return {
        "type": "LoraInputs",
        "adapter_path": str(context.inputs["adapter"]),
        "base": context.base_name,
        "data_config": "held_out",
        "report": str(context.work / LOSS),
    }


def _judged_by(context: Context) -> dict[str, Any]:
    """The rows that the adapter's training measured its loss on, as it read them."""
    how = {name: value for name, value in _judged(context).items() if name in ("max_length", "loss_on")}
    return workflow_parts.rows("held_out", context, part="eval", **{**HELD_OUT, "limit": None, **how})


def _judged(context: Context) -> dict[str, Any]:
    """How the adapter was judged: {max_length, loss_on, eval_loss}; {} if its folder does not say."""
    try:
        found = json.loads((context.inputs["adapter"] / JUDGED).read_text("utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def _export(options: Options, context: Context) -> dict[str, Any]:
    return {
        "type": "GenaiBuilder",
        "precision": options.precision,
        "template": context.template,
        "lm_head": options.lm_head,
        "embedding": options.embedding,
        "extra_options": {"block_size": options.block_size, "accuracy_level": options.accuracy_level},
    }


def _merge(options: Options, adapter: str, context: Context) -> dict[str, Any]:
    return {
        "type": "MergeAdapter",
        "adapter_path": adapter,
        "data_config": "held_out",
        "bits": options.merged_bits,
        "report": str(context.work / MERGED),
    }


def unrun(context: Context, reason: str) -> Results:
    """The workflow that Olive has checked, to be run on a machine that has the runtime."""
    return Results(
        [Artifact("Olive workflow", "workflow", context.output / WORKFLOW)], {"not_run_here": reason}
    )


def likeness(identity: Mapping[str, str]) -> dict[str, str]:
    """What decides the graph, whichever adapter it was exported with."""
    return {name: value for name, value in identity.items() if name != "adapter"}


def prepared(options: Options, context: Context, home: Path, likeness: str) -> Context:
    """The context with intact earlier exports that differ only in the adapter."""
    if options.adapter == "merged" or "adapter" not in context.inputs:
        return context
    found = artifacts.alike(home, "optimize", likeness)[:MOST_GRAPHS]
    graphs = {each.folder: each.metrics.get("places", []) for each in found if checksums.intact(each.folder)}
    return replace(context, graphs=graphs)


def earlier(context: Context) -> Path | None:
    """An export of the same checkpoint that has places for all modules of the adapter, or for none yet, as a
    scorecard makes it, and this run while it trained: the pass gives it those."""
    if "adapter" not in context.inputs:
        return None
    if context.ahead is not None:
        return context.ahead
    wanted = set(adapted(context.inputs["adapter"]))
    if not wanted:
        return None
    fitting = [graph for graph, places in context.graphs.items() if not places or wanted <= set(places)]
    return max(fitting, key=lambda graph: bool(context.graphs[graph]), default=None)


def adapted(adapter: Path) -> list[str]:
    """Names of the modules that a PEFT adapter is for; [] if it does not say."""
    try:
        named = json.loads((adapter / "adapter_config.json").read_text("utf-8")).get("target_modules")
    except FileNotFoundError:
        return []
    return sorted(named) if isinstance(named, list) else []


def results(options: Options, context: Context) -> Results:
    """The folder ONNX Runtime GenAI loads, and the adapter's file in it, or what merging it changed; and the
    bound folder in it, if there is to be one.

    Writes the folders' checksums.
    """
    folder = context.output
    artifacts = [Artifact("ONNX model", "onnx", folder)]
    metrics: dict[str, Any] = {"model_bytes": files.size(*folder.glob(f"{GRAPH}*"))}
    merged = context.work / MERGED
    if merged.is_file():
        metrics |= json.loads(merged.read_text("utf-8"))
        shutil.copyfile(merged, folder / MERGED)
        artifacts.append(Artifact("merged adapter", "merged", folder / MERGED))
    elif "adapter" in context.inputs:
        artifacts.append(Artifact("ONNX adapter", "onnx_adapter", folder / ADAPTER))
        metrics["adapter_bytes"] = (folder / ADAPTER).stat().st_size
        graph = earlier(context)
        known = context.graphs.get(graph, []) if graph else []
        metrics["places"] = known or adapted(context.inputs["adapter"])
        metrics["graph_reused"] = graph in context.graphs
        metrics |= json.loads((context.work / LOSS).read_text("utf-8"))
        metrics["eval_loss_trained"] = _judged(context).get("eval_loss")
    checksums.write(folder)  # right after writing, so that later damage is detected
    if options.adapter == "bound":
        from pipeline.exports.bound import binding  # here, so that verbs that bind nothing start faster

        bound = binding.bind(folder, ADAPTER, folder / BOUND_FOLDER)
        artifacts.append(Artifact("bound ONNX model", "bound", bound.folder))
    return Results(artifacts, metrics)
