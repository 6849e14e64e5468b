# mypy: disallow-subclassing-any=False
"""Which matrices to keep at 8 bit: those whose rounding to 4 moves the model's predictions most, by weight.

Each choice is tried alone: its matrices are rounded to nearest, and the Kullback-Leibler divergence of the
model's next-token distributions from the exact ones is measured on a few blocks of the calibration. Its
effect passes the layers after it together with those of all choices before, so that the device holds one
layer at a time, as for AWQ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from typing import Any

import torch
from olive.common.hf.wrapper import ModelWrapper
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.quant_utils import get_qkv_quantization_groups
from olive.passes.pytorch.train_utils import load_hf_base_model
from torch import Tensor, nn

from pipeline.errors import LabError
from pipeline.passes.output_layer import Head, divergences, head_of
from pipeline.passes.quantize.grid import Grid
from pipeline.passes.quantize.running.layer_inputs import BATCH, Call, layer_inputs, run_layer
from pipeline.passes.quantize.running.layers_ahead import LayersAhead
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit

HIGH = 8  # bits
BLOCKS, LENGTH = 2, 256  # the first blocks are the user's rows, the last are general text: one of each
LOGITS = 1 << 24  # worked on at a time
NAMED = 5  # choices in the log

Choice = tuple[str, ...]  # names of matrices that have the same number of bits


class LabSensitivity(Pass):
    """Say for the passes that follow which matrices get 8 bits: at most `share` of the layers' weights.

    The output layer gets 8 bits too where it is quantized, as with Olive's rules (SelectiveMixedPrecision).
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "bits": PassConfigParam(type_=int, required=True, description="Of all other matrices."),
            "group_size": PassConfigParam(type_=int, required=True, description="Weights of one scale."),
            "sym": PassConfigParam(type_=bool, default_value=False, description="Without zero points."),
            "share": PassConfigParam(type_=float, required=True, description="Of weights, at 8 bit."),
            "data_config": PassConfigParam(
                type_=DataConfig | dict, required=True, description="Blocks to measure on."
            ),
        }

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model to find its sensitive matrices")
        wrapper = ModelWrapper.from_model(load_hf_base_model(model))
        wrapper.model.eval()
        grid = Grid(config.bits, config.sym, config.group_size, wrapper.model.dtype)
        found = sensitivities(wrapper, few(dataset_of(config.data_config).ids), grid)
        sizes = {choice: sum(_weights(wrapper, name) for name in choice) for choice in found}
        kept = chosen(found, sizes, config.share)
        _report(found, sizes, kept)
        overrides = {name: {"bits": HIGH} for choice in kept for name in choice}
        overrides[wrapper.get_lm_head()[1]] = {"bits": HIGH}
        made = deepcopy(model)
        made.model_attributes = {
            **(made.model_attributes or {}),
            "mixed_precision_info": {"default": {"bits": config.bits}, "overrides": overrides},
        }
        return made


def few(ids: Tensor) -> Tensor:
    """A part of the calibration [blocks, tokens]: the start of its first and of its last block.

    Raises LabError if there is no text.
    """
    if not len(ids):
        raise LabError("There is no text to calibrate on: give more rows, or raise quantize.general_text.")
    return ids[[0, -1][: min(BLOCKS, len(ids))], :LENGTH]


@torch.no_grad()
def sensitivities(wrapper: ModelWrapper, ids: Tensor, grid: Grid) -> dict[Choice, float]:
    """The mean divergence, in nats a token, of the model with the matrices of one choice on `grid`.

    `ids`: int64 [blocks, tokens]. Raises LabError naming the matrices with which it is not finite.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    hidden, calls = layer_inputs(wrapper, ids, device)
    exact, moved = torch.cat(hidden), dict[Choice, Tensor]()
    layers = [layer.layer for layer in wrapper.get_layer_wrappers()]
    together = {name: group for group in get_qkv_quantization_groups(wrapper) for name in group}
    with LayersAhead(layers, device, unchanged=True) as ahead:
        for index, layer in enumerate(layers):
            ahead.take(index)
            prefix = f"{wrapper.get_layers()[1]}.{index}."
            _pass_on(layer, calls[index], moved)
            moved |= _tried(layer, prefix, together, exact, calls[index], grid)
            exact = run_layer(layer, exact, calls[index])
            ahead.leave(index)
            emit(message=f"Tried to round each matrix of layer {index + 1} of {len(layers)}")
    with _end(wrapper, device) as (norm, head):
        ends = {choice: norm(given) for choice, given in moved.items()}
        found = _apart(head, wrapper.config.get_text_config().vocab_size, norm(exact), ends)
    for choice, value in found.items():
        if not math.isfinite(value):
            raise LabError(
                f"With {choice[0]} rounded the model predicts numbers that are not finite (NaN or infinite);"
                " the model or its number format is at fault, not the data."
            )
    return found


def _pass_on(layer: nn.Module, call: Call, moved: dict[Choice, Tensor]) -> None:
    """Replace what each choice makes of the text before the layer by what it makes after it.

    Several run at once: beside other busy processes, threads wait for each other at every product.
    """
    names = list(moved)
    at_once = BATCH[next(iter(moved.values())).device.type] if moved else 1
    for start in range(0, len(names), at_once):
        part = names[start : start + at_once]
        after = run_layer(layer, torch.cat([moved[name] for name in part]), call)
        moved |= zip(part, after.chunk(len(part)), strict=True)


def _tried(
    layer: nn.Module, prefix: str, together: Mapping[str, Choice], given: Tensor, call: Call, grid: Grid
) -> dict[Choice, Tensor]:
    """What the layer makes of `given` with each choice of its matrices rounded."""
    matrices = {prefix + key: part for key, part in layer.named_modules() if isinstance(part, nn.Linear)}
    found = {}
    for choice in dict.fromkeys(together.get(name, (name,)) for name in matrices):
        exact = {name: matrices[name].weight.data for name in choice}
        for name, weight in exact.items():
            matrices[name].weight.data = grid.nearest(weight.float()).to(weight.dtype)
        found[choice] = run_layer(layer, given, call)
        for name, weight in exact.items():
            matrices[name].weight.data = weight
    return found


def _apart(head: Head, vocabulary: int, exact: Tensor, moved: Mapping[Choice, Tensor]) -> dict[Choice, float]:
    """The mean divergence of each from `exact`: what the output layer reads, [blocks, tokens, hidden]."""
    total = dict.fromkeys(moved, 0.0)
    right, others = exact.flatten(0, -2), {choice: given.flatten(0, -2) for choice, given in moved.items()}
    at_once = max(1, LOGITS // vocabulary)
    for start in range(0, len(right), at_once):
        part = slice(start, start + at_once)
        exactly = head(right[part]).log_softmax(-1)
        for choice, given in others.items():
            total[choice] += float(divergences(exactly, head(given[part]).log_softmax(-1)).sum())
    return {choice: value / len(right) for choice, value in total.items()}


@contextmanager
def _end(wrapper: ModelWrapper, device: torch.device) -> Iterator[tuple[nn.Module, Head]]:
    """What follows the last layer, on the device meanwhile."""
    norm, head = wrapper.get_pre_head_layernorm(False), head_of(wrapper.model)
    norm.to(device), head.layer.to(device)
    try:
        yield norm, head
    finally:
        norm.to("cpu"), head.layer.to("cpu")


def chosen(found: Mapping[Choice, float], sizes: Mapping[Choice, int], share: float) -> list[Choice]:
    """The choices with the most divergence a weight that fit into `share` of all weights."""
    left = share * sum(sizes.values())
    kept = []
    for choice in sorted(found, key=lambda each: found[each] / sizes[each], reverse=True):
        if sizes[choice] <= left:
            left -= sizes[choice]
            kept.append(choice)
    return kept


def _weights(wrapper: ModelWrapper, name: str) -> int:
    return int(wrapper.model.get_submodule(name).weight.numel())


def _report(found: Mapping[Choice, float], sizes: Mapping[Choice, int], kept: list[Choice]) -> None:
    """Say what gets 8 bits, the most sensitive first."""
    share = sum(sizes[choice] for choice in kept) / sum(sizes.values())
    names = ", ".join(choice[0] for choice in kept[:NAMED])
    emit(
        message=f"8 bits for {sum(map(len, kept))} of {sum(map(len, found))} matrices, {share:.1%} of the"
        f" weights{f'; most sensitive: {names}' if names else ''}"
    )
