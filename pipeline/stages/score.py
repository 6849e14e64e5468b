"""score: how good the base and its export are without any adapter, and how fast. A scorecard's last stage."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pipeline.inputs.models import architectures
from pipeline.inputs.options import option
from pipeline.stages import workflow_parts
from pipeline.stages.context import Artifact, Context, Results
from pipeline.stages.quantize import Model

SCORE, ROWS = "score.json", "rows.jsonl"
SMALLER = "a smaller score.rows or score.general_blocks"
MODULES = ("pipeline.passes.measure.score", "onnxruntime_genai")
PROMPT = 32  # tokens of the prompt that decoding starts from, at most


@dataclass(frozen=True)
class Options:
    rows: int = option(
        64,
        "Held-out rows of your data whose responses are measured, without near copies of training rows: the"
        " loss of the exported graph against the float model's, and perplexity",
        min=1,
        max=100_000,
    )
    general_blocks: int = option(
        16, "Blocks of 512 tokens of a bundled general text to measure perplexity on", min=1, max=32
    )
    decode_tokens: int = option(
        96, "Tokens to decode for the speed of the exported graph", min=8, max=1024, label="Tokens to decode"
    )


def check(options: Options, model: Model) -> list[str]:
    """Why these options cannot work for this model, one sentence each."""
    longest = architectures.positions(model.config)
    if longest is not None and options.decode_tokens + PROMPT > longest:
        return [
            f"score.decode_tokens: {options.decode_tokens} and a prompt are more than the model reads;"
            f" allowed: up to {longest - PROMPT}"
        ]
    return []


def tried(_: Options, __: Mapping[str, Any]) -> None:
    """Left out: it only measures what other stages made, and cannot fail for a model."""


def uses_rows(_: Options) -> bool:
    """Whether the result depends on the dataset."""
    return True


def workflow(options: Options, context: Context) -> dict[str, Any]:
    """The Olive workflow; its pass writes score.json, and rows.jsonl where there is a graph."""
    onnx = context.inputs.get("onnx")
    step = {
        "type": "Score",
        "data_config": "held_out",
        "general_blocks": options.general_blocks,
        "decode_tokens": options.decode_tokens,
        "exact": str(context.model) if context.base != context.model else None,
        "onnx": str(onnx) if onnx else None,
        "data": str(context.data),
        "eval_fraction": context.eval_fraction,
        "seed": context.seed,
        "rows": options.rows,
        "tokenizer": str(context.model),
        "kept": str(context.checkpoints),
    }
    held_out = workflow_parts.rows(
        "held_out", context, part="new", max_length=2048, loss_on="response", limit=options.rows
    )
    return workflow_parts.workflow(
        context, workflow_parts.hf_model(context.base), {"score": step}, [held_out]
    )


def results(_: Options, context: Context) -> Results:
    """What was measured."""
    file = context.output / "model" / SCORE  # Olive keeps the model's folder, which has this file in it
    artifacts = [Artifact("score", "score", file)]
    if (rows := file.with_name(ROWS)).is_file():
        artifacts.append(Artifact("rows", "row_losses", rows))
    return Results(artifacts, json.loads(file.read_text("utf-8")))
