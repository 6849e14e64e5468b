"""Every type of weight in the exported graph, against PyTorch.

With float32 activations, what is not rounded again is as in PyTorch up to the order of sums, and what is
differs by what its bits allow. Errors are root mean squares relative to the logits: FLOAT was seen below
1e-6, and 8 bits with 32 weights a scale at 5e-3 (output layer) to 2e-2 (all weights), 4 bits at 0.08 to 0.3.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny
from tests.passes.optimize.test_export import PROMPTS, apply, both, quantized, run

pytestmark = pytest.mark.chain

FLOAT, EIGHT, FOUR = (0.0, 1e-5), (2e-3, 4e-2), (5e-2, 0.4)
KINDS = {"Gather": "float", "MatMul": "float"}


def exported(
    architecture: str, algorithm: str, folder: Path, **options: Any
) -> tuple[dict[str, str], float, int]:
    """Export a random model: the types of output layer and embedding, the error, the graph's bytes."""
    import torch
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    from pipeline.passes.measure.graph_logits import logits_of
    from pipeline.passes.optimize.genai_builder import GenaiBuilder

    source = tiny.build(architecture, folder / "model")
    checkpoint = quantized(source, folder / "quantized", algorithm)
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    ids = AutoTokenizer.from_pretrained(checkpoint)(PROMPTS[0])["input_ids"]
    exact = torch.from_numpy(run(handler.load_model(cache_model=False).eval(), ids))
    # Float activations; with these, nobody is given 8 bits who does not ask for them.
    extra = {"accuracy_level": 1, "block_size": 32}
    options = {"lm_head": {"int4": "int4", "int8": "int8"}.get(options["precision"], "auto"), **options}
    apply(GenaiBuilder, {"template": "chat", "extra_options": extra, **options}, handler, folder / "onnx")
    found = logits_of(folder / "onnx")(torch.tensor(ids))
    error = float((found - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt())
    size = sum(file.stat().st_size for file in (folder / "onnx").glob("model.onnx*"))
    return kinds(folder / "onnx" / "model.onnx"), error, size


def kinds(graph: Path) -> dict[str, str]:
    """The types of the output layer's and the embedding's weights, as the graph says."""
    import onnx

    found = {}
    for node in onnx.load(graph, load_external_data=False).graph.node:
        bits = {a.name: a.i for a in node.attribute}.get("bits", 4)  # the operator's default
        if node.name.startswith("/lm_head/MatMul"):
            found["lm_head"] = KINDS.get(node.op_type, f"int{bits}")
        if node.name.startswith("/model/embed_tokens/") and "Gather" in node.op_type:
            found["embedding"] = KINDS.get(node.op_type, f"int{bits}")
    return found


@pytest.mark.parametrize(
    ("architecture", "options", "head", "embedding", "error"),
    [
        ("llama", {"precision": "fp32"}, "float", "float", FLOAT),
        ("llama", {"precision": "int8"}, "int8", "float", EIGHT),
        ("llama", {"precision": "int4"}, "int4", "float", FOUR),
        ("llama", {"precision": "int4", "lm_head": "float"}, "float", "float", FLOAT),
        ("llama", {"precision": "int4", "lm_head": "float", "embedding": "int4"}, "float", "int4", FOUR),
        ("llama", {"precision": "int4", "lm_head": "int8"}, "int8", "float", EIGHT),
        # Output layer and embedding are one matrix here, which is stored once, or twice in two types.
        ("llama3", {"precision": "fp32"}, "float", "float", FLOAT),
        ("llama3", {"precision": "int8"}, "int8", "int8", EIGHT),
        ("llama3", {"precision": "int4"}, "int4", "int4", FOUR),
        ("llama3", {"precision": "int4", "embedding": "float"}, "int4", "float", FOUR),
        ("llama3", {"precision": "int8", "embedding": "float"}, "int8", "float", EIGHT),
        ("llama3", {"precision": "int8", "embedding": "int4"}, "int8", "int4", FOUR),
        ("gemma", {"precision": "int8"}, "int8", "int8", EIGHT),
    ],
    ids=str,
)
def test_a_quantized_checkpoint(
    architecture: str, options: dict[str, str], head: str, embedding: str, error: Any, tmp_path: Path
) -> None:
    found, seen, _ = exported(architecture, "rtn", tmp_path, **options)
    assert found == {"lm_head": head, "embedding": embedding}
    assert error[0] <= seen < error[1]


@pytest.mark.parametrize(
    ("architecture", "options", "head", "embedding", "error"),
    [
        ("llama", {"precision": "fp32"}, "float", "float", FLOAT),
        ("llama", {"precision": "int8"}, "int8", "float", EIGHT),
        ("llama", {"precision": "int8", "lm_head": "float"}, "float", "float", EIGHT),
        ("llama", {"precision": "int8", "lm_head": "int4"}, "int4", "float", FOUR),
        ("llama", {"precision": "int4", "lm_head": "int8"}, "int8", "float", FOUR),
        ("llama3", {"precision": "int8"}, "int8", "float", EIGHT),
        ("llama3", {"precision": "int8", "lm_head": "int4"}, "int4", "float", FOUR),
        ("llama3", {"precision": "int4", "lm_head": "int8"}, "int8", "int4", FOUR),
        ("phi3", {"precision": "int8"}, "int8", "float", EIGHT),
    ],
    ids=str,
)
def test_a_float_model(
    architecture: str, options: dict[str, str], head: str, embedding: str, error: Any, tmp_path: Path
) -> None:
    found, seen, _ = exported(architecture, "float", tmp_path, **options)
    assert found == {"lm_head": head, "embedding": embedding}
    assert error[0] <= seen < error[1]


def test_tied_matrices_stored_once_are_smaller(tmp_path: Path) -> None:
    _, _, once = exported("llama3", "rtn", tmp_path / "once", precision="int8")
    _, _, twice = exported("llama3", "rtn", tmp_path / "twice", precision="int8", embedding="float")
    assert twice - once > 0.9 * 320 * 64 * 4  # the float32 embedding


@pytest.mark.parametrize(
    ("architecture", "algorithm", "embedding"),
    [("llama", "rtn", "float"), ("llama3", "rtn", "int8"), ("llama3", "float", "int4")],
)
def test_an_int4_graph_has_an_output_layer_in_8_bits(
    architecture: str, algorithm: str, embedding: str, tmp_path: Path
) -> None:
    extra = {"accuracy_level": 4, "block_size": 32}
    found, error, _ = exported(
        architecture, algorithm, tmp_path, precision="int4", lm_head="auto", extra_options=extra
    )
    assert found == {"lm_head": "int8", "embedding": embedding}
    assert error < (0.05 if algorithm == "rtn" else FOUR[1])


def test_block_size_decides_the_error_of_what_the_export_rounds(tmp_path: Path) -> None:
    errors = {}
    for size in (16, 128):
        extra = {"accuracy_level": 1, "block_size": size}
        folder = tmp_path / str(size)
        errors[size] = exported("llama", "float", folder, precision="int4", extra_options=extra)[1]
    assert errors[16] < 0.9 * errors[128]


def test_int8_activations_show(tmp_path: Path) -> None:
    """accuracy_level 4 on packed weights that are otherwise exact."""
    extra = {"accuracy_level": 4, "block_size": 32}
    _, error, _ = exported("llama", "rtn", tmp_path, precision="fp32", extra_options=extra)
    assert 1e-3 < error < 5e-2


@pytest.mark.parametrize(
    ("algorithm", "options"),
    [("float", {"precision": "int8"}), ("rtn", {"precision": "int8"}), ("rtn", {"embedding": "float"})],
    ids=str,
)
def test_an_adapter_fits_the_graph(algorithm: str, options: dict[str, str], tmp_path: Path) -> None:
    source = tiny.build("llama", tmp_path / "model")
    export = {"precision": "int4", "extra_options": {"accuracy_level": 1}, **options}
    for pair in both(quantized(source, tmp_path / "quantized", algorithm), tmp_path, export):
        moved = pair.torch_adapter - pair.torch_base
        assert pair.learned() > 1
        assert abs(pair.onnx_adapter - pair.onnx_base - moved).max() < 0.25 * abs(moved).max()
