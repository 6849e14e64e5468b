"""finetune: a LoRA adapter trained on the quantized model (or on the float one if quantize is skipped)."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from pipeline import display
from pipeline.inputs.models import architectures
from pipeline.inputs.options import option
from pipeline.stages import workflow_parts
from pipeline.stages.context import Artifact, Context, Results
from pipeline.stages.quantize import Model
from pipeline.system import hardware

# Recipe name to transformers' name and its arguments. What transformers calls "constant" has no warm-up.
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "constant": ("constant_with_warmup", {}),
    "linear": ("linear", {}),
    "cosine": ("cosine", {}),
    "cosine_with_min_lr": ("cosine_with_min_lr", {"min_lr_rate": 0.1}),
    "cosine_with_restarts": ("cosine_with_restarts", {"num_cycles": 4}),
}
DOES = "fine-tuned"
SMALLER = "a smaller finetune.batch_size or finetune.max_length, or with finetune.gradient_checkpointing on"
MODULES = ("pipeline.passes.finetune.quant_lora",)
# Options that may fail for a model and cost nothing in a trial.
KEPT = (
    "method", "target_modules", "packing", "loss_on", "gradient_checkpointing", "precision", "max_length",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    method: Literal["lora", "rslora", "dora", "qlora"] = option(
        "lora",
        "How the adapter is built: rslora keeps high ranks effective; dora learns more like full training"
        " but is slower and cannot be exported; qlora trains on the model in 4-bit nf4, on a GPU only,"
        " without the quantize stage",
    )
    r: int = option(16, "Rank: larger learns more and makes a larger adapter", min=1, max=512, label="Rank")
    alpha: int = option(
        32,
        "Scale of the adapter: multiplies its output by alpha / r, with rslora by alpha / √r",
        min=1,
        max=4096,
    )
    max_steps: int = option(
        60, "Training steps; auto: about three passes over the data", min=1, max=1_000_000, auto=True
    )
    epochs: float | None = option(
        None, "Passes over the data; when given, it decides instead of max_steps", min=0.01, max=10_000
    )
    batch_size: int = option(
        4,
        "Rows at a time; with packing, packed sequences at a time; auto: as many as help and fit into memory",
        min=1,
        max=1024,
        auto=True,
    )
    gradient_accumulation: int = option(
        1,
        "Batches per training step: like a batch_size this many times larger, with the memory of one",
        advanced=True,
        min=1,
        max=1024,
    )
    gpus: int = option(
        1,
        "GPUs that one training uses: each takes its part of the rows of every step, which learns the same;"
        " other stages of the run use one",
        advanced=True,
        min=1,
        max=16,
        label="GPUs",
    )
    learning_rate: float = option(5e-4, "Size of a training step", min=1e-8, max=1.0)
    target_modules: Literal["all-linear"] | str = option(
        "all-linear",
        "Layers that get an adapter: all-linear, or names joined by commas such as q_proj,v_proj",
        advanced=True,
        label="Layers with an adapter",
    )
    dropout: float = option(
        0.0, "Share of adapter inputs dropped while training", advanced=True, min=0.0, max=0.9
    )
    max_length: int = option(
        512,
        "Maximum number of tokens in a row; longer rows are cut; auto: as the rows of the dataset need",
        advanced=True,
        min=16,
        max=32768,
        auto=True,
        label="Max tokens of a row",
    )
    packing: bool = option(
        False,
        "Fill each sequence up to max_length with several rows that do not see each other: faster with short"
        " rows",
        advanced=True,
    )
    loss_on: Literal["response", "all"] = option(
        "response",
        "Learn from the response only, or from the prompt as well",
        advanced=True,
        label="Loss on",
    )
    warmup_steps: int = option(
        5,
        "Steps over which the learning rate rises, no more than half of all",
        advanced=True,
        min=0,
        max=100_000,
    )
    scheduler: Literal["constant", "linear", "cosine", "cosine_with_min_lr", "cosine_with_restarts"] = option(
        "cosine",
        "How the learning rate changes after warm-up; cosine_with_min_lr ends at a tenth of it instead of at"
        " zero, cosine_with_restarts falls four times",
        advanced=True,
    )
    weight_decay: float = option(
        0.0,
        "Pulls the adapter towards zero; may help against memorizing rows",
        advanced=True,
        min=0.0,
        max=1.0,
    )
    eval_every: int = option(
        0,
        "Steps between losses on validation rows; the adapter with the lowest is kept. There are as many as"
        " the held-out rows, which judge it, and are taken from the training rows. 0 keeps the last adapter",
        advanced=True,
        min=0,
        max=1_000_000,
        label="Steps between evaluations",
    )
    early_stop: int = option(
        0,
        "Stop after this many validation losses in a row without improvement; 0 never stops early",
        advanced=True,
        min=0,
        max=1000,
        label="Early stopping",
    )
    gradient_checkpointing: bool = option(False, "Use less memory; takes about a third longer", advanced=True)
    precision: Literal["auto", "bfloat16", "mixed", "float32"] = option(
        "auto",
        "Numbers to train in; mixed is float32 with large products in bfloat16. auto is bfloat16 on GPUs and"
        " CPUs with AMX, mixed on CPUs with AVX-512 BF16 (lora, rslora), float32 elsewhere",
        advanced=True,
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    problems = []
    known = [name.rpartition(".")[2] for name in architectures.linears(model.config)]
    for name in targets(options) or []:
        if known and name not in known:
            problems.append(
                f"finetune.target_modules: {display.value(name)} is not a linear layer of this model;"
                f" allowed: all-linear or some of {', '.join(known)}"
            )
    if targets(options) == []:
        problems.append(
            "finetune.target_modules: '' does not name a layer; allowed: all-linear, or names joined by"
            " commas"
        )
    longest = architectures.positions(model.config)
    if longest is not None and options.max_length > longest:
        problems.append(
            f"finetune.max_length: {options.max_length} is more than the model reads;"
            f" allowed: up to {longest}"
        )
    return (
        problems
        + _schedule_problems(options)
        + _gpus_problems(options)
        + _packing_problems(options, model)
        + _qlora_problems(options, model)
    )


def _schedule_problems(options: Options) -> list[str]:
    """Options for evaluations that would never happen."""
    problems = []
    if options.epochs is None and options.eval_every > options.max_steps:
        problems.append(
            f"finetune.eval_every: {options.eval_every} is more than the {options.max_steps} steps there are;"
            f" allowed: up to {options.max_steps}"
        )
    if options.early_stop and not options.eval_every:
        problems.append(
            "finetune.early_stop: looks at validation losses, so it needs finetune.eval_every, such as 10; or"
            " set early_stop to 0"
        )
    return problems


def _gpus_problems(options: Options) -> list[str]:
    """More GPUs than this machine has, or than a step has rows."""
    problems = []
    here = sum(device != "cpu" for device in hardware.devices())
    if options.gpus > max(here, 1):
        problems.append(
            f"finetune.gpus: {options.gpus} is more than the NVIDIA GPUs that runs may use here ({here});"
            f" allowed: {'up to ' if here > 1 else ''}{max(here, 1)}"
        )
    rows = options.batch_size * options.gradient_accumulation
    if options.gpus > rows:
        problems.append(
            f"finetune.gpus: {options.gpus} is more than the rows of a step ({rows}), so one would have none;"
            " use fewer, or a larger finetune.batch_size or finetune.gradient_accumulation"
        )
    return problems


def _packing_problems(options: Options, model: Model) -> list[str]:
    """Why packing does not work: with LongRoPE, one long row changes the positions of the whole sequence."""
    window = architectures.longrope_window(model.config)
    if not options.packing or window is None or options.max_length <= window:
        return []
    return [
        f"finetune.packing: one row of more than {window} tokens changes how this model reads the others in"
        f" its sequence (longrope); allowed with packing: finetune.max_length up to {window}"
    ]


def _qlora_problems(options: Options, model: Model) -> list[str]:
    """Why qlora does not work here."""
    if options.method != "qlora":
        return []
    if model.config.get("quantization_config"):
        return [
            "finetune.method: 'qlora' quantizes a float model itself, and this one is quantized; use 'lora'"
        ]
    otherwise = "or use method 'lora' with the quantize stage, which trains on int4 weights anywhere"
    if not hardware.gpus():
        return [
            "finetune.method: 'qlora' needs an NVIDIA GPU, and nvidia-smi found none; use a machine with one,"
            f" {otherwise}"
        ]
    if importlib.util.find_spec("bitsandbytes") is None:
        return [
            "finetune.method: 'qlora' needs the package bitsandbytes, which is not installed here; install"
            f" what requirements.txt names, {otherwise}"
        ]
    return []


def check_recipe(options: Options, stages: Mapping[str, Any]) -> list[str]:
    """Methods that do not work with the other stages."""
    problems = []
    if options.precision == "mixed" and options.method not in ("lora", "rslora"):
        problems.append(
            f"finetune.precision: 'mixed' is for methods 'lora' and 'rslora', not {options.method!r};"
            " use 'auto', 'bfloat16' or 'float32'"
        )
    if options.method == "dora" and "optimize" in stages:
        problems.append(
            "finetune.method: 'dora' rescales the base's own products, which an adapter beside the exported"
            " graph cannot do; use 'rslora' or 'lora', or set optimize and evaluate to null"
        )
    if options.method == "qlora" and "quantize" in stages:
        problems.append(
            "finetune.method: 'qlora' puts the float model into nf4 itself; set quantize to null, or use"
            " 'lora' on the quantized model"
        )
    return problems


def needs_gpu(options: Options) -> str | None:
    """The option that needs a GPU."""
    if options.method == "qlora":
        return "finetune.method: 'qlora'"
    return f"finetune.gpus: {options.gpus}" if options.gpus > 1 else None


def decided(options: Options) -> Options:
    """With one GPU: how many computed a result is no part of it. The worker says which ones there are."""
    return replace(options, gpus=1)


def max_length(options: Options) -> int:
    """Tokens to which training cuts a row."""
    return options.max_length


def tried(options: Options, _: Mapping[str, Any]) -> Options:
    """One small step with the same method."""
    kept = {name: getattr(options, name) for name in KEPT}
    return Options(**kept, r=4, alpha=8, max_steps=1, batch_size=1, warmup_steps=0)


def targets(options: Options) -> list[str] | None:
    """Names of the target layers, None for all."""
    if options.target_modules == "all-linear":
        return None
    return [name.strip() for name in options.target_modules.split(",") if name.strip()]


def uses_rows(_: Options) -> bool:
    """Whether the result depends on the dataset."""
    return True


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow; its pass writes a PEFT adapter."""
    common: dict[str, Any] = {"max_length": options.max_length, "loss_on": options.loss_on}
    step = {
        "type": "QuantLora",
        "base": context.base_name,
        "method": options.method,
        "r": options.r,
        "alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": targets(options),
        "torch_dtype": options.precision,
        "pack_length": options.max_length if options.packing else None,
        "eval_every": options.eval_every,
        "early_stop": options.early_stop,
        "train_data_config": "train",
        "eval_data_config": "held_out",
        "training_args": _training_args(options, context),
    }
    data_configs = [
        workflow_parts.rows("train", context, part="learn" if options.eval_every else "train", **common),
        workflow_parts.rows("held_out", context, part="eval", **common),
    ]
    if options.eval_every:
        step["validation_data_config"] = "validation"
        data_configs.append(workflow_parts.rows("validation", context, part="validation", **common))
    return workflow_parts.workflow(
        context, workflow_parts.hf_model(context.base), {"finetune": step}, data_configs
    )


def _training_args(options: Options, context: Context) -> dict[str, Any]:
    """transformers.TrainingArguments, by Olive's names. The pass shortens a warm-up of more than half."""
    scheduler, arguments = SCHEDULERS[options.scheduler]
    length: dict[str, Any] = {"max_steps": options.max_steps}
    if options.epochs is not None:
        length = {"max_steps": -1, "num_train_epochs": options.epochs}
    return {
        "output_dir": str(context.checkpoints),
        **length,
        "per_device_train_batch_size": options.batch_size,
        "gradient_accumulation_steps": options.gradient_accumulation,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": scheduler,
        "lr_scheduler_kwargs": arguments,
        "warmup_steps": options.warmup_steps,
        "weight_decay": options.weight_decay,
        "gradient_checkpointing": options.gradient_checkpointing,
        "seed": context.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "no",
        "eval_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": context.device != "cpu",
        "use_cpu": context.device == "cpu",
    }


def results(_: Options, context: Context) -> Results:
    """The adapter and the record of its training."""
    folder = context.output / "adapter"
    record = json.loads((folder / "training.json").read_text("utf-8"))
    return Results([Artifact("adapter", "adapter", folder)], record)
