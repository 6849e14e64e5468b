"""Which of PyTorch's attention kernels a GPU uses."""

from __future__ import annotations

import torch

LONGEST = 1024  # tokens of a row, up to which attention is a small part of a step


def without_plans(longest: int) -> None:
    """Have this process not use cuDNN's attention if its longest row, of that many tokens, is short.

    It makes a plan for each shape of a batch, in a tenth of a second forwards and as much backwards, and
    before the first one loads a library for up to a second. PyTorch's own kernels need neither.
    """
    if longest <= LONGEST:
        torch.backends.cuda.enable_cudnn_sdp(False)
