"""How many tokens a training step may have on a machine, by what finetune takes of its memory."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pipeline.runs.preflight import fitting
from pipeline.stages import finetune, quantize
from pipeline.stages.costs import finetune_cost, quantize_cost, shape
from pipeline.stages.costs.cost import Rows
from pipeline.stages.costs.machine import Machine
from pipeline.system.capacity import Capacity

# Tokens of steps that are compared: of small ones, which a GPU may record, and of large ones, whose own
# memory is most of what both take.
TOKENS = ((1 << 9, 1 << 10), (1 << 14, 1 << 15))


@dataclass(frozen=True)
class StepRoom:
    """Bytes that a training step may take for each token, and that this machine has for all of them."""

    each: int
    free: int

    @property
    def tokens(self) -> int:
        """How many tokens of all rows of a batch fit."""
        return max(self.free, 0) // self.each


def of(
    config: Mapping[str, Any],
    options: finetune.Options,
    packed: quantize.Options | None,
    machine: Machine,
    there: Capacity,
) -> StepRoom | None:
    """What a step may take of a model that is `packed` before; None where sizes are not known, or the GPU's.

    Every token counts as one that is learned from.
    """
    sizes = shape.of(config)
    if sizes is None or (machine.gpu and there.gpu_memory is None):
        return None
    if packed is not None:
        sizes = sizes.with_packed(quantize_cost.packed(packed, sizes))
    each = max(_each(options, sizes, machine, few, many) for few, many in TOKENS)
    least = TOKENS[0][0]
    always = _needed(options, sizes, machine, least) - each * least
    has = (there.gpu_memory or 0) - fitting.CONTEXT if machine.gpu else fitting.USABLE * there.memory
    return StepRoom(int(each), int(has - always))


def _each(options: finetune.Options, sizes: shape.Shape, machine: Machine, few: int, many: int) -> float:
    more = _needed(options, sizes, machine, many) - _needed(options, sizes, machine, few)
    return max(more / (many - few), 1.0)


def _needed(options: finetune.Options, sizes: shape.Shape, machine: Machine, tokens: int) -> float:
    """Bytes that training on rows of so many tokens takes at most, one at a time."""
    one = replace(options, batch_size=1, max_length=tokens)
    cost = finetune_cost.estimate(one, sizes, Rows(1, 0, float(tokens), float(tokens), 1.0), machine)
    return cost.gpu_memory.high if cost.gpu_memory is not None else cost.memory.high
