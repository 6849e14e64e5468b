"""How well a model predicts text it was not trained on, and how close its predictions are to another model's.

Perplexity is exp of the mean cross entropy, in nats a token. The divergence is the mean Kullback-Leibler
divergence KL(exact ‖ model) of next-token distributions, in nats a token: 0 for the exact model itself. It
tells quantizations apart on few tokens, where perplexity is mostly luck: quantization errors can happen to
make a text more likely.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from olive.data.constants import IGNORE_INDEX
from torch import Tensor

from pipeline.passes.output_layer import Head, divergences, head_of

AT_ONCE = 8  # texts in a batch
LOGITS = 1 << 26  # logits worked on at a time: a vocabulary of 150,000 tokens is 600 kB a position
Text = tuple[Tensor, Tensor]  # token ids and labels, int64 [tokens]; tokens labelled IGNORE_INDEX don't count


@dataclass(frozen=True)
class Predicted:
    """What a model makes of a batch: last hidden states [n, width] before tokens that count, these [n], and
    how many of them each text has."""

    hidden: Tensor
    targets: Tensor
    counts: tuple[int, ...] = ()


@dataclass(frozen=True)
class Exact:
    """The exact model's hidden states, on the host, and its output layer: enough for its logits."""

    head: Head
    batches: list[Predicted]


@dataclass(frozen=True)
class Judged:
    """Perplexity, and divergence from the exact model where one was given.

    `losses` are those of each text in nats a counted token, in an order that is the same for every model;
    only `judge` has them.
    """

    perplexity: float
    divergence: float | None
    losses: list[float] = field(default_factory=list)


@torch.no_grad()
def read(model: Any, texts: Sequence[Text], tell: Callable[[int], None] | None = None) -> Exact:
    """What the exact model predicts, small enough to keep while another model is loaded."""
    batches = [
        Predicted(found.hidden.cpu(), found.targets.cpu(), found.counts)
        for found in _predict(model, texts, tell)
    ]
    return Exact(copy.deepcopy(head_of(model)), batches)


@torch.no_grad()
def judge(
    model: Any, texts: Sequence[Text], tell: Callable[[int], None] | None = None, exact: Exact | None = None
) -> Judged:
    """Perplexity of a causal model over texts, and its divergence from what `read` returned for them.

    Texts of one length run together. `tell` gets the number of texts done. Raises ValueError if no token
    counts.
    """
    total = _Sum()
    head = head_of(model)
    at_once = max(1, LOGITS // model.config.get_text_config().vocab_size)
    for number, batch in enumerate(_predict(model, texts, tell)):
        known = exact.batches[number].hidden.to(batch.hidden.device) if exact else batch.hidden
        for part, wanted, same in zip(
            *(torch.split(tensor, at_once) for tensor in (batch.hidden, batch.targets, known)), strict=True
        ):
            total.add(head(part), wanted, exact.head(same) if exact else None)
        total.counts += batch.counts
    return total.judged()


@torch.no_grad()
def judge_logits(
    logits: Callable[[Tensor], Tensor],
    texts: Sequence[Text],
    exact: Exact,
    tell: Callable[[int], None] | None = None,
) -> Judged:
    """As `judge`, for any function from ids [tokens] to logits [tokens, vocabulary], one text at a time.

    `exact` is what `read` returned for these texts, or for more texts of this length that begin with these.
    Raises ValueError if it is for others, or if no token counts.
    """
    total = _Sum()
    done = 0
    for (ids, labels), known in zip(_batches(texts), exact.batches, strict=False):
        begin = 0
        for text, label in zip(ids, labels, strict=True):
            counts = label[1:] != IGNORE_INDEX
            wanted = label[1:][counts]
            end = begin + len(wanted)
            if not torch.equal(known.targets[begin:end], wanted):
                raise ValueError("the exact model was read on other texts")
            right = exact.head(known.hidden[begin:end].to(exact.head.device)).cpu()
            total.add(logits(text)[:-1][counts], wanted, right)
            begin, done = end, done + 1
            if tell is not None:
                tell(done)
    return total.judged()


@torch.no_grad()
def loss_of_logits(
    logits: Callable[[Tensor], Tensor], texts: Sequence[Text], tell: Callable[[int], None] | None = None
) -> float:
    """Mean loss in nats a counted token, for any function from ids [tokens] to logits [tokens, vocabulary].

    Raises ValueError if no token counts.
    """
    total = _Sum()
    for done, (ids, labels) in enumerate(texts):
        if tell is not None:
            tell(done)
        counts = labels[1:] != IGNORE_INDEX
        total.add(logits(ids)[:-1][counts], labels[1:][counts], None)
    return math.log(total.judged().perplexity)


@dataclass
class _Sum:
    """Losses and divergences added up, in float64 on the host."""

    loss: float = 0.0
    apart: float = 0.0
    tokens: int = 0
    compared: bool = False
    counts: tuple[int, ...] = ()  # of tokens, text by text
    each: list[Tensor] = field(default_factory=list)  # losses of tokens, float64

    def add(self, logits: Tensor, wanted: Tensor, right: Tensor | None) -> None:
        """Count logits [n, vocabulary] before tokens `wanted` [n], against those of the exact model."""
        likely = logits.log_softmax(-1)
        self.tokens += len(wanted)
        losses = torch.nn.functional.nll_loss(likely, wanted, reduction="none").double().cpu()
        self.loss += float(losses.sum())
        self.each.append(losses)
        if right is not None:
            self.apart += float(divergences(right.log_softmax(-1), likely).sum())
            self.compared = True

    def judged(self) -> Judged:
        """The means. Raises ValueError if nothing was counted."""
        if not self.tokens:
            raise ValueError("no text of two tokens or more to measure perplexity on")
        divergence = self.apart / self.tokens if self.compared else None
        perplexity = math.exp(self.loss / self.tokens)
        return Judged(perplexity, divergence, self._means())

    def _means(self) -> list[float]:
        """The mean loss of each text that has counted tokens."""
        if not self.each or not self.counts:
            return []
        split = torch.split(torch.cat(self.each), list(self.counts))
        return [float(part.mean()) for part in split if len(part)]


def _predict(model: Any, texts: Sequence[Text], tell: Callable[[int], None] | None) -> Iterator[Predicted]:
    device = next(model.parameters()).device
    done = 0
    for ids, labels in _batches(texts):
        hidden = model.base_model(input_ids=ids.to(device), use_cache=False).last_hidden_state
        wanted = labels[:, 1:].to(device)
        counts = wanted != IGNORE_INDEX
        done += len(ids)
        if tell is not None:
            tell(done)
        yield Predicted(hidden[:, :-1][counts], wanted[counts], tuple(counts.sum(-1).tolist()))


def _batches(texts: Sequence[Text]) -> Iterator[Text]:
    by_length: dict[int, list[Text]] = {}
    for ids, labels in texts:
        if len(ids) > 1:
            by_length.setdefault(len(ids), []).append((ids, labels))
    for same in by_length.values():
        for i in range(0, len(same), AT_ONCE):
            batch = same[i : i + AT_ONCE]
            yield torch.stack([ids for ids, _ in batch]), torch.stack([labels for _, labels in batch])
