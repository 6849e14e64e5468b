"""Whether an exported graph predicts the same as PyTorch, with and without the adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime_genai as og
import torch
from olive.model import HfModelHandler
from peft import PeftModel
from torch import Tensor

from pipeline.exports import generation
from pipeline.passes.finetune.quant_lora import unpack_where_it_fits


@dataclass(frozen=True)
class Parity:
    """Over all next-token distributions: how often the most likely token is the same, and the mean KL
    divergence KL(PyTorch ‖ graph) in nats a token."""

    agreement: float
    divergence: float
    tokens: int


Logits = dict[str, list[Tensor]]  # by side, "base" and "adapter", float32 [tokens, vocabulary] of each text


def expected(checkpoint: Path, adapter: Path, texts: Sequence[Tensor]) -> Logits:
    """What PyTorch says to texts of token ids, int64 [tokens] each, in float32 on the CPU."""
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    model: Any = handler.load_model(cache_model=False).eval()
    unpack_where_it_fits(model, torch.float32)
    base = [_logits(model, ids) for ids in texts]
    model = PeftModel.from_pretrained(model, adapter).eval()
    return {"base": base, "adapter": [_logits(model, ids) for ids in texts]}


def measure(exact: Logits, onnx: Path, onnx_adapter: Path, texts: Sequence[Tensor]) -> dict[str, Parity]:
    """Parity by side of a graph with what PyTorch says; it runs through ONNX Runtime GenAI, as it answers
    users."""
    loaded = generation.load(onnx, {"adapter": onnx_adapter})
    return {
        side: compare(known, [graph_logits(loaded, ids, side) for ids in texts])
        for side, known in exact.items()
    }


def compare(exact: Sequence[Tensor], found: Sequence[Tensor]) -> Parity:
    """Compare logits [tokens, vocabulary], text by text."""
    same = apart = 0.0
    for right, wrong in zip(exact, found, strict=True):
        known, other = right.float().log_softmax(-1), wrong.float().log_softmax(-1)
        same += float((known.argmax(-1) == other.argmax(-1)).sum())
        apart += float((known.exp() * (known - other)).sum())
    tokens = sum(len(right) for right in exact)
    return Parity(same / tokens, apart / tokens, tokens)


def graph_logits(loaded: generation.Model, ids: Tensor, side: str) -> Tensor:
    """Logits [tokens, vocabulary] of the exported graph; `side` "adapter" has it active."""
    params = og.GeneratorParams(loaded.model)
    params.set_search_options(max_length=len(ids) + 1)
    generator = og.Generator(loaded.model, params)
    if side == "adapter":
        generator.set_active_adapter(loaded.adapters, "adapter")
    generator.append_tokens(ids.tolist())
    return torch.from_numpy(generator.get_output("logits")[0].astype("float32"))


@torch.no_grad()
def _logits(model: Callable[..., Any], ids: Tensor) -> Tensor:
    found: Tensor = model(input_ids=ids[None]).logits[0]
    return found
