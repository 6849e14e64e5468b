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
WORKSPACE = float(64 << 20)  # of a GPU's matrix products
SCALES = 21  # that awq tries
FUSED = 0.33  # of the time of looking at elements one operation after the other, on a GPU
CLIPPINGS = 11  # of each group's range, that awq tries where gptq does not follow
SHRINKS = 7  # of them where it does, all at once
KEPT = float(
    128 << 20
)  # bytes that awq keeps on a CPU once they are free, see `quantize/running/kept_memory.py`
TRIED_BLOCKS, TRIED_LENGTH, TRIED_LOGITS = 2, 256, 1 << 24  # as in `passes/quantize/sensitivity.py`
COLUMN_CALLS = 20.0  # operations of gptq for each column of a matrix
BLOCK_CALLS = 4.0  # operations after awq for each column of what reads one input

MEMORY = {
    "libraries": 0.954,
    "weights": 0.933,
    "ends": 0.731,
    "packed": 1.246,
    "rounding": 2.9,
    "hidden": 1.0,
    "layer": 0.99,
    "gram": 0.976,
    "inverted": 1.0,
    "moved": 0.957,
    "running": 0.648,
    "kept": 1.0,
}
# Main memory beside a GPU: with a calibration more of CUDA is loaded.
HOST_MEMORY = {
    "libraries": 1.027,
    "weights": 1.0,
    "ends": 0.86,
    "packed": 1.0,
    "rounding": 0.93,
    "kernels": 0.485,
    "moved": 0.92,
}
GPU_MEMORY = dict.fromkeys(
    ("workspace", "kept", "ends", "inverted", "hidden", "layer", "gram", "running"), 1.0
)
GPU_MEMORY["rounding"] = 4.02
WIDTH, HOST_WIDTH = (0.1, 0.07), (0.1, 0.08)
SECONDS = {
    "libraries": 1.05,
    "begin": 0.5,
    "files": 2.46,
    "rounding": 3.4,
    "search": 0.75,
    "products": 1.3,
    "columns": 2.0,
}
GPU_SECONDS = {
    "libraries": 1.05,
    "begin": 1.0,
    "files": 2.4,
    "rounding": 1.0,
    "search": 2.6,
    "products": 4.2,
    "columns": 1.0,
}


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
    seconds = weighed(seconds_parts(options, shape, machine), GPU_SECONDS if machine.gpu else SECONDS)
    return Cost.of(memory, gpu, result.stored, seconds, HOST_WIDTH if machine.gpu else WIDTH)


def tokens(options: quantize.Options) -> int:
    """Tokens of the calibration."""
    return options.calibration_blocks * options.calibration_length if _reads(options) else 0


def _reads(options: quantize.Options) -> bool:
    return options.algorithm in quantize.CALIBRATED


def _tries(options: quantize.Options, shape: Shape) -> tuple[int, int]:
    """How many roundings `sensitivity` tries, and on how many tokens."""
    if options.mixed_precision != quantize.SENSITIVITY:
        return 0, 0
    together = {"k_proj", "v_proj"}  # with q_proj
    choices = shape.layers * len([name for name, _, _ in shape.matrices if name not in together])
    return choices, min(TRIED_BLOCKS, options.calibration_blocks) * min(
        TRIED_LENGTH, options.calibration_length
    )


def tried_parts(options: quantize.Options, shape: Shape) -> dict[str, float]:
    """Bytes of what each rounding tried makes of a text, with and without the last norm, and of logits."""
    choices, count = _tries(options, shape)
    hidden = float(2 * choices * count * shape.hidden * shape.weight)
    return {"hidden": hidden, "running": 16.0 * min(TRIED_LOGITS, count * shape.vocabulary)}


def memory_parts(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak."""
    found = _rounding_parts(options, shape, machine)
    if machine.gpu or options.mixed_precision != quantize.SENSITIVITY:
        return found
    whole = {name: found[name] for name in ("libraries", "weights")}
    tried = {**whole, "ends": float(shape.weight * shape.ends), **tried_parts(options, shape)}
    return max(found, tried, key=lambda parts: sum(parts.values()))


def _rounding_parts(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Bytes of main memory at the peak of rounding itself."""
    found = {
        "libraries": machine.import_bytes,
        "weights": float(shape.weight * shape.body),
        "ends": float(shape.weight * shape.ends),
        "packed": packed(options, shape).size(shape.body, shape.weight),
        "rounding": 4.0 * max(shape.largest, shape.embedding if options.lm_head else 0),
    }
    if options.algorithm == "gptq":  # each rounded matrix is a new one, and the file's stay in memory
        found["moved"] = float(shape.weight * shape.body)
    if machine.gpu:
        found["kernels"] = machine.import_bytes if _reads(options) else 0.0
        return found
    calibrated = calibration_parts(options, shape, TOGETHER[False])
    if options.algorithm == "awq":
        calibrated["kept"] = min(calibrated.get("running", 0.0), KEPT)
    if calibrated and not options.lm_head:
        del found["rounding"]  # one matrix of a layer, when what running the layer took is free again
    if sum(calibrated.values()) <= found["ends"]:
        return found
    if calibrated:
        del found["ends"]  # they are read when the result is written, and a layer's memory is free again
    return found | calibrated


def gpu_parts(options: quantize.Options, shape: Shape) -> dict[str, float]:
    """Bytes on the GPU: what main memory has without one, but for the model."""
    found = _rounding_gpu_parts(options, shape)
    if options.mixed_precision != quantize.SENSITIVITY:
        return found
    tried = tried_parts(options, shape)
    layers = {"workspace": WORKSPACE, "kept": float(2 * shape.weight * shape.layer), **tried, "running": 0.0}
    ends = {"workspace": WORKSPACE, "ends": float(shape.weight * shape.embedding), **tried}
    return max(found, layers, ends, key=lambda parts: sum(parts.values()))


def _rounding_gpu_parts(options: quantize.Options, shape: Shape) -> dict[str, float]:
    """Bytes on the GPU at the peak of rounding itself."""
    if _reads(options):
        ahead = 2 if options.algorithm == "awq" else 1  # the next layer is there while one is worked on
        layer = {"workspace": WORKSPACE, "kept": float(ahead * shape.weight * shape.layer)}
        found = layer | calibration_parts(options, shape, TOGETHER[True])
        ends = {"ends": float(shape.weight * shape.embedding), "hidden": found["hidden"] / 2}
        found = max(found, ends, key=lambda parts: sum(parts.values()))
        if not options.lm_head:
            return found
        head = {"rounding": 4.0 * min(shape.embedding, CHUNK), **ends, "workspace": WORKSPACE}
        return max(found, head, key=lambda parts: sum(parts.values()))
    largest = max(shape.largest, shape.embedding if options.lm_head else 0)
    return {"rounding": 4.0 * min(largest, CHUNK)}


def calibration_parts(options: quantize.Options, shape: Shape, together: int) -> dict[str, float]:
    """Bytes of what one layer is calibrated with: what all blocks are before it and after it, its sums of
    squares, its weights in float32, and either running it or rounding its matrices: a matrix in float32 with
    its losses and its result, beside the sums and what inverts them."""
    if not _reads(options):
        return {}
    hidden = float(2 * shape.weight * tokens(options) * shape.hidden)
    inner = max(inputs for _, _, inputs in shape.matrices)
    rounded = max(outputs * inputs for _, outputs, inputs in shape.matrices if inputs == inner)
    if options.algorithm == "gptq":
        inverted = {"gram": 12.0 * inner**2, "inverted": 12.0 * rounded}
        sums = 4.0 * (sum(inputs**2 for _, _, inputs in shape.matrices) + inner**2)
        running = {"gram": sums, "running": running_bytes(shape, options.calibration_length, grads=False)}
        return {"hidden": hidden} | max(running, inverted, key=lambda parts: sum(parts.values()))
    count = min(together, options.calibration_blocks) * options.calibration_length
    running = {
        "layer": 4.0 * shape.layer,
        "gram": 4.0 * (sum(size**2 for size in _inputs(shape)) + inner**2),
        "running": running_bytes(shape, count, grads=True),
    }
    if not quantize.compensates(options):
        return {"hidden": hidden} | running
    # The sums, their copy in another order, what is factored, its factor and its inverse.
    inverted = {"gram": 20.0 * inner**2, "inverted": 12.0 * rounded}
    return {"hidden": hidden} | max(running, inverted, key=lambda parts: sum(parts.values()))


def _inputs(shape: Shape) -> list[int]:
    """Sizes of the inputs of a layer's matrices; those that several read count once."""
    return [inputs for name, _, inputs in shape.matrices if name not in ("k_proj", "v_proj", "up_proj")]


def running_bytes(shape: Shape, count: int, *, grads: bool) -> float:
    """Bytes of running a layer on so many tokens: what it makes, and with gradients what these are taken
    of and their squares in float32, while an input is summed up."""
    query, keys = shape.heads * shape.head, shape.shared * shape.head
    made = sum(outputs for _, outputs, _ in shape.matrices)
    inner = max(inputs for _, _, inputs in shape.matrices)
    if not grads:
        return float(count * (shape.weight * made + 8 * inner))
    reads = sum(_inputs(shape))
    saved = 8 * shape.hidden + shape.weight * (2 * query + 2 * keys + 3 * shape.inner)
    summed = (8 if shape.weight == 4 else 12) * inner
    return float(count * (made * (2 * shape.weight + 4) + shape.weight * reads + summed + saved))


def seconds_parts(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    head = shape.embedding if options.lm_head else 0
    found = {
        "libraries": machine.import_seconds,
        "begin": 1.0,
        "files": shape.float_bytes / machine.copy
        + shape.with_packed(packed(options, shape)).stored / machine.disk,
        "rounding": (shape.body + head) / machine.elements,
        "search": 0.0,
        "products": 0.0,
        "columns": 0.0,
    }
    dtype = "bfloat16" if shape.weight == 2 else "float32"
    for name, seconds in _tried_seconds(options, shape, machine).items():
        found[name] += seconds
    if not _reads(options):
        return found
    products = found["products"] + 8.0 * tokens(options) * shape.body / machine.product(dtype)
    squares = float(sum(outputs * inputs * inputs for _, outputs, inputs in shape.matrices)) * shape.layers
    grams = 2.0 * tokens(options) * shape.layers * sum(size**2 for _, _, size in shape.matrices)
    if options.algorithm == "gptq":
        columns = shape.layers * sum(inputs for _, _, inputs in shape.matrices)
        found["columns"] = columns * COLUMN_CALLS * (2 if machine.gpu else 1) * machine.call_seconds
        products += (2.0 * squares + grams) / machine.product("float32")
        return {**found, "products": products}
    searched = SCALES
    if quantize.compensates(options):
        found["columns"] = shape.layers * sum(_inputs(shape)) * BLOCK_CALLS * machine.call_seconds
        factored = 4 / 3 * shape.layers * sum(size**3 for size in _inputs(shape))
        products += (squares + factored) / machine.product("float32")
        found["search"] = SHRINKS * shape.body / machine.elements
    else:
        searched += CLIPPINGS
    found["search"] += (FUSED if machine.gpu else 1.0) * searched * shape.body / machine.elements
    products += (2.0 * searched * squares + grams) / machine.product("bfloat16")
    return {**found, "products": products}


def _tried_seconds(options: quantize.Options, shape: Shape, machine: Machine) -> dict[str, float]:
    """Seconds of `sensitivity`: half of the layers follow each rounding, on average, and the output layer."""
    choices, count = _tries(options, shape)
    if not choices:
        return {}
    dtype = "bfloat16" if shape.weight == 2 else "float32"
    products = 2.0 * count * choices * (shape.body / 2 + shape.embedding)
    return {
        "files": shape.float_bytes / machine.copy,  # once more
        "rounding": shape.body / machine.elements,
        "products": products / machine.product(dtype),
    }


def smaller(options: quantize.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """Settings that need less, the nearest first: the option's key, its value, all changes."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    alike = {"mixed_precision": "none"} if options.mixed_precision == quantize.SENSITIVITY else {}
    if alike:
        found.append(("mixed_precision", "none", alike))
    if not _reads(options):
        return found
    if quantize.compensates(options):
        found.append(("compensate", False, {"compensate": False}))
    blocks, length = options.calibration_blocks, options.calibration_length
    while blocks > 1:
        blocks //= 2
        found.append(("calibration_blocks", blocks, {"calibration_blocks": blocks}))
    while length > 64:
        length //= 2
        found.append(("calibration_length", length, {"calibration_blocks": 1, "calibration_length": length}))
    found.append(("algorithm", "rtn", {"algorithm": "rtn", "compensate": False, "engine": "lab", **alike}))
    return found
