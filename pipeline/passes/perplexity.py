"""How well a model foretells text it was not fitted to.

Perplexity is exp of the mean cross entropy, in nats per token, over every token but a text's first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

AT_ONCE = 8  # texts in a batch
LOGITS = 1 << 26  # logits worked on at a time: a vocabulary of 150,000 tokens is 600 kB a position


@torch.no_grad()
def perplexity(model: Any, texts: Iterable[Tensor], tell: Callable[[int], None] | None = None) -> float:
    """Perplexity of a causal model over texts of token ids, each int64 [tokens] with at least two.

    Texts of one length run together. `tell` gets the number of texts done. Raises ValueError without texts.
    """
    total = torch.zeros((), dtype=torch.float64)
    tokens = done = 0
    device = next(model.parameters()).device
    for batch in _batches(texts):
        hidden = model.base_model(input_ids=batch.to(device), use_cache=False).last_hidden_state
        targets = batch[:, 1:].flatten().to(device)
        read = hidden[:, :-1].flatten(0, 1)
        at_once = max(1, LOGITS // model.config.get_text_config().vocab_size)
        for part, wanted in zip(torch.split(read, at_once), torch.split(targets, at_once), strict=True):
            logits = _capped(model, model.get_output_embeddings()(part).float())
            total += torch.nn.functional.cross_entropy(logits, wanted, reduction="sum").cpu()
        tokens, done = tokens + targets.numel(), done + len(batch)
        if tell is not None:
            tell(done)
    if not tokens:
        raise ValueError("no text of two tokens or more to measure perplexity on")
    return math.exp(float(total) / tokens)


def _capped(model: Any, logits: Tensor) -> Tensor:
    """Logits as Gemma 2 caps them; others as they are."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if cap is None else torch.tanh(logits / cap) * cap


def _batches(texts: Iterable[Tensor]) -> Iterable[Tensor]:
    by_length: dict[int, list[Tensor]] = {}
    for text in texts:
        if len(text) > 1:
            by_length.setdefault(len(text), []).append(text)
    for same in by_length.values():
        yield from (torch.stack(same[i : i + AT_ONCE]) for i in range(0, len(same), AT_ONCE))
