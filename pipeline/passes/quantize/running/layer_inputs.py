"""What the decoder layers of a model are given for a text, found without running them."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from olive.common.hf.wrapper import ModelWrapper
from torch import Tensor

BATCH = {"cpu": 4, "cuda": 8}  # blocks run together

Call = tuple[tuple[Any, ...], dict[str, Any]]  # what a layer is called with besides the hidden states


def layer_inputs(wrapper: ModelWrapper, ids: Tensor, device: torch.device) -> tuple[list[Tensor], list[Call]]:
    """What the first layer reads, [blocks, tokens, hidden] per batch, and what each layer is called with.

    Meanwhile the layers compute nothing and return what they are given, so this costs an embedding look-up.
    Each layer's call is recorded, because masks and rotary embeddings can differ between layers (Gemma).
    """
    layers = list(wrapper.get_layers(return_name=False))
    hidden: list[Tensor] = []
    calls: dict[int, Call] = {}

    class Enough(Exception):
        pass

    def record(index: int, given: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if index == 0:
            hidden.append(given)
        calls[index] = (args, kwargs)
        if index == len(layers) - 1:
            raise Enough
        return given

    before = [*wrapper.get_embeds(return_name=False), wrapper.get_rotary_embed(return_name=False)]
    for module in before:
        if module is not None:
            module.to(device)
    for index, layer in enumerate(layers):
        layer.forward = partial(record, index)
    try:
        # The last call has one block alone: its masks then fit batches of any size.
        for batch in [*torch.split(ids, BATCH[device.type]), ids[:1]]:
            try:
                wrapper.model(input_ids=batch.to(device), use_cache=False)
            except Enough:
                continue
    finally:
        for layer in layers:
            del layer.forward
        for module in before:
            if module is not None:
                module.to("cpu")
    return hidden[:-1], [calls[index] for index in range(len(layers))]


def run_layer(layer: torch.nn.Module, hidden: Tensor, call: Call) -> Tensor:
    """A layer's output for [blocks, tokens, hidden], called as the model calls it."""
    output: Any = layer(hidden, *call[0], **call[1])
    made: Tensor = output[0] if isinstance(output, tuple) else output
    return made
