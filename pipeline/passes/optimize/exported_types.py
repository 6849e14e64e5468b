"""Which weights of the exported graph are stored in which type, as options of the model builder.

Pure functions without torch or files, so that the effect of an option can be read and tested here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

HEAD, EMBEDDING = "/lm_head/MatMul", "/model/embed_tokens/Gather"
FLOAT = "float"
QUANTIZED = ("int4", "int8")
# What 0.18 runs in 8 bits, and at which accuracy level on a CPU. At other levels ONNX Runtime has no kernel
# and unpacks the matrix to float for every token, which takes 17 times as long.
EIGHT_BITS, CPU, INT8_ACTIVATIONS = ("cpu", "cuda"), "cpu", 4


@dataclass(frozen=True)
class Types:
    """What the builder is asked for: its precision, and options that say what differs from it."""

    precision: str
    options: dict[str, Any]


def types(
    precision: str,
    lm_head: str,
    embedding: str,
    quantization: Mapping[str, Any] | None,
    tied: bool,
    provider: str = CPU,
    accuracy_level: int = INT8_ACTIVATIONS,
) -> Types:
    """The builder's precision and options for the options of a recipe.

    `quantization` is a packed checkpoint's own description, None for a float one; `tied` says whether the
    model's embedding and output layer are one matrix. Packed matrices go in unchanged whatever is asked for:
    `precision` then holds for the output layer and for activations on a GPU. `provider` is the builder's name
    for the device.

    Raises ValueError for a type that the builder cannot give to a matrix of this model.
    """
    body = (
        precision if quantization is None else "int4"
    )  # at other precisions the builder takes no packed weights
    packed_head = bool(quantization and quantization.get("lm_head"))
    head = _head(lm_head, packed_head, _auto_head(precision, provider, accuracy_level))
    if body not in QUANTIZED:
        wanted = {"lm_head": head, "embedding": embedding}
        for name, kind in wanted.items():
            if kind not in ("auto", FLOAT):
                raise ValueError(f"{name} {kind} needs precision int4 or int8, or a quantized checkpoint")
        return Types(body, {"shared_embeddings": tied})
    shared = (
        tied and _sharable(head, body, quantization is not None) and embedding in ("auto", _looked_up(head))
    )
    if embedding == "int4" and body != "int4":
        raise ValueError("embedding int4 needs precision int4, or a quantized checkpoint")
    if embedding == "auto" and tied and not shared and body == "int4" and quantization is None:
        embedding = "int4"  # float would be larger than all the rest of a small model
    operators = ["MatMul"]
    excluded = [HEAD] if head == FLOAT else []
    if embedding == "int4" or (shared and head != FLOAT):
        operators.append("Gather")
    else:
        excluded.append(EMBEDDING)
    options: dict[str, Any] = {
        "op_types_to_quantize": operators,
        "nodes_to_exclude": excluded,
        "shared_embeddings": shared,
    }
    if head in QUANTIZED and head != body:
        options["matmul_mixed_precision"] = {"last_matmul": head}
        if shared:
            # 0.18 looks up rows in matrices by the names that its other quantizer uses.
            options["algo_config"] = "rtn"
    if precision == "bf16":
        options["use_cuda_bf16"] = True
    return Types(body, options)


def _auto_head(precision: str, provider: str, accuracy_level: int) -> str:
    """The output layer's type for "auto".

    For an int4 graph it is int8: nearly all differences between such a graph and its checkpoint come from an
    output layer in 4 bits (benchmarks/RESULTS.md).
    """
    if precision not in QUANTIZED:
        return FLOAT
    if provider not in EIGHT_BITS:
        return precision
    return "int8" if provider != CPU or accuracy_level == INT8_ACTIVATIONS else FLOAT


def _head(lm_head: str, packed: bool, auto: str) -> str:
    """The output layer's type: `packed` as the checkpoint has it, else as asked for."""
    if packed:
        if lm_head != "auto":
            raise ValueError(f"lm_head {lm_head} is asked for, and the checkpoint's is packed already")
        return "packed"
    return auto if lm_head == "auto" else lm_head


def _sharable(head: str, body: str, packed: bool) -> bool:
    """Whether tied matrices can be stored once, as the output layer's.

    The builder looks up rows in 4-bit matrices only at precision int4, and in 8-bit ones only with another of
    its quantizers, which would then quantize the body of a float model too.
    """
    if head == "int8":
        return packed
    return head == FLOAT or body == "int4"


def _looked_up(head: str) -> str:
    """The builder's word for an embedding that shares the output layer's matrix."""
    return head if head in ("int4", FLOAT) else "auto"
