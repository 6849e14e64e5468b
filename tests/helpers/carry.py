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


def folders(folder: Path) -> dict[str, Path]:
    """Where a stage writes, below `folder`."""
    return {name: folder / name for name in ("output", "work", "checkpoints")}


def context_of(folder: Path, model: Path, **changes: Any) -> Context:
    """What a stage is given, with the fields in `changes` as they say.

    The defaults: no inputs, twelve rows of which two are held out, and the config in the folder of the model.
    """
    if "data" not in changes:
        changes["data"] = tiny.dataset(folder / "rows.jsonl")
    if "config" not in changes:
        changes["config"] = json.loads((model / "config.json").read_text())
    given = {"inputs": {}, "template": "chat", "eval_fraction": 0.2, "seed": 0, "device": "cpu"}
    return Context(model=model, **given | folders(folder) | changes)


def stage(context: Context, name: str, module: Any, options: Any, **inputs: Path) -> Results:
    """Carry out a stage in folders of its own."""
    own = folders(context.output.parent / name)
    return execute(module, options, replace(context, inputs=context.inputs | inputs, **own))
