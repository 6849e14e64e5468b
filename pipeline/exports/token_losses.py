"""How well a loaded export predicts given tokens: losses of ONNX Runtime GenAI's own logits.

The files that ship, in the runtime that ships them, so nothing lies between these figures and the answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.exports.generation import Model

LOGITS = 1 << 25  # numbers computed at a time, 128 MB: a vocabulary of 150,000 tokens is 600 kB a token
AT_ONCE = 512  # tokens, at most


@dataclass(frozen=True)
class Loss:
    """Cross entropy in nats, summed over so many tokens."""

    total: float
    tokens: int

    @property
    def mean(self) -> float:
        """Nats a token. Raises ZeroDivisionError if there is none."""
        return self.total / self.tokens


def measure(model: Model, ids: Sequence[int], counted: Sequence[bool], adapter: str | None = None) -> Loss:
    """The loss of the `counted` ones of `ids`, given all before each; the first is given and never counts.

    Reads them in parts, so that the logits of a long text don't fill the memory. Raises ValueError for ids
    that don't fit into the model's context, and what onnxruntime_genai raises where an adapter does not fit.
    """
    import numpy as np
    import onnxruntime_genai as og

    if len(ids) > model.context_length:
        raise ValueError(f"{len(ids)} tokens are more than the {model.context_length} that the model reads")
    wanted = [at for at in range(1, len(ids)) if counted[at]]
    if not wanted:
        return Loss(0.0, 0)
    read = list(ids[: wanted[-1]])  # behind the last one that counts nothing has to be read
    params = og.GeneratorParams(model.model)
    params.set_search_options(max_length=len(read) + 1)
    generator = og.Generator(model.model, params)
    if adapter is not None:
        generator.set_active_adapter(model.adapters, adapter)
    positions, total = np.asarray(wanted) - 1, 0.0  # of the logits that predict them
    step = max(1, min(AT_ONCE, LOGITS // model.vocabulary))
    for start in range(0, len(read), step):
        generator.append_tokens(read[start : start + step])
        here = positions[(positions >= start) & (positions < start + step)]
        if len(here):
            logits = generator.get_output("logits")[0, here - start].astype(np.float32)
            total += _summed(logits, np.asarray(ids)[here + 1])
    return Loss(total, len(wanted))


def _summed(logits: Any, wanted: Any) -> float:
    """Cross entropy of float32 logits [n, vocabulary] for the tokens `wanted` [n], in nats, added up."""
    import numpy as np

    with np.errstate(invalid="ignore"):  # logits that are no numbers make a loss that is none
        highest = logits.max(-1, keepdims=True)
        chosen = logits[np.arange(len(wanted)), wanted] - highest[:, 0]
        np.exp(np.subtract(logits, highest, out=logits), out=logits)
        return float((np.log(logits.sum(-1, dtype=np.float64)) - chosen).sum())
