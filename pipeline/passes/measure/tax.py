"""What an adapter costs in use: speed and memory of an export without and with it, in alternating turns."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pipeline.exports import generation
from pipeline.system import peak_memory

PROMPT, NEW = 128, 32  # tokens that are read and written in a turn
TURNS = 5
TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on. "


@dataclass(frozen=True)
class Turn:
    """Seconds to read the prompt, to the first token, and for each further one; resident bytes after it."""

    read: float
    first: float
    each: float
    memory: int


def measure(model: generation.Model, adapter: str) -> dict[str, Any]:
    """{"prompt_tokens", "new_tokens", "turns", "base": {...}, "adapter": {...}}, a side as
    {"prefill_tokens_per_second", "decode_tokens_per_second", "decode_turns": [...], "first_token_seconds",
    "memory_bytes"}: medians of the turns; of each pair of turns the other side is first. The adapter is
    loaded all the while, so what loading it took is taken off the base's memory, and what others took off
    both.
    """
    new = min(NEW, model.context_length // 2)
    ids = _prompt(model, min(PROMPT, model.context_length - new - 1))
    sides: dict[str, str | None] = {"base": None, "adapter": adapter}
    turns: dict[str, list[Turn]] = {side: [] for side in sides}
    for active in sides.values():
        _turn(model, ids, active, 2)  # buffers are made the first time
    for side in _order():
        turns[side].append(_turn(model, ids, sides[side], new))
    facts = {"prompt_tokens": len(ids), "new_tokens": new, "turns": TURNS}
    figures = {side: _figures(found, len(ids)) for side, found in turns.items()}
    others = sum(size for name, size in model.adapter_sizes.items() if name != adapter)
    figures["base"]["memory_bytes"] -= others + model.adapter_sizes.get(adapter, 0)
    figures["adapter"]["memory_bytes"] -= others
    return facts | figures


def _order() -> Iterator[str]:
    for number in range(TURNS):
        yield from ("base", "adapter") if number % 2 == 0 else ("adapter", "base")


def _prompt(model: generation.Model, count: int) -> list[int]:
    ids = [int(word) for word in model.tokenizer.encode(TEXT)]
    return (ids * (count // len(ids) + 1))[: max(count, 1)]


def _turn(model: generation.Model, ids: list[int], adapter: str | None, new: int) -> Turn:
    import onnxruntime_genai as og

    params = og.GeneratorParams(model.model)
    length = len(ids) + new
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model.model, params)
    if adapter is not None:
        generator.set_active_adapter(model.adapters, adapter)
    began = time.perf_counter()
    generator.append_tokens(ids)
    read = time.perf_counter()
    generator.generate_next_token()
    first = time.perf_counter()
    for _ in range(new - 1):
        generator.generate_next_token()
    ended = time.perf_counter()
    return Turn(read - began, first - began, (ended - first) / (new - 1), peak_memory.memory_now())


def _figures(turns: list[Turn], prompt: int) -> dict[str, Any]:
    decoded = [1 / turn.each for turn in turns]
    return {
        "prefill_tokens_per_second": prompt / statistics.median(turn.read for turn in turns),
        "decode_tokens_per_second": statistics.median(decoded),
        "decode_turns": decoded,
        "first_token_seconds": statistics.median(turn.first for turn in turns),
        "memory_bytes": int(statistics.median(turn.memory for turn in turns)),
    }
