"""What evaluate takes: the exported graph loaded, held-out rows read by it, and a token at a time.

Parts and factors: see `quantize_cost`.
"""

from __future__ import annotations

from typing import Any

from pipeline.stages import evaluate
from pipeline.stages.costs.cost import Cost, Rows, weighed
from pipeline.stages.costs.machine import Machine
from pipeline.stages.costs.shape import Shape

ANSWER_BYTES = 4000.0  # of a prompt with its answers
# What `passes/measure` reads beside the held-out rows, and how much of a row at a time (`token_losses`).
MOST_TRAINED, GENERAL_TOKENS = 64, 12 * 64
AT_ONCE, LOGITS = 512, 1 << 25

MEMORY = {"libraries": 0.88, "graph": 0.43, "cache": 1.0, "logits": 5.2}
SECONDS = {"libraries": 1.25, "files": 1.0, "prompts": 0.6, "tokens": 0.25, "calls": 1.0}


def estimate(
    options: evaluate.Options, shape: Shape, rows: Rows, machine: Machine, graph: float, sides: int
) -> Cost:
    """What the stage takes on a machine; the graph has so many bytes, and answers on so many sides."""
    memory = weighed(memory_parts(options, shape, rows, machine, graph), MEMORY)
    if options.float:
        memory += shape.float_bytes
    gpu = 0.0 if machine.gpu else None
    seconds = weighed(seconds_parts(options, shape, rows, machine, graph, sides), SECONDS)
    return Cost.of(memory, gpu, options.prompts * ANSWER_BYTES, seconds)


def memory_parts(
    options: evaluate.Options, shape: Shape, rows: Rows, machine: Machine, graph: float
) -> dict[str, float]:
    """Bytes of main memory that are alive at the peak."""
    length = rows.most + options.max_new_tokens
    return {
        "libraries": machine.import_bytes,
        "graph": graph,
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
    return {
        "libraries": machine.import_seconds,
        "files": graph / machine.copy,
        "prompts": (asked + read) * 2.0 * shape.body / machine.product("float32"),
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
