"""What score takes: the model, its exact version beside it, and its graph, which read the same texts.

Roughly: it is a part of scorecards, and not among what `benchmarks/preflight.py` measures.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import score
from pipeline.stages.costs.cost import Cost, Rows
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

BLOCK = 512  # tokens of a block of general text


def estimate(options: score.Options, shape: Shape, rows: Rows, machine: Machine, graph: float) -> Cost:
    """What the stage takes on a machine; the graph has so many bytes, 0 without one."""
    exact = shape.float_bytes if shape.packed is not None else 0.0
    logits = 12.0 * max(rows.most, BLOCK) * shape.vocabulary
    models = shape.stored + 2.0 * shape.body + exact
    memory = machine.import_bytes * 1.1 + graph + (0.0 if machine.gpu else models + logits)
    tokens = min(options.rows, rows.held_out) * rows.mean + options.general_blocks * BLOCK
    products = 6.0 * tokens * (shape.body + shape.embedding) / machine.product("bfloat16")
    decode = options.decode_tokens * graph / machine.copy
    gpu = models + logits if machine.gpu else None
    return Cost.of(memory, gpu, 1e5, machine.import_seconds + products + decode)


def smaller(_: score.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """No setting makes it need much less."""
    return []
