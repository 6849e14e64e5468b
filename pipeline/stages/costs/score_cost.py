"""What score takes: the model and its exact version, which read the same texts; then the graph, and the float
model beside it in float32, which read the same rows.

Roughly: it is a part of scorecards, and not among what `benchmarks/preflight.py` measures.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import score
from pipeline.stages.costs.cost import Cost, Rows
from pipeline.stages.costs.evaluate_cost import FLOAT32, LINE_BYTES, LOADING
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

BLOCK = 512  # tokens of a block of general text
GRAPH = 1.6  # of its bytes, that a loaded graph takes


def estimate(options: score.Options, shape: Shape, rows: Rows, machine: Machine, graph: float) -> Cost:
    """What the stage takes on a machine; the graph has so many bytes, 0 without one."""
    packed = shape.packed is not None
    exact = shape.float_bytes if packed else 0.0
    beside = FLOAT32 * (shape.body + shape.ends) if packed and graph else 0.0
    logits = 12.0 * max(rows.most, BLOCK) * shape.vocabulary
    # What the exact model makes of each token is kept in main memory while the other one is loaded.
    read = min(options.rows, rows.held_out) * rows.mean + options.general_blocks * BLOCK
    kept = 2.0 * shape.hidden * read
    models = shape.stored + 2.0 * shape.body + exact
    on_host = 0.0 if machine.gpu else models + LOADING * beside + logits
    memory = machine.import_bytes * 1.1 + GRAPH * graph + on_host + kept * packed
    measured = min(options.rows, rows.held_out)
    tokens = measured * rows.mean + options.general_blocks * BLOCK
    products = 6.0 * tokens * (shape.body + shape.embedding) / machine.product("bfloat16")
    decode = options.decode_tokens * graph / machine.copy
    seconds = machine.import_seconds + products + decode
    if graph:
        seconds += _on_rows(measured * rows.mean, shape, machine, graph, beside)
    gpu = max(models, beside) + logits if machine.gpu else None
    return Cost.of(memory, gpu, 1e5 + 2 * LINE_BYTES * measured, seconds)


def _on_rows(tokens: float, shape: Shape, machine: Machine, graph: float, beside: float) -> float:
    """Seconds to load the graph and the float model, and to read so many tokens with both."""
    each = 2.0 * tokens * (shape.body + shape.embedding)
    loading = (graph + beside) / machine.copy
    return loading + each / machine.on_processor + (each / machine.product("float32") if beside else 0.0)


def smaller(_: score.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """No setting makes it need much less."""
    return []
