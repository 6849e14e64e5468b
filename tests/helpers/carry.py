"""Carry out a stage in a test: what the worker's child does, without a store."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.stages import finetune
from pipeline.stages.context import Context, Results
from pipeline.stages.execute import execute
from tests.helpers import tiny

OPTIONS = finetune.Options(max_steps=12, r=8, alpha=16, batch_size=4, learning_rate=0.01, precision="float32")


def context_of(folder: Path, model: Path, **inputs: Path) -> Context:
    """What a stage is given: a tiny model, and twelve rows of which two are held out."""
    return Context(
        model=model,
        inputs=inputs,
        data=tiny.dataset(folder / "rows.jsonl"),
        template="chat",
        eval_fraction=0.2,
        seed=0,
        device="cpu",
        output=folder / "output",
        work=folder / "work",
        checkpoints=folder / "checkpoints",
        config=json.loads((model / "config.json").read_text()),
    )


def stage(context: Context, name: str, module: Any, options: Any, **inputs: Path) -> Results:
    """Carry out a stage in folders of its own."""
    folder = context.output.parent / name
    return execute(
        module,
        options,
        replace(
            context,
            inputs=context.inputs | inputs,
            output=folder / "output",
            work=folder / "work",
            checkpoints=folder / "checkpoints",
        ),
    )
