"""GPTQ: the error of rounding a column is made up for by the columns that are rounded after it.

Source: Frantar et al., GPTQ, arXiv 2210.17323.

What rounding a matrix W [outputs, inputs] costs is tr(D G D^T) (see `awq_search`). Write G = M M^T with M
upper triangular. Once column i is rounded with the error e = W_i - W'_i, the columns after it make up for
most of it if W_j -= e F_ij with F = diag(M) M^-1, and what is left of its cost is (e M_ii)^2. Rows do not
depend on each other, so matrices that read one input are rounded together, as one matrix.

A device likes large products: columns are corrected one by one only within their group, then the rest of
the block of `BLOCK` columns by one product, then the rest of the matrix by another. Within a group the
unit is a step of its grid, so that a column takes four small operations.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pipeline.errors import LabError
from pipeline.passes.quantize.grid import Grid

BLOCK = 128  # columns; groups are as large or divide it
DAMPING = 0.01  # of the mean of the diagonal: what was never read together can still be factored
MORE_DAMPING = (1, 10, 100, 1000)  # times that, where rounding made the Gram matrix indefinite
SMALLEST = 1e-30  # of that mean, where nothing was read
SHRINKS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7)  # of a group's range; the first is the whole range


@torch.no_grad()
def compensated(
    weight: Tensor, gram: Tensor, grid: Grid, shrinks: Sequence[float] = SHRINKS
) -> tuple[Tensor, Tensor, Tensor]:
    """Round a float32 matrix [rows, inputs] so that its outputs on inputs of this `gram` change least.

    Returns (rounded weights [rows, inputs], scales [rows, groups], zero points [rows, groups]). Each group's
    range is shrunk by the one of `shrinks` that leaves its row the least error once the columns after it
    have made up for theirs. The group's size must divide the inputs. Raises LabError if `gram` cannot
    be factored: it is then not finite.
    """
    groups, order = by_magnitude(gram.diagonal(), grid.group_size)
    follow, cost = factored(gram[order[:, None], order])
    work = weight.T[order]  # a column is then in one piece
    factors = weight.new_tensor(shrinks)[:, None]  # once: each copy to a GPU waits for it
    scales, zeros = [], []
    for start in range(0, len(work), BLOCK):
        end = min(start + BLOCK, len(work))
        errors = torch.empty_like(work[start:end])
        for begin in range(start, end, grid.group_size):
            part = slice(begin, begin + grid.group_size)
            rounded, error, scale, zero = _group(work[part], follow[part, part], cost[part], grid, factors)
            work[part], errors[begin - start : part.stop - start] = rounded, error
            scales.append(scale)
            zeros.append(zero)
            work[part.stop : end].addmm_(follow[part, part.stop : end].T, error, alpha=-1)
        work[end:].addmm_(follow[start:end, end:].T, errors, alpha=-1)
    back = groups.argsort()
    return (
        work[order.argsort()].T.contiguous(),
        torch.stack(scales, 1)[:, back],
        torch.stack(zeros, 1)[:, back],
    )


def by_magnitude(diagonal: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Which groups to round first [groups], and so which columns [inputs]: those that read most, for which
    most others can still make up. A group stays together, so what is stored has its usual order."""
    squares = diagonal.view(-1, size)
    groups = squares.sum(1).argsort(stable=True, descending=True)
    within = squares.argsort(stable=True, dim=1, descending=True)[groups]
    return groups, (groups[:, None] * size + within).flatten()


def factored(gram: Tensor) -> tuple[Tensor, Tensor]:
    """F [inputs, inputs], by which later columns make up for an error, and what is left of the square of an
    error [inputs] (see the top of the module). Raises LabError if that cannot be found.

    An input that was never read is tied to no other: its weights are rounded to nearest, because other
    texts may use it.
    """
    diagonal = gram.diagonal()
    mean = diagonal.mean().clamp(min=SMALLEST)
    for times in MORE_DAMPING:
        # M is the Cholesky factor of what is turned around, turned around again.
        turned = gram.flip(0, 1)
        turned.diagonal().add_(torch.where(diagonal == 0, mean, times * DAMPING * mean).flip(0))
        factor, failed = torch.linalg.cholesky_ex(turned)
        if not failed:
            break
    else:
        raise LabError(
            "The calibration's Gram matrix cannot be factored; set quantize.compensate to false,"
            " or give more calibration text."
        )
    lower = factor.diagonal().clone()
    identity = torch.eye(len(gram), dtype=gram.dtype, device=gram.device, out=turned)
    inverse = torch.linalg.solve_triangular(factor, identity, upper=False)
    del factor, identity, turned  # 256 MB each where a layer reads 8,192 inputs
    return inverse.mul_(lower[:, None]).flip(0, 1), lower.square().flip(0)


def _group(
    columns: Tensor, follow: Tensor, cost: Tensor, grid: Grid, factors: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Round a group's columns [size, rows] one after the other, with its range times each of `factors`
    [shrinks, 1].

    Returns what they are rounded to and by how much that missed what each should have been, both
    [size, rows], and the scale and the zero point, [rows] each.
    """
    low, high = (limit.flatten() for limit in grid.limits(columns.T[:, None]))
    scale, zero = grid.parameters(low * factors, high * factors)  # [shrinks, rows]
    wanted = (columns[:, None] / scale).add_(zero).flatten(1)  # in codes, [size, shrinks * rows]
    missed = torch.empty_like(wanted)
    code = torch.empty_like(wanted[0])
    top = (1 << grid.bits) - 1
    for i, (column, miss) in enumerate(zip(wanted, missed, strict=True)):
        if i:
            column.addmv_(missed[:i].T, follow[:i, i], alpha=-1)
        torch.clamp(column, 0, top, out=code).round_()
        torch.sub(column, code, out=miss)
    codes, errors = (wanted - missed).round_(), missed  # whole again: the difference was rounded
    if len(factors) > 1:
        price = torch.mv(errors.square().T, cost).view_as(scale) * scale.square()
        best = price.argmin(0, keepdim=True)
        codes, errors = (
            found.view(-1, *scale.shape).gather(1, best.expand(len(found), 1, -1)).squeeze(1)
            for found in (codes, errors)
        )
        scale, zero = scale.gather(0, best), zero.gather(0, best)
    scale, zero = scale.flatten(), zero.flatten()
    return codes.sub_(zero).mul_(scale), errors * scale, scale, zero
