"""A model's output layer, and how far apart what two models predict is."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Head:
    """A model's output layer, to float32 logits [n, vocabulary]; capped as Gemma 2 caps them."""

    layer: torch.nn.Module
    cap: float | None

    @property
    def device(self) -> torch.device:
        """Where the layer's weights are."""
        return next(itertools.chain(self.layer.parameters(), self.layer.buffers())).device

    def __call__(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.layer(hidden).float()
        return logits if self.cap is None else torch.tanh(logits / self.cap) * self.cap


def head_of(model: Any) -> Head:
    """The output layer of a causal model."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return Head(model.get_output_embeddings(), cap)


def divergences(exact: Tensor, likely: Tensor) -> Tensor:
    """KL(exact ‖ likely) of log-probabilities [..., vocabulary], in nats: [...]."""
    return (exact.exp() * (exact - likely)).sum(-1)
