"""What an adapter costs, on a small export that really computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import exports

pytestmark = pytest.mark.chain


def test_both_sides_take_turns_and_medians_are_told(
    written_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.exports import generation
    from pipeline.passes.measure import tax

    model = generation.load(written_export, {"adapter": written_export / exports.ADAPTER})
    active: list[tuple[str | None, int]] = []
    turn = tax._turn

    def noted(model: Any, ids: list[int], adapter: str | None, new: int) -> tax.Turn:
        active.append((adapter, new))
        return turn(model, ids, adapter, new)

    monkeypatch.setattr(tax, "_turn", noted)
    found = tax.measure(model, "adapter")
    assert [adapter for adapter, new in active if new == tax.NEW] == [
        None, "adapter", "adapter", None, None, "adapter", "adapter", None, None, "adapter",
    ]  # fmt: skip
    assert (found["prompt_tokens"], found["new_tokens"], found["turns"]) == (128, 32, 5)
    for side in (found["base"], found["adapter"]):
        assert len(side["decode_turns"]) == 5
        assert side["decode_tokens_per_second"] == sorted(side["decode_turns"])[2]
        assert min(side["prefill_tokens_per_second"], side["first_token_seconds"]) > 0
        assert side["memory_bytes"] > 1 << 20
    json.dumps(found, allow_nan=False)


def test_what_loading_the_adapter_took_is_no_memory_of_the_base(
    written_export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    from pipeline.exports import generation
    from pipeline.passes.measure import tax
    from pipeline.system import peak_memory

    taken = iter([100 << 20, 107 << 20])
    with monkeypatch.context() as while_loading:
        while_loading.setattr(peak_memory, "memory_now", lambda: next(taken))
        model = generation.load(written_export, {"adapter": written_export / exports.ADAPTER})
    assert model.adapter_sizes == {"adapter": 7 << 20}
    monkeypatch.setattr(peak_memory, "memory_now", lambda: 200 << 20)
    found = tax.measure(replace(model, context_length=24), "adapter")
    assert [found[side]["memory_bytes"] >> 20 for side in ("base", "adapter")] == [193, 200]
    sizes = {"adapter": 7 << 20, "another": 10 << 20}
    found = tax.measure(replace(model, context_length=24, adapter_sizes=sizes), "adapter")
    assert [found[side]["memory_bytes"] >> 20 for side in ("base", "adapter")] == [183, 190]


def test_a_short_context_has_room_for_both(written_export: Path) -> None:
    from dataclasses import replace

    from pipeline.exports import generation
    from pipeline.passes.measure import tax

    model = generation.load(written_export, {"adapter": written_export / exports.ADAPTER})
    found = tax.measure(replace(model, context_length=24), "adapter")
    assert (found["prompt_tokens"], found["new_tokens"]) == (11, 12)
