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
# So far above that none of the fitting set is under. Beside a GPU two runs of the same may differ by a fifth:
# many threads work, and what is freed is not always given back.
WIDTH, HOST_WIDTH = (0.1, 0.05), (0.12, 0.17)
TYPES = {"int4": 0.5, "int8": 1.0, "fp16": 2.0, "bf16": 2.0, "fp32": 4.0, "float": 4.0}  # bytes of a weight

MEMORY = {
    "libraries": 1.127,
    "stored": 0.986,
    "written": 0.935,
    "ends": 0.992,
    "imported": 0.85,
    "tied": 5.2,
    "logits": 1.496,
    "float": 1.2,
    "rounded": 1.025,
}
# With a GPU, and its machine's many cores.
HOST_MEMORY = {
    "libraries": 1.02,
    "stored": 0.93,
    "written": 1.0,
    "ends": 1.72,
    "tied": 4.62,
    "logits": 2.13,
    "float": 1.2,
    "rounded": 0.0,
}
SECONDS = {"libraries": 1.05, "begin": 1.1, "files": 2.5, "rounding": 6.1, "rows": 1.94}
HOST_SECONDS = {"libraries": 1.05, "begin": 1.0, "files": 3.5, "rounding": 8.0, "rows": 0.67}


def estimate(
    options: optimize.Options, shape: Shape, rows: Rows, machine: Machine, tuned: bool, adapter: int
) -> Cost:
    """What the stage takes on a machine; `adapter` is how many weights one has that is exported with it."""
    if optimize.not_run_here(options):
        return Cost.of(machine.import_bytes, None, 1e5, machine.import_seconds)
    memory = weighed(
        memory_parts(options, shape, rows, machine, tuned), HOST_MEMORY if machine.gpu else MEMORY
    )
    gpu = 0.0 if machine.gpu else None
    factors = HOST_SECONDS if machine.gpu else SECONDS
    seconds = weighed(seconds_parts(options, shape, rows, machine, tuned), factors)
    adapters = 2 if options.adapter == "bound" else 1  # a file of its own, and the graph's constants
    disk = written(options, shape) + 4.0 * adapter * adapters
    return Cost.of(memory, gpu, disk, seconds, HOST_WIDTH if machine.gpu else WIDTH)


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
    head = shape.packed is not None and shape.packed.head  # it is written as it is
    found = {
        "libraries": machine.libraries,
        "stored": shape.stored,
        "written": written(options, shape),
        "rounded": 0.0 if shape.packed else float(shape.weight * shape.body),
        "tied" if shape.tied and machine.gpu else "ends": 4.0
        * shape.embedding
        * (1 if shape.tied or head else 2),
        "logits": 4.0 * rows.most * shape.vocabulary if tuned else 0.0,
        "float": 4.0 * (shape.body + shape.ends) if merged else 0.0,
    }
    if machine.gpu or not shape.tied:
        return found
    # Copies of a tied embedding are made before the rest is imported and written.
    copied = {
        "imported": machine.libraries, "stored": shape.stored, "tied": 4.0 * shape.embedding,
        "float": found["float"],
    }  # fmt: skip
    return max(found, copied, key=lambda parts: weighed(parts, MEMORY))


def seconds_parts(
    options: optimize.Options, shape: Shape, rows: Rows, machine: Machine, tuned: bool
) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    packed_already = shape.body if shape.packed is not None else 0
    looked = min(rows.held_out, MOST_HELD_OUT) * rows.mean if tuned else 0.0
    return {
        "libraries": machine.import_seconds,
        "begin": 1.0,
        "files": 2 * shape.stored / machine.copy + written(options, shape) / machine.disk,
        "rounding": (shape.body + shape.embedding - packed_already) / min(machine.elements, ELEMENTS),
        "rows": looked * 2.0 * (shape.body + shape.embedding) / machine.on_processor,
    }


def smaller(_: optimize.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """No setting makes it need less."""
    return []
