"""Processes that train one adapter together, each on its own GPU (or part of a CPU), seen from one of them.

All take the same steps over the same rows in the same order; of each step's rows each process computes its
part. What they have computed is added up before the optimizer's step, so that this is the same in all, and
the same as in one process alone: only the order of sums differs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from pipeline.passes.finetune.further import Lost

STORE = "store"  # in the folder that they share: how they find each other
# The first process measures held-out rows while others wait. Whoever watches them sees it when one ends.
FOREVER = timedelta(days=365)


class Ranks:
    """One of `count` processes, by its number from 0; the first one writes down what comes of the training.

    They don't use PyTorch's default group, so that transformers and accelerate see one process each.
    """

    def __init__(
        self, rank: int = 0, count: int = 1, folder: Path = Path(), meet: Callable[[], None] = lambda: None
    ) -> None:
        """`folder` is shared by all; `meet` is called before the first of them waits for the others."""
        self.rank = rank
        self.count = count
        self._folder = folder
        self._meet = meet

    @cached_property
    def _group(self) -> Any:
        """The connection of all: over GPUs by NCCL, else by gloo, on this machine's own interface."""
        self._meet()
        store = dist.FileStore(str(self._folder / STORE), self.count)  # type: ignore[attr-defined]
        store.set_timeout(FOREVER)
        if torch.cuda.is_available():
            options = dist.ProcessGroupNCCL.Options()
            options._timeout = FOREVER
            return dist.ProcessGroupNCCL(store, self.rank, self.count, options)
        gloo: Any = dist.ProcessGroupGloo
        how = gloo._Options()
        how._devices, how._timeout = [gloo.create_device(hostname="127.0.0.1")], FOREVER
        return gloo(store, self.rank, self.count, how)

    def add_up(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by their sums over all processes, in one go. Raises Lost."""
        if self.count > 1:
            self._together("allreduce", tensors)

    def from_first(self, tensors: Sequence[torch.Tensor]) -> None:
        """Replace tensors by those of the first process. Raises Lost."""
        if self.count > 1:
            self._together("broadcast", tensors)

    def agree(self, answer: bool) -> bool:
        """The first process's answer. Raises Lost."""
        number = torch.tensor([float(answer)], device=_device())
        self.from_first([number])
        return bool(number.item())

    def union(self, numbers: set[int], most: int) -> set[int]:
        """The numbers, less than `most`, that any process has. Raises Lost."""
        has = torch.zeros(most, device=_device())
        has[list(numbers)] = 1.0
        self.add_up([has])
        return set(torch.nonzero(has).flatten().tolist())

    def close(self) -> None:
        """Leave the others without waiting for them. NCCL would wait when this process ends, for good if they
        have ended first.
        """
        group = self.__dict__.pop("_group", None)
        if group is not None:
            group.abort()

    @torch.no_grad()
    def _together(self, call: str, tensors: Sequence[torch.Tensor]) -> None:
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        try:
            getattr(self._group, call)([flat]).wait()
        except RuntimeError as error:
            raise Lost("Another process of this training has ended.") from error
        parts = torch.split(flat, [tensor.numel() for tensor in tensors])
        shaped = [part.view_as(tensor) for tensor, part in zip(tensors, parts, strict=True)]
        torch._foreach_copy_(list(tensors), shaped)


ALONE = Ranks()  # the only one


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
