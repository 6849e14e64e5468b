"""The codes that weights are rounded to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The codes a group of weights is rounded to. `dtype` is the type its scale is kept in."""

    bits: int
    symmetric: bool
    group_size: int
    dtype: torch.dtype

    def limits(self, groups: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each group of [rows, groups, size]: [rows, groups, 1] each."""
        # Not by `aminmax`: on a CPU it takes nine times as long as both of these.
        low = groups.amin(-1, keepdim=True).clamp_(max=0.0)
        high = groups.amax(-1, keepdim=True).clamp_(min=0.0)
        if self.symmetric:
            high = torch.maximum(-low, high)
            low = -high
        empty = high == low
        return low.masked_fill(empty, -1.0), high.masked_fill(empty, 1.0)

    def parameters(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """The scale, as it will be stored, and the zero point."""
        top = (1 << self.bits) - 1
        scale = ((high - low) / top).to(self.dtype).float()
        scale = scale.clamp(min=torch.finfo(self.dtype).tiny)
        zero = (
            torch.full_like(scale, 1 << (self.bits - 1))
            if self.symmetric
            else (-low / scale).round_().clamp_(0, top)
        )
        return scale, zero

    def round(self, groups: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
        """The weights as they are after packing and unpacking, in a new tensor."""
        codes = (groups / scale).add_(zero).round_().clamp_(0, (1 << self.bits) - 1)
        return codes.sub_(zero).mul_(scale)

    def nearest(self, weight: Tensor) -> Tensor:
        """Round a matrix [rows, inputs] to nearest, each group's range as it is."""
        groups = weight.reshape(len(weight), -1, self.group_size)
        return self.round(groups, *self.parameters(*self.limits(groups))).flatten(1)
