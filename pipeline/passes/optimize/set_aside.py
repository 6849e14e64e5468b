"""Packed weights set aside while the model builder quantizes what is left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx_ir as ir

PREPACKED = "weights_prepacked"  # the builder's option that changes the layout of packed weights


@contextmanager
def set_aside(model: type[Any]) -> Iterator[None]:
    """Have the builder's class `model` (`builders.base.Model`) quantize without the weights that stay as they
    are.

    onnxruntime-genai 0.18 writes all weights into a protobuf and reads them back, to quantize the output
    layer of a checkpoint that is packed otherwise: more than half of its time. Only weights that no product
    or embedding to be quantized reads are set aside, so the graph is the same, to the bit.
    """
    original = model.to_nbits

    def to_nbits(self: Any) -> Any:
        kept = {} if self.matmul_attrs[PREPACKED] > 0 else _taken(self)
        try:
            made = original(self)
        finally:
            _put_back(self.model, kept)
        _put_back(made, kept)
        return made

    model.to_nbits = to_nbits
    try:
        yield
    finally:
        model.to_nbits = original


def _taken(self: Any) -> dict[str, Any]:
    """Replace the weights that are not quantized by empty ones; returns them by name."""
    kinds = self.quant_attrs["op_types_to_quantize"]
    kept = {}
    for name, value in self.model.graph.initializers.items():
        if value.const_value is not None and not any(use.node.op_type in kinds for use in value.uses()):
            kept[name] = value.const_value
            value.const_value = ir.tensor(np.zeros(0, np.float32), name=name)
    return kept


def _put_back(model: Any, kept: dict[str, Any]) -> None:
    for name in kept.keys() & model.graph.initializers.keys():  # those that nothing reads are gone by now
        value, tensor = model.graph.initializers[name], kept[name]
        value.const_value, value.shape, value.type = tensor, tensor.shape, ir.TensorType(tensor.dtype)
