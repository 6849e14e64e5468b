"""What finetune takes: the base in the type it is trained in, the adapter, and what a batch keeps.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from pipeline.stages import finetune
from pipeline.stages.costs.cost import MEMORY_WIDTH, Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

BEGIN_SECONDS = 5.0  # on a GPU: kernels loaded, steps recorded
RECORDED = 0.25  # of the time that launches take, where a whole step is one
HELD_OUT_BATCH, MOST_HELD_OUT = 8, 256  # rows measured at once, and in all
POOL = 16  # batches whose rows are sorted by length: see `passes/finetune/training.py`
ADAM = 16  # bytes of a trained weight: itself, its gradient and two moments in float32
LAYER_CALLS = 450.0  # small operations of a training step for each layer
GRAPH_LOGITS, GRAPH_STEPS, GRAPH_LENGTH = 1 << 29, 10, 64  # see `passes/finetune/cuda_graphs.py`
# Bytes of a logit on the way back: in float32 its logarithm and two gradients; a recorded step keeps it too.
LOGIT, GRAPH_LOGIT = 12.0, 16.0
IN_ATTENTION = {"q_proj", "k_proj", "v_proj", "qkv_proj"}
IN_GATE, AFTER_GATE = {"gate_proj", "up_proj", "gate_up_proj", "fc1"}, {"down_proj", "fc2"}

MEMORY = {
    "libraries": 1.2,
    "file": 1.0,
    "weights": 0.864,
    "packed": 0.96,
    "unpacked": 1.32,
    "adapter": 0.9,
    "kept": 1.035,
    "kept in float32": 1.035,
    "logits": 1.03,
}
WIDTH = (0.1, 0.06)
HOST_MEMORY = {"libraries": 1.63, "packed": 0.02, "file": 0.37}  # main memory beside a GPU
GPU_MEMORY = dict.fromkeys(("workspace", "weights", "unpacked", "adapter", "logits"), 1.0)
GPU_MEMORY |= {"packed": 0.0, "file": 0.0, "kept": 1.06, "kept in float32": 1.06}
WORKSPACE = float(64 << 20)  # of a GPU's matrix products
SECONDS = {
    "libraries": 1.05,
    "begin": 0.27,
    "files": 1.7,
    "steps": 2.0,
    "traffic": 10.0,
    "calls": 1.5,
    "held_out": 4.4,
}
GPU_SECONDS = {
    "libraries": 1.05,
    "begin": 2.1,
    "files": 0.8,
    "steps": 0.6,
    "traffic": 2.4,
    "calls": 1.77,
    "held_out": 0.92,
}


def estimate(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> Cost:
    """What the stage takes on a machine, libraries to import included; on several GPUs, on each of them."""
    count, options = options.gpus, on_each_gpu(options, rows)
    memory = weighed(memory_parts(options, shape, rows, machine), HOST_MEMORY if machine.gpu else MEMORY)
    memory *= count  # each has a process of its own
    gpu = weighed(gpu_parts(options, shape, rows, machine), GPU_MEMORY) if machine.gpu else None
    factors = GPU_SECONDS if machine.gpu else SECONDS
    seconds = weighed(seconds_parts(options, shape, rows, machine), factors)
    disk = 3.0 * 4 * trained(options, shape)  # the adapter, and a checkpoint with its moments
    return Cost.of(memory, gpu, disk, seconds, MEMORY_WIDTH if machine.gpu else WIDTH)


def on_each_gpu(options: finetune.Options, rows: Rows) -> finetune.Options:
    """What each of several GPUs does: as many steps, of a part of the rows."""
    if options.gpus == 1:
        return options
    part = math.ceil(options.batch_size * options.gradient_accumulation / options.gpus)
    batch = min(options.batch_size, part)
    return replace(
        options, gpus=1, batch_size=batch, gradient_accumulation=math.ceil(part / batch), epochs=None,
        max_steps=steps(options, rows),
    )  # fmt: skip


def dtype(options: finetune.Options, machine: Machine) -> str:
    """The numbers that it trains in; mixed ones are float32 but for the products."""
    if options.precision != "auto":
        return options.precision
    if machine.native_bf16:
        return "bfloat16"
    return "mixed" if machine.mixed_bf16 and options.method in ("lora", "rslora") else "float32"


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
    return {"libraries": machine.import_bytes, **gpu_parts(options, shape, rows, machine)}


def gpu_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Bytes where it computes, on the GPU or in main memory."""
    size = 2 if dtype(options, machine) == "bfloat16" else 4
    body = 0.55 if options.method == "qlora" else size  # nf4 and its scales
    moments = (
        step_parts(options, shape, rows, machine),
        look_parts(options, shape, rows, size),
        load_parts(shape, size),
    )
    most: dict[str, float] = max(moments, key=lambda parts: sum(parts.values()))
    ends, packed = shape.ends, shape.stored if shape.packed else 0.0
    if not machine.gpu:  # of a mapped file, what is read: few rows of an embedding that is no output layer
        mapped = size == shape.weight
        ends = shape.embedding if mapped else ends
        packed = shape.packed.size(shape.body, shape.weight) if shape.packed and mapped else 0.0
    return {
        **({"workspace": WORKSPACE} if machine.gpu else {}),
        "weights": body * shape.body + size * ends,
        "packed": packed,
        "adapter": float(ADAM * trained(options, shape)),
        **most,
    }


def load_parts(shape: Shape, size: int) -> dict[str, float]:
    """Bytes while the model is loaded: of unpacking the largest matrix, its codes and twice in float32; of
    changing the type, the whole file and the largest matrix as it is there."""
    if shape.packed is None:
        if size == shape.weight:
            return {}
        return {
            "file": shape.float_bytes,
            "unpacked": float(shape.weight * max(shape.largest, shape.embedding)),
        }
    return {"unpacked": 12.0 * max(shape.largest, shape.embedding if shape.packed.head else 0)}


def step_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Bytes that a training step keeps for its way back, and of its logits."""
    size = 2 if dtype(options, machine) == "bfloat16" else 4
    batch, length, _ = batch_shape(options, rows)
    answer = rows.answer if options.loss_on == "response" else 1.0
    graph = recorded(options, shape, rows, machine)
    if graph:
        length, answer = float(math.ceil(length / GRAPH_LENGTH) * GRAPH_LENGTH), 1.0
    tokens = batch * length
    layer = tokens * layer_kept(options, shape, size, masked=not machine.gpu)
    logits = tokens * answer * shape.vocabulary * (GRAPH_LOGIT if graph else LOGIT)
    name = "kept" if size == 2 else "kept in float32"
    if not options.gradient_checkpointing:
        return {name: shape.layers * layer, "logits": logits}
    between = tokens * shape.layers * size * shape.hidden  # what each layer reads
    if layer > logits:  # of one layer at a time, when the logits are gone
        return {name: between + layer, "logits": 0.0}
    return {name: between, "logits": logits}


def look_parts(options: finetune.Options, shape: Shape, rows: Rows, size: int) -> dict[str, float]:
    """Bytes of the logits of held-out rows: of the batch of them that has the most tokens.

    They are sorted by length, so the longest are the last batch, which may be a small one.
    """
    answer = rows.answer if options.loss_on == "response" else 1.0
    count = min(rows.held_out, MOST_HELD_OUT)
    most, usual = min(rows.most, options.max_length), min(rows.mean, options.max_length)
    rest = count % HELD_OUT_BATCH
    tokens = (rest or min(count, HELD_OUT_BATCH)) * most
    if rest and count > HELD_OUT_BATCH:
        full = usual + (most - usual) * (1 - 2 * rest / count)
        tokens = max(tokens, HELD_OUT_BATCH * full)
    return {"logits": tokens * answer * shape.vocabulary * (size % 4 + 8)}


def recorded(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> bool:
    """Whether steps run as CUDA graphs, which compute logits at all positions."""
    batch, length, _ = batch_shape(options, rows)
    plain = not (options.packing or options.gradient_checkpointing or options.dropout)
    few = batch * length * shape.vocabulary <= GRAPH_LOGITS
    return machine.gpu and plain and few and options.method != "qlora" and steps(options, rows) >= GRAPH_STEPS


def layer_kept(options: finetune.Options, shape: Shape, size: int, *, masked: bool) -> float:
    """Bytes that one layer keeps of each token, as autograd saves them.

    Norms keep what they read in float32; attention what it multiplies and its result, with a mask keys and
    values once for each head that reads them; the gate three vectors.
    An adapter keeps its own copy of what it reads in float32; where that is the type already, those that read
    the same share one.
    """
    query = shape.heads * shape.head
    keys = query if masked else shape.shared * shape.head
    norms = 4 * 2 * shape.hidden
    attention = size * (2 * query + 2 * keys) + 4 * shape.heads
    gate = size * 3 * shape.inner
    wanted = targeted(options, shape)
    read = sum(inputs for _, _, inputs in wanted)
    if size == 4:
        names = {name for name, _, _ in wanted}
        read = shape.hidden * (bool(names & IN_ATTENTION) + bool(names & IN_GATE))
        read += shape.inner * bool(names & AFTER_GATE)
    return float(norms + attention + gate + 4 * read + 4 * options.r * len(wanted))


def seconds_parts(options: finetune.Options, shape: Shape, rows: Rows, machine: Machine) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    rate = machine.product(dtype(options, machine))
    batch, length, usual = batch_shape(options, rows)
    moved = step_parts(options, shape, rows, machine)
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
        "begin": BEGIN_SECONDS,
        "files": shape.stored / machine.copy + (shape.body / machine.elements if shape.packed else 0.0),
        "steps": batches * batch * usual * token / rate,
        "traffic": batches * (usual / length) * sum(moved.values()) / machine.traffic,
        "calls": calls * called,
        "held_out": looks * looked * 2.0 * (shape.body + answer * shape.embedding) / rate,
    }


def smaller(options: finetune.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """Settings that need less, the nearest first: the option's key, its value, all changes."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    batch, length = options.batch_size, options.max_length
    fewest = math.ceil(options.gpus / options.gradient_accumulation)  # a row for each
    while batch > fewest:
        batch = max(batch // 2, fewest)
        found.append(("batch_size", batch, {"batch_size": batch}))
    least = {"batch_size": fewest, "gradient_checkpointing": True}
    found.append(("gradient_checkpointing", True, least))
    while length > 64:
        length //= 2
        found.append(("max_length", length, {**least, "max_length": length}))
    return found
