"""What evaluate takes: the exported graph loaded, held-out rows read by it, and a token at a time.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pipeline.stages import evaluate, optimize
from pipeline.stages.costs import optimize_cost
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

ANSWER_BYTES = 4000.0  # of a prompt with its answers
LINE_BYTES = 150.0  # of the losses of a row in their file
FILE_ROW = 150.0  # bytes of main memory for a row of a file: hashes of its prompt and of all of it
MEASURED_ROW = 300.0  # and for a row whose losses are measured and judged
FLOAT32 = 4.0  # bytes
MINUTE = 60.0  # seconds
LOADING = 2.0  # of its weights, that the float model takes while it is loaded
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
    brought: Rows | None = None,
) -> Cost:
    """What the stage takes on a machine, of a graph that was exported so, and answers on so many sides.

    `brought` are the rows of the file `options.data`, all of them held out, if that was looked at.
    """
    graph = optimize_cost.written(exported, shape)
    read = brought or rows
    count = compared(options, rows, brought)
    found = memory_parts(options, shape, read, machine, exported)
    memory = weighed(found, HOST_MEMORY if machine.gpu else MEMORY)
    memory += MEASURED_ROW * count + (FILE_ROW * brought.held_out if brought else 0.0)
    factors = HOST_SECONDS if machine.gpu else SECONDS
    least, whole = (
        weighed(seconds_parts(asked, shape, read, machine, graph, sides, count), factors)
        for asked in (replace(options, prompts=0), options)
    )
    seconds = min(whole, least + MINUTE * options.answer_minutes)
    gpu = 0.0 if machine.gpu else None
    beside = FLOAT32 * (shape.body + shape.ends) if options.float else 0.0
    if options.float and gpu is None:
        memory += LOADING * beside
    elif options.float:
        gpu = beside
    if options.float:
        products = 2.0 * count * read.mean * (shape.body + shape.embedding)
        seconds += beside / machine.copy + products / machine.product("float32")
        made = min(options.prompts, max(read.held_out, 1)) * options.max_new_tokens
        seconds += min(made * beside / machine.copy, MINUTE * options.answer_minutes)
    width = HOST_WIDTH if machine.gpu else WIDTH
    disk = options.prompts * ANSWER_BYTES + 2 * LINE_BYTES * count * (2 if options.float else 1)
    return Cost.of(memory, gpu, disk, seconds, width)


def compared(options: evaluate.Options, rows: Rows, brought: Rows | None) -> int:
    """How many rows are measured."""
    there = brought.held_out if brought else rows.held_out
    if options.rows == "all":
        return there
    known = brought is not None or not options.data  # else nobody knows how many the file has
    return min(options.rows, there) if known else options.rows


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
    options: evaluate.Options,
    shape: Shape,
    rows: Rows,
    machine: Machine,
    graph: float,
    sides: int,
    measured: int | None = None,
) -> dict[str, float]:
    """Seconds that each kind of work takes at the machine's rates; `measured` rows are compared."""
    prompts = min(options.prompts, max(rows.held_out, 1))
    asked = prompts * sides * rows.mean * (1 - rows.answer)
    count = compared(options, rows, None) if measured is None else measured
    read = (count * sides + min(count, MOST_TRAINED)) * rows.mean + GENERAL_TOKENS * sides
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
