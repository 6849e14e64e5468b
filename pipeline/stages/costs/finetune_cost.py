"""What finetune takes: the base in the type it is trained in, the adapter, and what a batch keeps.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

import math
from typing import Any

from pipeline.stages import finetune
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

BEGIN_SECONDS = 5.0  # on a GPU: kernels loaded, steps recorded
RECORDED = 0.25  # of the time that launches take, where a whole step is one
HELD_OUT_BATCH, MOST_HELD_OUT = 8, 256  # rows measured at once, and in all
POOL = 16  # batches whose rows are sorted by length: see `passes/finetune/training.py`
ADAM = 16  # bytes of a trained weight: itself, its gradient and two moments in float32
LAYER_CALLS = 450.0  # small operations of a training step for each layer
GRAPH_LOGITS, GRAPH_STEPS, GRAPH_LENGTH = 1 << 29, 10, 64  # see `passes/finetune/cuda_graphs.py`

MEMORY = {
    "libraries": 1.3,
    "file": 0.4,
    "weights": 0.92,
    "packed": 0.2,
    "adapter": 1.0,
    "kept": 1.11,
    "logits": 0.98,
}
HOST_MEMORY = {"libraries": 1.63, "packed": 0.02, "file": 0.37}  # main memory beside a GPU
GPU_MEMORY = {"weights": 1.03, "packed": 0.0, "adapter": 1.0, "kept": 0.83, "logits": 0.97}
SECONDS = {"libraries": 1.6, "begin": 1.0, "files": 0.8, "steps": 1.9, "calls": 1.0, "held_out": 1.0}


def estimate(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> Cost:
    """What the stage takes on a machine, libraries to import included."""
    memory = weighed(memory_parts(options, shape, rows, machine), HOST_MEMORY if machine.gpu else MEMORY)
    gpu = weighed(gpu_parts(options, shape, rows, machine), GPU_MEMORY) if machine.gpu else None
    seconds = weighed(seconds_parts(options, shape, rows, machine), SECONDS)
    disk = 3.0 * 4 * trained(options, shape)  # the adapter, and a checkpoint with its moments
    return Cost.of(memory, gpu, disk, seconds)


def dtype(options: finetune.Options, machine: Machine) -> str:
    """The type that it trains in."""
    if options.precision != "auto":
        return options.precision
    return "bfloat16" if machine.native_bf16 else "float32"


def targeted(options: finetune.Options, shape: Shape) -> list[tuple[str, int, int]]:
    """The matrices of a layer that get an adapter."""
    wanted = finetune.targets(options)
    return [matrix for matrix in shape.matrices if wanted is None or matrix[0] in wanted]


def trained(options: finetune.Options, shape: Shape) -> int:
    """Weights of the adapter."""
    sizes = sum(outputs + inputs for _, outputs, inputs in targeted(options, shape))
    return options.r * shape.layers * sizes


def batch_shape(options: finetune.Options, rows: Rows) -> tuple[int, float, float]:
    """Rows of a batch, and tokens that it is padded to: of the longest batch to be met, and on average.

    Rows of like length stand together, so the longest are in one batch, which few steps may not meet: the
    longest of so many drawn from lengths that are spread evenly.
    """
    if options.packing:
        return options.batch_size, float(options.max_length), float(options.max_length)
    size = min(options.batch_size, rows.train)
    most, usual = min(rows.most, options.max_length), min(rows.mean, options.max_length)
    batches = steps(options, rows) * options.gradient_accumulation
    rest = rows.train % size if rows.train <= POOL * size else 0  # the longest rows are a smaller batch
    met = 1 - 2 * rest / rows.train if batches * size >= rows.train else 1 - 2 / (batches + 1)
    length = usual + (most - usual) * max(met, 0.0)
    if met > 0 and rest * most > size * length:
        return rest, most, usual
    return size, length, usual


def passes(options: finetune.Options, rows: Rows) -> float:
    """How many times the training reads the data."""
    if options.epochs is not None:
        return options.epochs
    seen = options.max_steps * options.batch_size * options.gradient_accumulation
    if options.packing:
        seen = round(seen * options.max_length / max(rows.mean, 1.0))
    return seen / max(rows.train, 1)


def steps(options: finetune.Options, rows: Rows) -> int:
    """How many steps there are."""
    if options.epochs is None:
        return options.max_steps
    samples: float = rows.train
    if options.packing:
        samples = max(1.0, rows.train * rows.mean / options.max_length)
    batches = math.ceil(samples / options.batch_size)
    return max(1, math.ceil(options.epochs * math.ceil(batches / options.gradient_accumulation)))


def memory_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak."""
    if machine.gpu:
        kind = "file" if shape.packed is None else "packed"
        return {"libraries": machine.import_bytes, kind: shape.stored}
    size = 2 if dtype(options, machine) == "bfloat16" else 4
    converted = shape.packed is None and size != shape.weight  # the file stays in memory beside it
    file = shape.float_bytes if converted else 0.0
    return {"libraries": machine.import_bytes, "file": file, **gpu_parts(options, shape, rows, machine)}


def gpu_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Bytes where it computes, on the GPU or in main memory."""
    size = 2 if dtype(options, machine) == "bfloat16" else 4
    batch, length, _ = batch_shape(options, rows)
    answer = rows.answer if options.loss_on == "response" else 1.0
    learned = batch * length * answer
    if recorded(options, shape, rows, machine):
        length = float(math.ceil(length / GRAPH_LENGTH) * GRAPH_LENGTH)
        learned = batch * length
    steps_keep = {
        "kept": batch * length * kept(options, shape, size),
        "logits": learned * shape.vocabulary * (2 * size + 8),
    }
    looked = min(HELD_OUT_BATCH, rows.held_out) * min(rows.most, options.max_length) * answer
    looks_keep = {"kept": 0.0, "logits": looked * shape.vocabulary * (size + 8)}
    body = 0.55 if options.method == "qlora" else size  # nf4 and its scales
    return {
        "weights": body * shape.body + size * shape.ends,
        "packed": shape.stored if shape.packed else 0.0,
        "adapter": float(ADAM * trained(options, shape)),
        **(steps_keep if sum(steps_keep.values()) >= sum(looks_keep.values()) else looks_keep),
    }


def recorded(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> bool:
    """Whether steps run as CUDA graphs, which compute logits at all positions."""
    batch, length, _ = batch_shape(options, rows)
    plain = not (options.packing or options.gradient_checkpointing or options.dropout)
    few = batch * length * shape.vocabulary <= GRAPH_LOGITS
    return machine.gpu and plain and few and options.method != "qlora" and steps(options, rows) >= GRAPH_STEPS


def kept(options: finetune.Options, shape: Shape, size: int) -> float:
    """Bytes that a step keeps of each token for its way back."""
    layer = layer_kept(options, shape, size)
    if options.gradient_checkpointing:
        return layer + shape.layers * size * shape.hidden
    return shape.layers * layer


def layer_kept(options: finetune.Options, shape: Shape, size: int) -> float:
    """Bytes of one layer: norms, attention, the gate, and each adapter's input in float32."""
    query, keys = shape.heads * shape.head, shape.shared * shape.head
    norms = shape.hidden * 2 * (2 * size + 8)
    attention = size * (3 * query + 4 * keys)
    gate = size * 4 * shape.inner
    copies = 0 if size == 4 else 4
    adapters = sum(copies * inputs + 4 * options.r for _, _, inputs in targeted(options, shape))
    return float(norms + attention + gate + adapters)


def seconds_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    rate = machine.product(dtype(options, machine))
    batch, _, usual = batch_shape(options, rows)
    batches = steps(options, rows) * options.gradient_accumulation
    answer = rows.answer if options.loss_on == "response" else 1.0
    if recorded(options, shape, rows, machine):
        answer = 1.0
    turns = 6.0 if options.gradient_checkpointing else 4.0  # forward, and back to activations
    learned = 6.0 * answer * shape.embedding
    token = turns * shape.body + learned + 6.0 * trained(options, shape)
    looked = min(rows.held_out, MOST_HELD_OUT) * min(rows.mean, options.max_length)
    looks = 2.0 + (steps(options, rows) // options.eval_every if options.eval_every else 0)
    calls = LAYER_CALLS * shape.layers * machine.call_seconds
    called = batches * (RECORDED if recorded(options, shape, rows, machine) else 1.0)
    return {
        "libraries": machine.import_seconds,
        "begin": BEGIN_SECONDS if machine.gpu else 0.0,
        "files": shape.stored / machine.copy + (shape.body / machine.elements if shape.packed else 0.0),
        "steps": batches * batch * usual * token / rate,
        "calls": calls * called,
        "held_out": looks * looked * 2.0 * (shape.body + answer * shape.embedding) / rate,
    }


def smaller(options: finetune.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """Settings that need less, the nearest first: the option's key, its value, all changes."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    batch, length = options.batch_size, options.max_length
    while batch > 1:
        batch //= 2
        found.append(("batch_size", batch, {"batch_size": batch}))
    least = {"batch_size": 1, "gradient_checkpointing": True}
    found.append(("gradient_checkpointing", True, least))
    while length > 64:
        length //= 2
        found.append(("max_length", length, {**least, "max_length": length}))
    return found
