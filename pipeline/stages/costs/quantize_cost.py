"""What quantize takes: one layer at a time beside the loaded model.

The parts are what theory says is alive at the peak, or computed in all; the factors, fitted to measurements
(`benchmarks/preflight.py --fit`), say how many times over.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import quantize
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Packed, Shape

TOGETHER = {False: 4, True: 8}  # blocks of a calibration that run at once, on a GPU or not
CHUNK = 1 << 27  # weights that a GPU searches scales for at once
CANDIDATES = 21 + 11  # scales and clippings that awq tries
COLUMN_CALLS = 20.0  # operations of gptq for each column of a matrix

MEMORY = {
    "libraries": 0.99,
    "weights": 0.64,
    "packed": 2.7,
    "rounding": 2.5,
    "hidden": 2.5,
    "layer": 2.5,
    "gram": 2.1,
    "running": 1.8,
}
# Main memory beside a GPU: layers that went there and came back are no longer those of the file.
HOST_MEMORY = {"libraries": 1.045, "weights": 0.92, "packed": 1.0, "rounding": 1.0, "moved": 0.95}
GPU_MEMORY = {"rounding": 4.03, "ends": 0.3, "hidden": 0.5, "layer": 2.2, "gram": 1.9, "running": 1.75}
SECONDS = {"libraries": 1.3, "files": 0.85, "rounding": 1.0, "search": 1.05, "products": 1.0, "columns": 1.0}


def packed(options: quantize.Options, shape: Shape) -> Packed:
    """How the result is stored."""
    chosen = options.group_size
    sizes = quantize.group_sizes([inputs for _, _, inputs in shape.matrices])
    group = chosen if isinstance(chosen, int) else max(sizes, default=quantize.GROUPS[0])
    return Packed(options.bits, group, options.symmetric, options.lm_head)


def estimate(options: quantize.Options, shape: Shape, rows: Rows, machine: Machine) -> Cost:
    """What the stage takes on a machine, libraries to import included."""
    result = shape.with_packed(packed(options, shape))
    memory = weighed(memory_parts(options, shape, machine), HOST_MEMORY if machine.gpu else MEMORY)
    gpu = weighed(gpu_parts(options, shape), GPU_MEMORY) if machine.gpu else None
    seconds = weighed(seconds_parts(options, shape, machine), SECONDS)
    return Cost.of(memory, gpu, result.stored, seconds)


def tokens(options: quantize.Options) -> int:
    """Tokens of the calibration."""
    return options.calibration_blocks * options.calibration_length if _reads(options) else 0


def _reads(options: quantize.Options) -> bool:
    return options.algorithm in quantize.CALIBRATED


def memory_parts(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak."""
    found = {
        "libraries": machine.import_bytes,
        "weights": shape.float_bytes,
        "packed": packed(options, shape).size(shape.body, shape.weight),
        "rounding": 4.0 * max(shape.largest, shape.embedding if options.lm_head else 0),
    }
    if machine.gpu:
        return {**found, "moved": float(shape.weight * shape.body) if _reads(options) else 0.0}
    return found | calibration_parts(options, shape, TOGETHER[False])


def gpu_parts(options: quantize.Options, shape: Shape) -> dict[str, float]:
    """Bytes on the GPU: what main memory has without one, but for the model."""
    largest = max(shape.largest, shape.embedding if options.lm_head else 0)
    found = {"rounding": 4.0 * min(largest, CHUNK), "ends": 0.0}
    if _reads(options):
        found["ends"] = float(shape.weight * shape.embedding)
    return found | calibration_parts(options, shape, TOGETHER[True])


def calibration_parts(options: quantize.Options, shape: Shape, together: int) -> dict[str, float]:
    """Bytes of what one layer is calibrated with."""
    if not _reads(options):
        return {}
    hidden = float(shape.weight * tokens(options) * shape.hidden)
    if options.algorithm == "gptq":
        gram = 4.0 * sum(inputs**2 for _, _, inputs in shape.matrices)
        running = running_bytes(shape, options.calibration_length, 1) / 2
        return {"hidden": hidden, "gram": gram, "running": running, "layer": 0.0}
    inputs = {name: inputs for name, _, inputs in shape.matrices}
    groups = [size for name, size in inputs.items() if name not in ("k_proj", "v_proj", "up_proj")]
    blocks = min(together, options.calibration_blocks)
    return {
        "hidden": hidden,
        "layer": 4.0 * shape.layer,
        "gram": 4.0 * sum(size**2 for size in groups),
        "running": running_bytes(shape, options.calibration_length, blocks),
    }


def running_bytes(shape: Shape, length: int, blocks: int) -> float:
    """Bytes that running a layer forward and backward keeps of so many blocks."""
    query = shape.heads * shape.head
    keys = shape.shared * shape.head
    per_token = shape.hidden * (6 * shape.weight + 16) + shape.inner * 6 * shape.weight
    per_token += (3 * query + 3 * keys) * shape.weight
    return float(blocks * length * per_token)


def seconds_parts(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    head = shape.embedding if options.lm_head else 0
    found = {
        "libraries": machine.import_seconds,
        "files": shape.float_bytes / machine.copy
        + shape.with_packed(packed(options, shape)).stored / machine.disk,
        "rounding": (shape.body + head) / machine.elements,
        "search": 0.0,
        "products": 0.0,
        "columns": 0.0,
    }
    if not _reads(options):
        return found
    dtype = "bfloat16" if shape.weight == 2 else "float32"
    products = 8.0 * tokens(options) * shape.body / machine.product(dtype)
    squares = float(sum(outputs * inputs * inputs for _, outputs, inputs in shape.matrices)) * shape.layers
    grams = 2.0 * tokens(options) * shape.layers * sum(size**2 for _, _, size in shape.matrices)
    if options.algorithm == "awq":
        found["search"] = CANDIDATES * shape.body / machine.elements
        products += (2.0 * CANDIDATES * squares + grams) / machine.product("bfloat16")
    if options.algorithm == "gptq" or options.compensate:
        columns = shape.layers * sum(inputs for _, _, inputs in shape.matrices)
        found["columns"] = columns * COLUMN_CALLS * (2 if machine.gpu else 1) * machine.call_seconds
        products += (2.0 * squares + grams) / machine.product("float32")
    return {**found, "products": products}


def smaller(options: quantize.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """Settings that need less, the nearest first: the option's key, its value, all changes."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    if not _reads(options):
        return found
    blocks, length = options.calibration_blocks, options.calibration_length
    while blocks > 1:
        blocks //= 2
        found.append(("calibration_blocks", blocks, {"calibration_blocks": blocks}))
    while length > 64:
        length //= 2
        found.append(("calibration_length", length, {"calibration_blocks": 1, "calibration_length": length}))
    found.append(("algorithm", "rtn", {"algorithm": "rtn", "compensate": False, "engine": "lab"}))
    return found
