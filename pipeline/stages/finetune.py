"""finetune: a LoRA adapter trained on the quantized model (or on the float one if quantize is skipped)."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from typing import Any, Literal

from pipeline import architectures
from pipeline.options import option
from pipeline.stages import Artifact, Context, Results, olive
from pipeline.stages.quantize import Model

METHODS = {"lora": "QuantLora"}


@dataclass(frozen=True)
class Options:
    method: Literal["lora"] = option("lora", "How the adapter is built")
    r: int = option(16, "Rank: larger learns more and weighs more", min=1, max=512)
    alpha: int = option(32, "Scale of the adapter; alpha / r multiplies its output", min=1, max=4096)
    max_steps: int = option(60, "Training steps", min=1, max=1_000_000)
    batch_size: int = option(4, "Rows per step", min=1, max=1024)
    learning_rate: float = option(5e-4, "Size of a training step", min=1e-8, max=1.0)
    target_modules: Literal["all-linear"] | str = option(
        "all-linear",
        "Layers that get an adapter: all-linear, or names joined by commas such as q_proj,v_proj",
        advanced=True,
    )
    dropout: float = option(
        0.0, "Share of adapter inputs dropped while training", advanced=True, min=0.0, max=0.9
    )
    max_length: int = option(
        512, "Tokens of a row at most; longer rows are cut", advanced=True, min=16, max=32768
    )
    loss_on: Literal["response", "all"] = option(
        "response", "Learn from the response only, or from the prompt as well", advanced=True
    )
    warmup_steps: int = option(
        5, "Steps over which the learning rate rises, at most half of all", advanced=True, min=0, max=100_000
    )
    scheduler: Literal["constant", "linear", "cosine"] = option(
        "cosine", "How the learning rate goes on after warm-up", advanced=True
    )
    gradient_checkpointing: bool = option(False, "Need less memory, take about a third longer", advanced=True)
    precision: Literal["auto", "bfloat16", "float32"] = option(
        "auto",
        "Numbers to train in; auto is bfloat16 where the hardware multiplies it natively",
        advanced=True,
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    problems = []
    known = [name.rpartition(".")[2] for name in architectures.linears(model.config)]
    for name in targets(options) or []:
        if known and name not in known:
            problems.append(
                f"finetune.target_modules: {name!r} is no linear layer of this model;"
                f" allowed: all-linear or some of {', '.join(known)}"
            )
    if targets(options) == []:
        problems.append(
            "finetune.target_modules: '' names no layer; allowed: all-linear, or names joined by commas"
        )
    longest = (model.config.get("text_config") or model.config).get("max_position_embeddings")
    if isinstance(longest, int) and options.max_length > longest:
        problems.append(
            f"finetune.max_length: {options.max_length} is more than the model reads;"
            f" allowed: up to {longest}"
        )
    return problems


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
        "type": METHODS[options.method],
        "r": options.r,
        "alpha": options.alpha,
        "lora_dropout": options.dropout,
        "target_modules": targets(options),
        "torch_dtype": options.precision,
        "train_data_config": "train",
        "eval_data_config": "held_out",
        "training_args": _training_args(options, context),
    }
    data_configs = [
        olive.rows("train", context, part="train", **common),
        olive.rows("held_out", context, part="eval", **common),
    ]
    return olive.workflow(context, olive.hf_model(context.base), {"finetune": step}, data_configs)


def _training_args(options: Options, context: Context) -> dict[str, Any]:
    """transformers.TrainingArguments, by Olive's names."""
    return {
        "output_dir": str(context.checkpoints),
        "max_steps": options.max_steps,
        "per_device_train_batch_size": options.batch_size,
        "learning_rate": options.learning_rate,
        "lr_scheduler_type": options.scheduler,
        "warmup_steps": min(options.warmup_steps, options.max_steps // 2),
        "weight_decay": 0.0,
        "gradient_checkpointing": options.gradient_checkpointing,
        "seed": context.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "include_num_input_tokens_seen": "all",
        "save_strategy": "steps",
        "save_steps": 50,
        "save_total_limit": 1,
        "eval_strategy": "no",
        "report_to": "none",
        "remove_unused_columns": False,
        "dataloader_pin_memory": context.device != "cpu",
        "use_cpu": context.device == "cpu",
    }


def results(context: Context) -> Results:
    """The adapter and the record of its training."""
    # Olive puts a copy of the base beside the adapter; the run has the base already.
    shutil.rmtree(context.output / "model", ignore_errors=True)
    folder = context.output / "adapter"
    record = json.loads((folder / "training.json").read_text("utf-8"))
    return Results([Artifact("adapter", "adapter", folder)], record)
