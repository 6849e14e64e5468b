"""What optimize takes: the checkpoint read, the graph written, and held-out rows read by the graph.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import optimize
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.finetune_cost import MOST_HELD_OUT
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

ELEMENTS = 3e8  # a second: it rounds on the processor, wherever the model goes
WIDTH = (0.12, 0.08)  # it is less regular than the others
TYPES = {"int4": 0.5, "int8": 1.0, "fp16": 2.0, "bf16": 2.0, "fp32": 4.0, "float": 4.0}  # bytes of a weight

MEMORY = {"libraries": 0.94, "stored": 0.8, "written": 0.8, "ends": 4.4, "logits": 0.4, "float": 1.2}
SECONDS = {"libraries": 1.3, "files": 1.6, "rounding": 5.6, "rows": 1.15}


def estimate(
    options: optimize.Options, shape: Shape, rows: Rows, machine: Machine, tuned: bool, adapter: int
) -> Cost:
    """What the stage takes on a machine; `adapter` is how many weights one has that is exported with it."""
    if optimize.not_run_here(options):
        return Cost.of(machine.import_bytes, None, 1e5, machine.import_seconds)
    memory = weighed(memory_parts(options, shape, rows, machine, tuned), MEMORY)
    gpu = 0.0 if machine.gpu else None
    seconds = weighed(seconds_parts(options, shape, rows, machine, tuned), SECONDS)
    return Cost.of(memory, gpu, written(options, shape) + 4.0 * adapter, seconds, WIDTH)


def written(options: optimize.Options, shape: Shape) -> float:
    """Bytes of the graph with its weights."""
    size = TYPES[options.precision]
    scale = 4.5 / options.block_size if options.precision in ("int4", "int8") else 0.0
    if shape.packed is not None:
        bits = options.merged_bits if options.adapter == "merged" else shape.packed.bits
        body = shape.body * (bits / 8 + 4.5 / shape.packed.group)
    else:
        body = shape.body * (size + scale)
    return body + head_and_embedding(options, shape)


def head_and_embedding(options: optimize.Options, shape: Shape) -> float:
    """Bytes of output layer and embedding: see `passes/optimize/exported_types.py`."""
    count = shape.embedding
    quantized = options.precision in ("int4", "int8")
    head = options.lm_head
    if head == "auto":
        head = "int8" if quantized and (options.device != "cpu" or options.accuracy_level == 4) else "float"
    real = {"fp16": 2.0, "bf16": 2.0}.get(options.precision, 4.0 if options.device == "cpu" else 2.0)
    head_bytes = count * (real if head == "float" else TYPES[head] + 4.5 / options.block_size)
    shared = shape.tied and options.embedding == "auto" and (shape.packed is not None or head != "int8")
    if shared:
        return head_bytes
    small = options.embedding == "int4" or (
        options.embedding == "auto" and shape.tied and shape.packed is None
    )
    return head_bytes + count * (TYPES["int4"] + 4.5 / options.block_size if small and quantized else real)


def memory_parts(
    options: optimize.Options, shape: Shape, rows: Rows, machine: Machine, tuned: bool
) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak."""
    merged = options.adapter == "merged"
    return {
        "libraries": machine.import_bytes,
        "stored": shape.stored,
        "written": written(options, shape),
        "ends": 4.0 * shape.embedding,
        "logits": 4.0 * rows.most * shape.vocabulary if tuned else 0.0,
        "float": 4.0 * (shape.body + shape.ends) if merged else 0.0,
    }


def seconds_parts(
    options: optimize.Options, shape: Shape, rows: Rows, machine: Machine, tuned: bool
) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    packed_already = shape.body if shape.packed is not None else 0
    looked = min(rows.held_out, MOST_HELD_OUT) * rows.mean if tuned else 0.0
    return {
        "libraries": machine.import_seconds,
        "files": 2 * shape.stored / machine.copy + written(options, shape) / machine.disk,
        "rounding": (shape.body + shape.embedding - packed_already) / min(machine.elements, ELEMENTS),
        "rows": looked * 2.0 * (shape.body + shape.embedding) / machine.product("float32"),
    }


def smaller(_: optimize.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """No setting makes it need less."""
    return []
