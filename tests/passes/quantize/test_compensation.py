"""GPTQ in blocks, against GPTQ column by column in float64."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.errors import LabError
from tests.passes.quantize.test_awq_search import drawn, grid

pytestmark = pytest.mark.chain


def column_by_column(weight: Any, gram: Any, grid: Any) -> tuple[Any, Any, Any]:
    """GPTQ as in the paper, each column changing all after it: rounded weights, scales, zero points.

    The order is by what is read: groups by their sums of squares, within a group its columns.
    """
    import torch

    count = len(gram) // grid.group_size
    columns = torch.arange(len(gram)).view(count, -1)
    first = sorted(range(count), key=lambda group: -float(gram.diagonal()[columns[group]].sum()))
    order = [int(i) for group in first for i in sorted(columns[group], key=lambda i: -float(gram[i, i]))]
    weight, gram = weight[:, order], gram[order][:, order]
    size, top = grid.group_size, 2**grid.bits - 1
    work, gram = weight.double(), gram.double()
    gram = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=torch.float64)
    upper = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    rounded, scales, zeros = torch.empty_like(work), [], []
    for i in range(work.shape[1]):
        if i % size == 0:
            group = work[:, i : i + size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            if grid.symmetric:
                high = torch.maximum(-low, high)
                low = -high
            scale = ((high - low) / top).float().double()  # as it is stored
            zero = torch.full_like(scale, 2 ** (grid.bits - 1)) if grid.symmetric else (-low / scale).round()
            scales.append(scale), zeros.append(zero)
        codes = (work[:, i] / scale + zero).round().clamp(0, top)
        rounded[:, i] = (codes - zero) * scale
        error = (work[:, i] - rounded[:, i]) / upper[i, i]
        work[:, i:] -= error[:, None] * upper[i, i:]
    found = torch.empty_like(rounded)
    found[:, order] = rounded
    places = [first.index(group) for group in range(count)]
    return found, torch.stack(scales, 1)[:, places], torch.stack(zeros, 1)[:, places]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("size", "inputs"), [(16, 272), (32, 160), (64, 320), (128, 256), (128, 128)])
def test_blocks_give_what_single_columns_give(size: int, inputs: int, bits: int, symmetric: bool) -> None:
    import torch

    from pipeline.passes.quantize.awq_search import cost
    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(48, inputs)
    gram, wanted = read.T @ read, grid(bits, symmetric, size)
    expected = column_by_column(weight, gram, wanted)
    found = compensated(weight.double(), gram.double(), wanted, shrinks=(1.0,))
    assert all(
        torch.allclose(x.double(), y, rtol=1e-5, atol=1e-7) for x, y in zip(found, expected, strict=True)
    )
    # In float32 a weight halfway between two codes may go to the other one, and the rest of its row with it.
    singly = compensated(weight, gram, wanted, shrinks=(1.0,))
    costs = [float(cost(rounded.float() - weight, gram)) for rounded in (singly[0], expected[0])]
    assert costs[0] == pytest.approx(costs[1], rel=0.02)


@pytest.mark.parametrize("size", [32, 64])
def test_each_step_loses_less(size: int) -> None:
    from pipeline.passes.quantize.awq_search import cost
    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(96, 192)
    gram, wanted = read.T @ read, grid(4, False, size)
    nearest = wanted.nearest(weight)
    whole, shrunk = (compensated(weight, gram, wanted, *more)[0] for more in ([(1.0,)], []))
    lost = [float(cost(rounded - weight, gram)) for rounded in (nearest, whole, shrunk)]
    assert lost[1] < 0.8 * lost[0]
    assert lost[2] < 0.97 * lost[1]


def test_what_is_returned_lies_on_the_grid() -> None:
    """Packing finds the same codes again, also where scales are stored in 16 bit."""
    from dataclasses import replace

    import torch

    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(32, 96)
    for bits in (4, 8):
        wanted = replace(grid(bits, False, 32), dtype=torch.bfloat16)
        rounded, scales, zeros = compensated(weight, read.T @ read, wanted)
        assert torch.equal(scales, scales.bfloat16().float())
        groups = rounded.view(32, 3, 32)
        again = wanted.round(groups, scales[..., None], zeros[..., None])
        assert torch.equal(again, groups)


def test_inputs_never_read_are_rounded_to_nearest() -> None:
    """Other texts may use them, so their weights are not lost."""
    import torch

    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(16, 64)
    read[:, 40:56] = 0
    rounded, scales, zeros = compensated(weight, read.T @ read, grid())
    groups, place = weight.view(16, 4, 16), slice(40, 56)
    nearest = grid().round(groups, scales[..., None], zeros[..., None]).flatten(1)
    assert torch.allclose(rounded[:, 48:56], nearest[:, 48:56])
    assert (rounded[:, place] - weight[:, place]).abs().max() < 0.5
    nothing, _, _ = compensated(weight, torch.zeros(64, 64), grid(), shrinks=(1.0,))
    assert torch.allclose(nothing, grid().nearest(weight))


def test_a_gram_matrix_that_rounding_made_indefinite_is_damped_more() -> None:
    import torch

    from pipeline.passes.quantize.awq_search import cost
    from pipeline.passes.quantize.compensation import compensated

    weight, read = drawn(16, 64)
    gram = read.T @ read
    gram -= 0.05 * gram.diagonal().mean() * torch.eye(64)
    rounded = compensated(weight, gram, grid())[0]
    assert torch.isfinite(rounded).all()
    assert float(cost(rounded - weight, gram)) < float(cost(grid().nearest(weight) - weight, gram))
    with pytest.raises(LabError, match=r"set quantize\.compensate to false"):
        compensated(weight, gram.fill_(float("nan")), grid())
