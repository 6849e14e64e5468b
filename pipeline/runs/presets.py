"""How thorough a run is to be: options that follow from data and machine, so that nobody counts steps."""

from __future__ import annotations

import math
import os
from collections.abc import Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import settings
from pipeline.errors import InputError
from pipeline.inputs.data.formats import convert
from pipeline.inputs.models import architectures, base_models
from pipeline.runs import check_pool
from pipeline.runs.data import prepare_data

Changes = dict[str, Any]  # an option's key, such as "finetune.max_steps", and its value
BATCH_TOKENS = {"cpu": 2048, "gpu": 16384}  # that a batch may have: what one training step keeps in memory
BATCHES = (1, 2, 4, 8, 16)
LENGTH_STEP = 64  # tokens: lengths are whole multiples


@dataclass(frozen=True)
class Preset:
    """How often the data is read, between how many steps, and what else differs."""

    title: str
    about: str
    passes: float
    least: int
    most: int
    others: Changes


PRESETS = {
    "quick": Preset(
        "Quick try",
        "Does it work at all? One pass over the data at most, and the fastest quantization",
        passes=1.0,
        least=20,
        most=60,
        others={"quantize.algorithm": "rtn", "finetune.r": 8, "finetune.alpha": 16},
    ),
    "balanced": Preset(
        "Balanced",
        "A good adapter in reasonable time: three passes over the data",
        passes=3.0,
        least=60,
        most=1000,
        others={},
    ),
    "thorough": Preset(
        "Thorough",
        "As good as the data allows: up to eight passes, ended early when they no longer help, and the most"
        " exact quantization",
        passes=8.0,
        least=100,
        most=5000,
        others={"quantize.compensate": True, "finetune.r": 32, "finetune.alpha": 64},
    ),
}
LOOKS = 10  # at the validation rows, in a thorough run
PATIENCE = 3


@dataclass(frozen=True)
class Facts:
    """What is known of a dataset: how many rows, and the longest one in tokens, None if not counted."""

    rows: int
    longest: int | None = None


def suiting(
    name: str, data: Path, template: str, model: str, eval_fraction: float, device: str
) -> Generator[str, None, tuple[Changes, list[str]]]:
    """`changes` for a dataset, which a process of the app looks at; yields how far it is.

    Raises InputError if the dataset does not fit the template, LabError, OSError.
    """
    given = {"data": os.fspath(data), "template": template, "model": model}
    rest = {"name": name, "eval_fraction": eval_fraction, "device": device}
    found, said = yield from check_pool.ask(f"{__name__}:answer", {**given, **rest})
    return found, said


def answer(
    name: str, data: str, template: str, model: str, eval_fraction: float, device: str
) -> Generator[str, None, tuple[Changes, list[str]]]:
    """`suiting` as a process is asked for it."""
    known = base_models.resolve(model)
    with prepare_data.work_folder(settings.home()) as work:
        found = yield from prepare_data.checking(convert.sources(Path(data)), work, template, known)
    report = found.report
    if not report.good:
        raise InputError(report.messages())
    return changes(name, Facts(report.rows), eval_fraction, device, architectures.positions(known.config))


def changes(
    name: str, facts: Facts, eval_fraction: float, device: str, context: int | None = None
) -> tuple[Changes, list[str]]:
    """The options of a preset for this data on a "cpu" or "gpu", and a sentence for each that was chosen.

    All options that any preset touches are given, so that none is left from another one. `context` is how
    many tokens the model reads.
    """
    preset = PRESETS[name]
    found: Changes = {
        "quantize.algorithm": "awq",
        "quantize.compensate": False,
        "finetune.r": 16,
        "finetune.alpha": 32,
        "finetune.eval_every": 0,
        "finetune.early_stop": 0,
        **preset.others,
    }
    rows = max(1, facts.rows - max(1, round(facts.rows * eval_fraction)))
    length, why_length = _length(facts.longest, context)
    batch = max(size for size in BATCHES if size == 1 or size * length <= BATCH_TOKENS[device])
    batch = min(batch, max(size for size in BATCHES if size <= rows), 4 if device == "cpu" else 16)
    steps = min(max(math.ceil(preset.passes * rows / batch), preset.least), preset.most)
    found |= {
        "finetune.max_length": length, "finetune.batch_size": batch, "finetune.max_steps": steps,
        "finetune.epochs": None, "finetune.gradient_accumulation": 1,
    }  # fmt: skip
    if name == "thorough":
        found |= {"finetune.eval_every": max(steps // LOOKS, 1), "finetune.early_stop": PATIENCE}
    each = f"{batch} row{'s' * (batch > 1)} each"
    passes = f"{steps * batch / rows:.2g}"
    said = [
        f"{steps:,} training steps of {each}: {passes} pass{'es' * (passes != '1')} over the {rows:,} rows"
        " that are not held out.",
        why_length,
    ]
    return found, said


def _length(longest: int | None, context: int | None) -> tuple[int, str]:
    """The most tokens of a row, and why."""
    most = min(2048, context or 2048)
    if longest is None:
        return min(
            512, most
        ), "The lengths of the rows are not known, so longer ones than 512 tokens are cut."
    length = min(max(math.ceil(longest / LENGTH_STEP) * LENGTH_STEP, LENGTH_STEP), most)
    cut = "none is cut" if longest <= length else "longer ones are cut"
    return length, f"Rows of up to {length:,} tokens; the longest has {longest:,}, so {cut}."
