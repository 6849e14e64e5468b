"""The arithmetic of AWQ: which scales and which clipping lose least.

Source: Lin et al., AWQ, arXiv 2306.00978, sections 3.2 and appendix on clipping.

A matrix W [outputs, inputs] reads activations X [tokens, inputs]. What rounding it to W' costs is
|X (W' - W)^T|^2 = tr(D G D^T) with D = W' - W and the Gram matrix G = X^T X [inputs, inputs]. G is summed up
once; a candidate then needs no activations and no forward pass. Everything here is float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pipeline.passes.quantize import fused_rounding
from pipeline.passes.quantize.fused_rounding import SHRINKS, Kernels
from pipeline.passes.quantize.grid import Grid

RATIOS = 20  # candidates for the exponent that balances activations and weights, as in the paper
# Elements processed at a time: more would not fit a CPU's cache, fewer would leave a GPU idle.
CHUNK = {"cpu": 1 << 18, "cuda": 1 << 27}
SMALLEST = 1e-4  # a scale of zero could not be divided by


def cost(difference: Tensor, gram: Tensor) -> Tensor:
    """tr(D G D^T) of D [rows, inputs], a float32 scalar; the product is of the type of G."""
    return (difference.to(gram.dtype) @ gram).float().mul_(difference).sum()


def low_cost(difference: Tensor, gram: Tensor) -> Tensor:
    """The same of two matrices in bfloat16 on a GPU, which sums up their product in float32."""
    return torch.mm(difference, gram, out_dtype=torch.float32).mul_(difference).sum()


def candidates(activations: Tensor, weights: Tensor) -> Iterator[Tensor]:
    """Scales to try, [channels] each: from weights alone to almost activations alone.

    `activations` and `weights` are mean magnitudes [channels]. A channel without any activation counts as
    an average one: other texts may use it, so its weights must not be rounded away.
    """
    silent = activations == 0
    average = activations.sum() / (~silent).sum().clamp(min=1)
    activations = torch.where(silent, average, activations)  # not only if any is: a GPU would wait for that
    for step in range(RATIOS):
        ratio = step / RATIOS
        yield _centred(activations.pow(ratio) / weights.pow(1 - ratio).clamp(min=SMALLEST))


def search_scale(
    matrices: list[Tensor],
    gram: Tensor,
    activations: Tensor,
    grid: Grid,
    price: Callable[[list[Tensor]], Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scale [inputs] that loses least for matrices [rows, inputs] that read one input.

    `activations` is the mean magnitude [inputs]. `price` takes the rounded matrices, scaled back, and
    returns their cost; left out, it is the sum of `cost`.
    Returns (scale, its cost, cost of rounding to nearest): the second never exceeds the third.
    """

    def priced(scale: Tensor) -> Tensor:
        if price is not None:
            return price([grid.nearest(matrix * scale) / scale for matrix in matrices])
        total = torch.zeros((), dtype=torch.float32, device=gram.device)
        for matrix in matrices:
            for part in torch.split(matrix, rows_at_a_time(matrix)):
                if kernels is not None:
                    total += low_cost(kernels.missed(part, scale, grid), read)
                else:
                    total += cost(grid.nearest(part * scale).div_(scale).sub_(part), read)
        return total

    kernels = _kernels(matrices, grid) if price is None else None
    read = gram.bfloat16() if kernels is not None else _as_read(gram)
    weights = torch.cat([_relative(matrix, grid.group_size) for matrix in matrices]).mean(0)
    tried = [torch.ones_like(weights), *candidates(activations, weights)]
    costs = torch.stack([priced(scale) for scale in tried])
    best = costs.nan_to_num(nan=torch.inf).argmin(0, keepdim=True)  # on the device, which nothing waits for
    return torch.stack(tried)[best].squeeze(0), costs[best].squeeze(0), costs[0]


def search_clip(weight: Tensor, gram: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """Scale and zero point, [rows, groups] each, that lose least for a matrix [rows, inputs].

    Each group's range is narrowed step by step; a step's cost counts the group alone, as in the paper. The
    whole matrix keeps what was found only if that costs less with all of `gram`.
    """
    size = grid.group_size
    kernels = _kernels([weight], grid)
    if kernels is not None and kernels.clip is not None:
        return _fused_clip(kernels, weight, gram, grid)
    blocks = torch.stack([gram[i : i + size, i : i + size] for i in range(0, len(gram), size)])
    gained = torch.zeros((), device=gram.device)
    plain, clipped = [], []
    for part in torch.split(weight, rows_at_a_time(weight)):
        groups = part.reshape(len(part), -1, size)
        low, high = grid.limits(groups)
        best = grid.parameters(low, high)
        difference = grid.round(groups, *best).sub_(groups)
        plain.append(best)
        gained += cost(difference.flatten(1), gram)
        lowest = _by_group(difference, blocks)
        for shrink in SHRINKS:
            tried = grid.parameters(low * shrink, high * shrink)
            price = _by_group(grid.round(groups, *tried).sub_(groups), blocks)
            better = price < lowest
            lowest = torch.where(better, price, lowest)
            best = (torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1]))
        clipped.append(best)
        gained -= cost(grid.round(groups, *best).sub_(groups).flatten(1), gram)
    scales, zeros = (
        torch.where(gained > 0, torch.cat(found), torch.cat(whole)).squeeze(-1)
        for found, whole in zip(zip(*clipped, strict=True), zip(*plain, strict=True), strict=True)
    )
    return scales, zeros


def _fused_clip(kernels: Kernels, weight: Tensor, gram: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """`search_clip` by kernels of our own."""
    read, gained, found = gram.bfloat16(), torch.zeros((), device=gram.device), []
    for part in torch.split(weight, rows_at_a_time(weight)):
        scales, zeros, plain, clipped = kernels.clipped(part, gram, grid)
        gained += low_cost(plain, read) - low_cost(clipped, read)
        found.append((scales, zeros))
    scales, zeros = (torch.cat(parts, 1) for parts in zip(*found, strict=True))
    return torch.where(gained > 0, scales[1], scales[0]), torch.where(gained > 0, zeros[1], zeros[0])


@contextmanager
def quick_products() -> Iterator[None]:
    """Let float32 products run on TF32 or bfloat16 units: candidates are compared, not kept."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def rows_at_a_time(matrix: Tensor) -> int:
    """How many rows of a matrix to work on at once."""
    return max(1, CHUNK.get(matrix.device.type, 1 << 20) // matrix.shape[1])


def _kernels(matrices: list[Tensor], grid: Grid) -> Kernels | None:
    """Kernels of our own for all of the matrices, where the caller allows quick products."""
    if torch.get_float32_matmul_precision() != "medium":
        return None
    found = [fused_rounding.fitting(matrix, grid) for matrix in matrices]
    return found[0] if all(found) else None


def _as_read(gram: Tensor) -> Tensor:
    """The Gram matrix as products with candidates read it, where the caller allows quick products and this is
    a CPU that has them: PyTorch would convert it for each, which takes as long as the product."""
    allowed = torch.get_float32_matmul_precision() == "medium" and gram.device.type == "cpu"
    return gram.bfloat16() if allowed and torch.cpu._is_avx512_bf16_supported() else gram


def _by_group(difference: Tensor, blocks: Tensor) -> Tensor:
    """tr(d G d^T) of each group of [rows, groups, size] with its block of [groups, size, size].

    Returns [rows, groups, 1].
    """
    by_group = difference.transpose(0, 1)
    return (torch.bmm(by_group, blocks) * by_group).sum(-1, keepdim=True).transpose(0, 1)


def _relative(weight: Tensor, size: int) -> Tensor:
    """Each weight's magnitude beside the largest of its group: [rows, inputs]."""
    groups = weight.abs().reshape(len(weight), -1, size)
    return (groups / groups.amax(-1, keepdim=True).clamp(min=1e-30)).flatten(1)


def _centred(scale: Tensor) -> Tensor:
    """A scale [channels] with its smallest and largest value equally far from 1."""
    scale = scale.clamp(min=SMALLEST)
    middle: Tensor = (scale.max() * scale.min()).sqrt()
    return scale / middle
