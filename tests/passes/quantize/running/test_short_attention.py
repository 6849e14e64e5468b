"""Attention by plain products, against PyTorch's own."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.chain


def drawn(heads: int, shared: int, tokens: int = 24, dtype: str = "float32") -> list[Any]:
    """Queries, keys and values of three blocks."""
    import torch

    dice = torch.Generator().manual_seed(0)
    return [
        torch.randn(3, count, tokens, 16, generator=dice).to(getattr(torch, dtype)).requires_grad_()
        for count in (heads, shared, shared)
    ]


def banded(*shape: int) -> Any:
    """A mask by which a token reads the eight before it and itself."""
    import torch

    return torch.ones(*shape, dtype=torch.bool).tril().triu(-8)


@pytest.mark.parametrize(
    "options",
    [
        {}, {"is_causal": True}, {"is_causal": True, "scale": 0.3}, {"attn_mask": (24, 24)},
        {"attn_mask": (1, 1, 24, 24)}, {"attn_mask": (3, 1, 24, 24)},
        {"attn_mask": (3, 6, 24, 24), "float": True},
    ],
)  # fmt: skip
@pytest.mark.parametrize("shared", [6, 2])
def test_answers_and_gradients_are_pytorchs(shared: int, options: dict[str, Any]) -> None:
    import torch
    from torch.nn import functional

    from pipeline.passes.quantize.running.short_attention import attention

    given = {name: value for name, value in options.items() if name != "float"}
    if "attn_mask" in given:
        given["attn_mask"] = banded(*given["attn_mask"])
        if "float" in options:
            given["attn_mask"] = torch.where(given["attn_mask"], 0.5, -torch.inf)
    found = []
    for function in (attention, functional.scaled_dot_product_attention):
        asked = drawn(6, shared)
        answer = function(*asked, enable_gqa=shared < 6, **given)
        answer.square().sum().backward()
        found.append([answer, *(part.grad for part in asked)])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


def called(monkeypatch: pytest.MonkeyPatch, asked: list[Any], **options: Any) -> bool:
    """Whether PyTorch's function is ours while the mode is entered."""
    import torch
    from torch.nn import functional

    from pipeline.passes.quantize.running import short_attention

    seen: list[Any] = []
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    monkeypatch.setattr(short_attention, "attention", lambda query, *_, **__: seen.append(query) or query)
    with short_attention.ShortAttention():
        functional.scaled_dot_product_attention(*asked, **options)
    return bool(seen)


def test_it_is_used_where_it_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    assert called(monkeypatch, drawn(2, 2, dtype="bfloat16"), is_causal=True)
    assert not called(monkeypatch, drawn(2, 2))
    assert not called(monkeypatch, drawn(2, 2, 1025, dtype="bfloat16"))
    assert not called(monkeypatch, drawn(2, 2, dtype="bfloat16"), dropout_p=0.1)
    assert not called(monkeypatch, [part[0] for part in drawn(2, 2, dtype="bfloat16")])
