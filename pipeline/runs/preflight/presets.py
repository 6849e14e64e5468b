"""How thorough a run is to be: options that follow from data and machine, so that nobody counts steps.

`auto` in a recipe is what `balanced` chooses of it, beside what the recipe says.
"""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import display, settings
from pipeline.errors import InputError
from pipeline.inputs.models import architectures, base_models
from pipeline.runs import check_pool
from pipeline.runs.data import prepare_data, row_lengths
from pipeline.runs.data.row_lengths import RowLengths
from pipeline.runs.preflight import step_room
from pipeline.runs.preflight.step_room import StepRoom
from pipeline.stages.costs import machine
from pipeline.stages.recipe import Recipe
from pipeline.system import capacity, hardware

Changes = dict[str, Any]  # an option's key, such as "finetune.max_steps", and its value
BATCH_TOKENS = {"cpu": 2048, "gpu": 16384}  # that a batch may have where memory allows more: it gains little
BATCHES = (1, 2, 4, 8, 16)
MOST_ROWS = {"cpu": 4, "gpu": 16}  # in a batch
LENGTH_STEP = 64  # tokens: lengths are whole multiples
MOST_LENGTH = 2048  # tokens of a row, unless somebody chooses more
USUAL_LENGTH = 512  # where nobody knows the lengths
MOST = 99  # percent of the rows that are whole where the longest are far longer:
FAR = 1.5  # times as long
STEPS, LENGTH, BATCH = "finetune.max_steps", "finetune.max_length", "finetune.batch_size"

# What they follow from in a recipe.
BESIDE = (STEPS, LENGTH, BATCH, "finetune.packing", "finetune.gradient_accumulation")


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
        "As good as the data allows: a larger adapter, and up to eight passes, ended early when they no"
        " longer help",
        passes=8.0,
        least=100,
        most=5000,
        others={"finetune.r": 32, "finetune.alpha": 64},
    ),
}
AUTO, TOLD = "balanced", " (auto): "
LOOKS = 10  # at the validation rows, in a thorough run
PATIENCE = 3


@dataclass(frozen=True)
class Facts:
    """What options follow from: a dataset's rows and their lengths, the model, the machine.

    device   "cpu" or "gpu"
    context  tokens that the model reads, None if it does not say
    memory   what a training step may take, None if that is not known
    """

    rows: int
    lengths: RowLengths = field(default_factory=RowLengths)
    device: str = "cpu"
    context: int | None = None
    memory: StepRoom | None = None


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
        sources, _ = yield from prepare_data.bringing(Path(data))
        found = yield from prepare_data.checking(sources, work, template, known)
        if not found.report.good:
            raise InputError(found.report.messages())
        recipe = Recipe(model=model, data=data, template=template)
        template = found.made.template(template)
        lengths = yield from row_lengths.counting(found.used, template, known)
        facts = _facts(found.report.rows, lengths, recipe, known.config, device)
    return changes(name, facts, eval_fraction)


def settled(
    recipe: Recipe, rows: int, lengths: RowLengths, config: Mapping[str, Any]
) -> tuple[Changes, list[str]]:
    """What each `auto` of a recipe stands for, and a sentence for each; its dataset has so many rows of these
    lengths, and its model this config.json."""
    device = "gpu" if hardware.gpus() and recipe.runs_on != "cpu" else "cpu"
    facts = _facts(rows, lengths, recipe, config, device)
    given = dataclasses.asdict(recipe.stages()["finetune"])
    fixed = {key: given[key.partition(".")[2]] for key in BESIDE if key not in recipe.auto}
    values, said = _chosen(PRESETS[AUTO], facts, recipe.eval_fraction, fixed)
    return (
        {key: values[key] for key in recipe.auto},
        [f"{key} is {values[key]:,}{TOLD}{said[key]}" for key in recipe.auto],
    )


def tells(note: str) -> bool:
    """Whether a note says what an `auto` stands for."""
    return TOLD in note


def _facts(rows: int, lengths: RowLengths, recipe: Recipe, config: Mapping[str, Any], device: str) -> Facts:
    home, options = settings.home(), recipe.finetune
    assert options is not None  # nobody asks without training
    known = machine.read(home, device == "gpu")
    memory = step_room.of(config, options, recipe.quantize, known, capacity.of(home))
    return Facts(rows, lengths, device, architectures.positions(config), memory)


def changes(name: str, facts: Facts, eval_fraction: float) -> tuple[Changes, list[str]]:
    """The options of a preset, and a sentence for each that was chosen.

    All options that any preset touches are given, so that none is left from another one.
    """
    preset = PRESETS[name]
    others: Changes = {
        "quantize.algorithm": "awq",
        "quantize.compensate": "auto",
        "finetune.r": 16,
        "finetune.alpha": 32,
        "finetune.eval_every": 0,
        "finetune.early_stop": 0,
        "finetune.epochs": None,
        "finetune.gradient_accumulation": 1,
        **preset.others,
    }
    chosen, said = _chosen(preset, facts, eval_fraction, {})
    if name == "thorough":
        others |= {"finetune.eval_every": max(chosen[STEPS] // LOOKS, 1), "finetune.early_stop": PATIENCE}
    return others | chosen, list(said.values())


def _chosen(
    preset: Preset, facts: Facts, eval_fraction: float, fixed: Mapping[str, Any]
) -> tuple[dict[str, int], dict[str, str]]:
    """Steps, length and batch beside the options that are `fixed`, and why, each by its key."""
    rows = max(1, facts.rows - max(1, round(facts.rows * eval_fraction)))
    length, why_length = _length(facts)
    length = fixed.get(LENGTH, length)
    batch, why_batch = _batch(facts, rows, length)
    batch = fixed.get(BATCH, batch)
    tokens = facts.lengths.tokens
    packed = max(1.0, length * len(tokens) / sum(tokens)) if fixed.get("finetune.packing") and tokens else 1
    together = min(batch * fixed.get("finetune.gradient_accumulation", 1) * packed, rows)
    steps = min(max(math.ceil(preset.passes * rows / together), preset.least), preset.most)
    steps = fixed.get(STEPS, steps)
    each = f"about {together:.0f} rows" if packed > 1 else f"{together:.0f} row{'s' * (together > 1)}"
    passes = f"{steps * together / rows:.2g}"
    why_steps = (
        f"{steps:,} training steps of {each} each: {passes} pass{'es' * (passes != '1')} over the {rows:,}"
        " rows that are not held out."
    )
    said = {STEPS: why_steps, LENGTH: why_length, BATCH: why_batch}
    return {STEPS: steps, LENGTH: length, BATCH: batch}, said


def _length(facts: Facts) -> tuple[int, str]:
    """The most tokens of a row, and why: of the longest, or of most where that is far longer."""
    lengths, most = facts.lengths, min(MOST_LENGTH, facts.context or MOST_LENGTH)
    if not lengths.tokens:
        length = min(USUAL_LENGTH, most)
        why = f": {lengths.unknown.rstrip('.')}" if lengths.unknown else ""
        return length, f"Longer rows than {length:,} tokens are cut; how long they are is not known{why}."
    usual, longest = lengths.reaching(MOST), lengths.longest
    is_far = _rounded(longest) > FAR * _rounded(usual)
    length = min(_rounded(usual if is_far else longest), most)
    cut = lengths.longer(length)
    counted = len(lengths.tokens)
    if cut:
        number = cut if counted == facts.rows else max(1, round(cut * facts.rows / counted))
        rows = f"{number:,} row{'s' * (number > 1)}"
        so = f"so {'about ' * (counted < facts.rows)}{rows} {'are' if number > 1 else 'is'} cut"
    else:
        so = "so none is cut"
    sample = (
        f" Counted in {counted:,} of {facts.rows:,} rows, spread over all." if counted < facts.rows else ""
    )
    return length, f"Rows of up to {length:,} tokens; the longest has {longest:,}, {so}.{sample}"


def _rounded(tokens: int) -> int:
    return max(math.ceil(tokens / LENGTH_STEP) * LENGTH_STEP, LENGTH_STEP)


def _batch(facts: Facts, rows: int, length: int) -> tuple[int, str]:
    """Rows at a time, and why: as many as gain anything and fit into memory."""
    useful, memory = BATCH_TOKENS[facts.device], facts.memory
    fitting = useful if memory is None else min(useful, memory.tokens)
    most = min(rows, MOST_ROWS[facts.device])
    batch = max(size for size in BATCHES if size == 1 or (size <= most and size * length <= fitting))
    said = f"{batch} row{'s' * (batch > 1)} at a time"
    if memory is None:
        return batch, f"{said}: {batch * length:,} tokens, whose memory is not known."
    need, free = display.size(memory.each * batch * length), display.size(max(memory.free, 0))
    if batch * length > memory.tokens:
        return batch, (
            f"{said}, though even one of {length:,} tokens takes about {need} of memory, and {free} are there"
            " for it: choose a smaller max_length, or a smaller model."
        )
    return batch, f"{said}: that takes up to about {need} of memory, of {free} that are there for it."
