"""The arithmetic of the search, against plain definitions."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.chain


def drawn(rows: int, inputs: int, seed: int = 0) -> tuple[Any, Any]:
    """A matrix and activations [tokens, inputs] of which a few channels are large, as in language models."""
    import torch

    dice = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, inputs, generator=dice) * torch.rand(rows, 1, generator=dice)
    read = torch.randn(200, inputs, generator=dice) * torch.exp(1.5 * torch.randn(inputs, generator=dice))
    return weight, read


def grid(bits: int = 4, symmetric: bool = False, group_size: int = 16) -> Any:
    import torch

    from pipeline.passes.quantize.grid import Grid

    return Grid(bits, symmetric, group_size, torch.float32)


def test_the_cost_is_what_the_outputs_lose() -> None:
    from pipeline.passes.quantize.awq_search import cost

    weight, read = drawn(24, 48)
    difference = grid().nearest(weight) - weight
    assert float(cost(difference, read.T @ read)) == pytest.approx(
        float((read @ difference.T).square().sum()), rel=1e-4
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_rounding_is_olives(bits: int) -> None:
    import torch
    from olive.common.quant.utils import WeightQuantizer

    weight, _ = drawn(24, 48)  # three groups, an odd number
    theirs = WeightQuantizer(bits=bits, symmetric=False, group_size=16).fake_quantize(weight)
    torch.testing.assert_close(grid(bits).nearest(weight), theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_quick_products_choose_the_same_scale(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes.quantize.awq_search import quick_products, search_scale

    weight, read = drawn(96, 64, seed)
    asked = [weight], read.T @ read, read.abs().mean(0), grid()
    scale, lost, plain = search_scale(*asked)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    with quick_products():
        found = search_scale(*asked)
    assert found[1] != lost  # it did read the sums in bfloat16
    assert torch.equal(found[0], scale)
    assert [float(cost) for cost in found[1:]] == pytest.approx([float(lost), float(plain)], rel=3e-3)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_a_search_never_ends_worse_than_rounding_to_nearest(seed: int, symmetric: bool) -> None:
    from pipeline.passes.quantize.awq_search import cost, search_clip, search_scale

    weight, read = drawn(24, 48, seed)
    gram, how = read.T @ read, grid(symmetric=symmetric)
    scale, lost, plain = search_scale([weight], gram, read.abs().mean(0), how)
    assert lost <= plain
    assert float(plain) == pytest.approx(float(cost(how.nearest(weight) - weight, gram)), rel=1e-4)
    assert float(lost) == pytest.approx(
        float((read @ (how.nearest(weight * scale) / scale - weight).T).square().sum()), rel=1e-3
    )
    scales, zeros = search_clip(weight, gram, how)
    clipped = how.round(weight.unflatten(1, (-1, 16)), scales[..., None], zeros[..., None]).flatten(1)
    assert float(cost(clipped - weight, gram)) <= plain * (1 + 1e-5)


def test_scaling_helps_where_few_channels_carry_most() -> None:
    from pipeline.passes.quantize.awq_search import search_scale

    weight, read = drawn(64, 64)
    _, lost, plain = search_scale([weight], read.T @ read, read.abs().mean(0), grid())
    assert lost < 0.8 * plain


def test_matrices_that_read_one_input_get_one_scale() -> None:
    from pipeline.passes.quantize.awq_search import search_scale

    weight, read = drawn(24, 48)
    gram, magnitude = read.T @ read, read.abs().mean(0)
    together = search_scale([weight[:8], weight[8:]], gram, magnitude, grid())
    alone = search_scale([weight], gram, magnitude, grid())
    assert float(together[1]) == pytest.approx(float(alone[1]), rel=1e-4)


def test_nothing_read_means_nothing_scaled() -> None:
    import torch

    from pipeline.passes.quantize.awq_search import search_clip, search_scale

    weight, _ = drawn(24, 48)
    gram, how = torch.zeros(48, 48), grid()
    scale, lost, plain = search_scale([weight], gram, torch.zeros(48), how)
    assert (scale == 1).all()
    assert lost == plain == 0
    scales, zeros = search_clip(weight, gram, how)
    groups = weight.unflatten(1, (-1, 16))
    expected = how.parameters(*how.limits(groups))
    assert torch.equal(scales, expected[0].squeeze(-1))
    assert torch.equal(zeros, expected[1].squeeze(-1))


def test_a_channel_that_was_silent_is_not_rounded_away() -> None:
    from pipeline.passes.quantize.awq_search import search_scale

    weight, read = drawn(24, 48)
    read[:, 5] = 0
    scale, _, _ = search_scale([weight], read.T @ read, read.abs().mean(0), grid())
    assert (scale != 1).any()
    kept = (grid().nearest(weight * scale) / scale)[:, 5]
    assert (kept - weight[:, 5]).abs().max() < 0.5 * weight.abs().max()
    assert (kept != 0).any()


def test_work_in_pieces_is_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from pipeline.passes.quantize import awq_search

    weight, read = drawn(24, 48)
    gram = read.T @ read
    whole = awq_search.search_clip(weight, gram, grid())
    monkeypatch.setitem(awq_search.CHUNK, "cpu", 5 * 48)
    for one, other in zip(whole, awq_search.search_clip(weight, gram, grid()), strict=True):
        torch.testing.assert_close(one, other)
