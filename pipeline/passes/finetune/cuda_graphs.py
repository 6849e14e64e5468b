"""Training steps as CUDA graphs: recorded once for each shape of a batch, then replayed.

A step of a LoRA training is thousands of small kernels; launching them one by one from Python takes
several times as long as they run. A recorded step is one launch. Sequences are padded to a few lengths,
so that a few records serve all batches; padding is on the right, where a causal model's labelled
positions do not see it. A shape that is met now and then, such as the last batch of an epoch, fills a part
of a larger record, whose other rows have no labels: its first step and its recording take seconds.
"""

from __future__ import annotations

import inspect
from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from olive.data.constants import IGNORE_INDEX
from torch import Tensor

from pipeline.stages.events import emit

STEP = 64  # lengths are padded to a multiple of this
MOST_LOGITS = 1 << 29  # a record computes logits at all positions, in float32: 2 GB
# Batches of a shape that run as usual before it is recorded. The first of all is recorded at once: it takes
# seconds either way, in which kernels are loaded.
SEEN_BEFORE = 1
PADDED_BEFORE = 32  # batches of a shape that fill a part of a larger record before it has its own
MOST_PADDING = 4  # times as many tokens as the batch has, that such a record may compute


@dataclass
class Record:
    """A recorded step with the tensors it reads and writes."""

    graph: torch.cuda.CUDAGraph
    ids: Tensor
    targets: Tensor
    count: Tensor
    loss: Tensor


class StepGraphs:
    """Runs forward and backward of a batch as a CUDA graph; gradients are added to what is there."""

    def __init__(self, model: Any, parameters: list[torch.nn.Parameter]) -> None:
        self.model = model
        self.parameters = parameters
        self.seen: Counter[tuple[int, int]] = Counter()
        self.records: dict[tuple[int, int], Record] = {}
        self.pool = torch.cuda.graph_pool_handle()
        self.failed = False
        self.vocabulary = model.config.get_text_config().vocab_size
        self.gradients = [torch.zeros_like(parameter) for parameter in parameters]
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient

    def zero(self) -> None:
        """Set the gradients to zero in place: records write to these tensors."""
        torch._foreach_zero_(self.gradients)

    def run(self, ids: Tensor, targets: Tensor, count: Tensor) -> Tensor | None:
        """The batch's part of the step's mean loss, after adding its gradients; None if it must run as usual.

        `ids` and `targets`, int64 [rows, tokens]; `count`: labelled tokens of the whole step.
        """
        rows, tokens = ids.shape
        length = -(-tokens // STEP) * STEP
        shape = (rows, length)
        if self.failed or rows * length * self.vocabulary > MOST_LOGITS:
            return None
        record = self.records.get(shape)
        if record is None:
            first = not self.seen
            self.seen[shape] += 1
            larger = self._larger(shape)
            if larger is not None and self.seen[shape] <= PADDED_BEFORE:
                record = larger
            elif (first or self.seen[shape] > SEEN_BEFORE) and self._try(shape, again=first):
                record = self.records[shape]
            else:
                return None
        record.ids.zero_()[:rows, :tokens] = ids
        record.targets.fill_(IGNORE_INDEX)[:rows, :tokens] = targets
        record.count.copy_(count)
        record.graph.replay()
        return record.loss.detach().clone()

    def _larger(self, shape: tuple[int, int]) -> Record | None:
        """The smallest record that has room for a batch of that shape; None if none is of about its size."""
        rows, length = shape
        most = MOST_PADDING * rows * length
        fitting = [
            (recorded[0] * recorded[1], recorded)
            for recorded in self.records
            if recorded[0] >= rows and recorded[1] >= length and recorded[0] * recorded[1] <= most
        ]
        return self.records[min(fitting)[1]] if fitting else None

    def _try(self, shape: tuple[int, int], again: bool) -> bool:
        """Record a step of that shape; False if that fails: some models wait for the GPU in their forward.

        With `again` a later batch may do better, once a step has run as usual.
        """
        try:
            if again:
                self._begin()
            self.records[shape] = self._record(*shape)
            return True
        except RuntimeError as error:
            if again:
                print(f"The first step cannot be recorded; it runs as usual: {error}")
                self.pool = torch.cuda.graph_pool_handle()
                torch.cuda.empty_cache()
                return False
            self.failed = True
            self.records.clear()  # they may hold the memory that is missing
            torch.cuda.empty_cache()
            memory = isinstance(error, torch.OutOfMemoryError)
            why = "There is too little GPU memory to record steps" if memory else "Steps cannot be recorded"
            emit(message=f"{why}; they run as usual, which takes longer")
            print(f"Recording a step failed: {error}")
            return False

    def _begin(self) -> None:
        """Have the thread that computes gradients begin with its products, which a recording could not."""
        small = torch.ones(16, 16, dtype=torch.bfloat16, device=self.parameters[0].device, requires_grad=True)
        torch.autograd.grad((small @ small).sum(), small)

    def _record(self, rows: int, length: int) -> Record:
        device = self.parameters[0].device
        ids = torch.zeros(rows, length, dtype=torch.int64, device=device)
        targets = torch.full_like(ids, IGNORE_INDEX)
        count = torch.ones((), device=device)
        graph = torch.cuda.CUDAGraph()
        # Not "global": NCCL has a thread that asks the GPU now and then.
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            logits = self.model(input_ids=ids, use_cache=False).logits.float()
            total = torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE_INDEX, reduction="sum"
            )
            loss = total / count
            torch.autograd.backward(loss)
        emit(message=f"Recorded the step for {rows} rows of up to {length} tokens")
        return Record(graph, ids, targets, count, loss)


def steady_rope(model: Any, longest: int) -> bool:
    """Keep rotary embeddings from checking each batch's length; return whether that is correct.

    Long RoPE and dynamic RoPE change their frequencies past a length. Up to it they are constant, but
    the check makes the GPU wait for Python, and a step that waits cannot be recorded.
    """
    for module in model.modules():
        kind = getattr(module, "rope_type", None)
        if kind not in ("longrope", "dynamic"):
            continue
        config = module.config.get_text_config()
        known = getattr(config, "original_max_position_embeddings", None) or (
            getattr(config, "rope_parameters", None) or {}
        ).get("original_max_position_embeddings")
        if longest > (known or config.max_position_embeddings):
            return False
        plain = inspect.unwrap(type(module).forward)
        module.forward = torch.no_grad()(plain.__get__(module))
    return True
