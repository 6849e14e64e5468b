"""What the words of a recipe mean to the model builder."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.passes.optimize.exported_types import EMBEDDING, HEAD, types

PACKED = {"quant_method": "olive", "bits": 4}


def options(*given: Any, packed: dict[str, Any] | None = None, tied: bool = False) -> dict[str, Any]:
    return types(*given, packed, tied).options


@pytest.mark.parametrize("precision", ["int4", "int8", "fp16", "bf16", "fp32"])
def test_packed_weights_go_in_at_int4_whatever_is_asked_for(precision: str) -> None:
    assert types(precision, "auto", "auto", PACKED, False).precision == "int4"
    assert types(precision, "auto", "auto", None, False).precision == precision


@pytest.mark.parametrize(
    ("precision", "lm_head", "excluded", "upgraded"),
    [
        ("int4", "auto", False, "int8"),
        ("int8", "auto", False, "int8"),
        ("int4", "int4", False, None),
        ("fp32", "auto", True, None),
        ("fp16", "auto", True, None),
        ("int4", "int8", False, "int8"),
        ("int4", "float", True, None),
        ("fp32", "int4", False, None),
        ("fp32", "int8", False, "int8"),
    ],
)
def test_the_output_layer(precision: str, lm_head: str, excluded: bool, upgraded: str | None) -> None:
    found = options(precision, lm_head, "auto", packed=PACKED)
    assert (HEAD in found["nodes_to_exclude"]) == excluded
    assert found.get("matmul_mixed_precision") == ({"last_matmul": upgraded} if upgraded else None)


@pytest.mark.parametrize(
    ("precision", "provider", "level", "head"),
    [
        ("int4", "cpu", 4, "int8"),
        ("int4", "cuda", 4, "int8"),
        ("int4", "cuda", 1, "int8"),
        # What cannot multiply 8 bits, or was never seen to.
        ("int4", "cpu", 1, "float"),
        ("int8", "cpu", 0, "float"),
        ("int4", "dml", 4, "int4"),
    ],
)
def test_the_output_layer_where_nobody_asks_for_a_type(
    precision: str, provider: str, level: int, head: str
) -> None:
    found = types(precision, "auto", "auto", PACKED, False, provider, level).options
    assert (HEAD in found["nodes_to_exclude"]) == (head == "float")
    assert found.get("matmul_mixed_precision") == ({"last_matmul": "int8"} if head == "int8" else None)


def test_a_float_model_that_ties_its_matrices_gets_an_embedding_of_its_own_in_4_bits() -> None:
    found = options("int4", "auto", "auto", tied=True)
    assert found["op_types_to_quantize"] == ["MatMul", "Gather"]
    assert "Gather" not in options("int4", "auto", "auto")["op_types_to_quantize"]
    assert "Gather" not in options("int4", "auto", "float", tied=True)["op_types_to_quantize"]


def test_a_float_model_at_int8_with_another_output_layer() -> None:
    assert "matmul_mixed_precision" not in options("int8", "auto", "auto")
    assert options("int8", "int4", "auto")["matmul_mixed_precision"] == {"last_matmul": "int4"}
    assert HEAD in options("int8", "float", "auto")["nodes_to_exclude"]


@pytest.mark.parametrize(
    ("precision", "lm_head", "embedding", "packed", "shared"),
    [
        ("int4", "auto", "auto", PACKED, True),
        ("int4", "auto", "int4", PACKED, False),
        ("int4", "int4", "auto", PACKED, True),
        ("int4", "auto", "float", PACKED, False),
        ("int4", "int8", "auto", PACKED, True),
        ("int4", "int8", "int4", PACKED, False),
        ("fp32", "auto", "float", PACKED, True),
        ("fp32", "auto", "int4", PACKED, False),
        ("int4", "auto", "auto", PACKED | {"lm_head": True}, True),
        ("int4", "auto", "auto", None, False),
        ("int4", "int4", "auto", None, True),
        ("int4", "int8", "auto", None, False),
        ("int8", "auto", "auto", None, False),
        ("int8", "int4", "auto", None, False),
        ("int8", "float", "auto", None, True),
        ("fp32", "auto", "auto", None, True),
    ],
)
def test_tied_matrices_are_stored_once_where_both_are_wanted_alike(
    precision: str, lm_head: str, embedding: str, packed: dict[str, Any] | None, shared: bool
) -> None:
    assert options(precision, lm_head, embedding, packed=packed, tied=True)["shared_embeddings"] == shared
    assert not options(precision, lm_head, embedding, packed=packed)["shared_embeddings"]


def test_the_embedding_of_a_model_that_ties_nothing() -> None:
    for embedding in ("auto", "float"):
        found = options("int4", "auto", embedding, packed=PACKED)
        assert found["op_types_to_quantize"] == ["MatMul"]
        assert EMBEDDING in found["nodes_to_exclude"]
    found = options("int4", "auto", "int4", packed=PACKED)
    assert found["op_types_to_quantize"] == ["MatMul", "Gather"]
    assert EMBEDDING not in found["nodes_to_exclude"]


def test_bfloat16_activations_of_packed_weights_are_asked_for() -> None:
    assert options("bf16", "auto", "auto", packed=PACKED)["use_cuda_bf16"]
    assert "use_cuda_bf16" not in options("fp16", "auto", "auto", packed=PACKED)


@pytest.mark.parametrize(
    ("given", "packed", "said"),
    [
        (("fp32", "int8", "auto"), None, "lm_head int8 needs precision int4 or int8"),
        (("fp16", "auto", "int4"), None, "embedding int4 needs precision int4 or int8"),
        (("int8", "auto", "int4"), None, "embedding int4 needs precision int4, or"),
        (("int4", "int8", "auto"), PACKED | {"lm_head": True}, "packed already"),
    ],
)
def test_what_cannot_be(given: tuple[str, str, str], packed: dict[str, Any] | None, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        options(*given, packed=packed)
