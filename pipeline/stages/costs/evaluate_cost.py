"""What evaluate takes: the exported graph loaded, held-out rows read by it, and a token at a time.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import evaluate, optimize
from pipeline.stages.costs import optimize_cost
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

ANSWER_BYTES = 4000.0  # of a prompt with its answers
# What `passes/measure` reads beside the held-out rows, and how much of a row at a time (`token_losses`).
MOST_TRAINED, GENERAL_TOKENS = 64, 12 * 64
AT_ONCE, LOGITS = 512, 1 << 25
TAX_READ, TAX_MADE = 10 * 128, 10 * 32  # tokens for the adapter's speed: of all turns in `passes/measure/tax`

MEMORY = {
    "libraries": 1.104,
    "body": 0.788,
    "head": 0.884,
    "embedding": 0.05,
    "cache": 1.016,
    "logits": 3.47,
}
# With a GPU, and its machine's many cores.
HOST_MEMORY = {
    "libraries": 1.03,
    "body": 1.1,
    "head": 0.91,
    "embedding": 0.33,
    "cache": 1.07,
    "logits": 5.75,
}
WIDTH, HOST_WIDTH = (0.1, 0.07), (0.1, 0.09)
SECONDS = {"libraries": 1.05, "begin": 1.54, "files": 1.0, "prompts": 1.25, "tokens": 0.29, "calls": 1.08}
HOST_SECONDS = {
    "libraries": 1.05,
    "begin": 1.16,
    "files": 1.0,
    "prompts": 0.11,
    "tokens": 0.25,
    "calls": 8.56,
}


def estimate(
    options: evaluate.Options,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    exported: optimize.Options,
    sides: int,
) -> Cost:
    """What the stage takes on a machine, of a graph that was exported so, and answers on so many sides."""
    graph = optimize_cost.written(exported, shape)
    found = memory_parts(options, shape, rows, machine, exported)
    memory = weighed(found, HOST_MEMORY if machine.gpu else MEMORY)
    if options.float:
        memory += shape.float_bytes
    gpu = 0.0 if machine.gpu else None
    factors = HOST_SECONDS if machine.gpu else SECONDS
    seconds = weighed(seconds_parts(options, shape, rows, machine, graph, sides), factors)
    width = HOST_WIDTH if machine.gpu else WIDTH
    return Cost.of(memory, gpu, options.prompts * ANSWER_BYTES, seconds, width)


def memory_parts(
    options: evaluate.Options, shape: Shape, rows: Rows, machine: Machine, exported: optimize.Options
) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak; of the embedding, the rows that were looked up."""
    length = rows.most + options.max_new_tokens
    ends = optimize_cost.head_and_embedding(exported, shape)
    head = min(ends, shape.embedding * (1 + 4.5 / exported.block_size))
    return {
        "libraries": machine.libraries,
        "body": optimize_cost.written(exported, shape) - ends,
        "head": head,
        "embedding": ends - head,
        "cache": 2.0 * 4 * length * shape.layers * shape.shared * shape.head,
        "logits": 4.0 * min(min(rows.most, AT_ONCE) * shape.vocabulary, LOGITS),
    }


def seconds_parts(
    options: evaluate.Options, shape: Shape, rows: Rows, machine: Machine, graph: float, sides: int
) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates."""
    prompts = min(options.prompts, max(rows.held_out, 1))
    asked = prompts * sides * rows.mean * (1 - rows.answer)
    compared = rows.held_out if options.rows == "all" else options.rows
    if not options.data:  # how many rows a file has is not known here
        compared = min(rows.held_out, compared)
    read = (compared * sides + min(compared, MOST_TRAINED)) * rows.mean + GENERAL_TOKENS * sides
    made = prompts * sides * options.max_new_tokens
    if sides > 1:
        asked, made = asked + TAX_READ, made + TAX_MADE
    return {
        "libraries": machine.import_seconds,
        "begin": 1.0,
        "files": graph / machine.copy,
        "prompts": 2.0 * ((asked + read) * shape.body + read * shape.embedding) / machine.on_processor,
        "tokens": made * graph / machine.copy,
        "calls": made * shape.layers * 15 * machine.call_seconds,
    }


def smaller(options: evaluate.Options) -> list[tuple[str, Any, dict[str, Any]]]:
    """Settings that need less, the nearest first: the option's key, its value, all changes."""
    found: list[tuple[str, Any, dict[str, Any]]] = []
    most = options.max_new_tokens
    while most > 16:
        most //= 2
        found.append(("max_new_tokens", most, {"max_new_tokens": most}))
    return found
