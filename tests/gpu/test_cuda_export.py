"""Exports for CUDA in every precision, against PyTorch on the same GPU."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.system import hardware
from tests.helpers import tiny
from tests.passes.optimize.test_export import PROMPTS, quantized
from tests.passes.optimize.test_precision import kinds

pytestmark = pytest.mark.gpu

# Root mean square errors relative to the logits, which float32 products on the CPU would not have.
HALF, BRAIN, EIGHT, FOUR = 2e-2, 8e-2, 6e-2, 0.4


def apply(kind: Any, config: dict[str, Any], model: Any, folder: Path) -> Any:
    """Run one Olive pass for CUDA."""
    from olive.hardware.accelerator import AcceleratorSpec
    from olive.passes.olive_pass import create_pass_from_dict

    spec = AcceleratorSpec("gpu", "CUDAExecutionProvider")
    return create_pass_from_dict(kind, config, disable_search=True, accelerator_spec=spec).run(
        model, str(folder)
    )


@pytest.mark.parametrize("architecture", ["llama", "llama3", "phi3", "qwen3"])
@pytest.mark.parametrize(
    ("algorithm", "options", "head", "error"),
    [
        ("float", {"precision": "fp16"}, "float", HALF),
        ("float", {"precision": "bf16"}, "float", BRAIN),
        ("float", {"precision": "int8"}, "int8", EIGHT),
        ("rtn", {"precision": "fp16"}, "float", HALF),
        ("rtn", {"precision": "bf16"}, "float", BRAIN),
        ("rtn", {"precision": "int8"}, "int8", EIGHT),
        ("rtn", {"precision": "int4"}, "int8", EIGHT),
        ("rtn", {"precision": "int4", "lm_head": "int4"}, "int4", FOUR),
    ],
    ids=str,
)
def test_the_graph_is_as_pytorch(
    architecture: str, algorithm: str, options: dict[str, str], head: str, error: float, tmp_path: Path
) -> None:
    import torch
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    from pipeline.passes.measure.graph_logits import logits_of
    from pipeline.passes.optimize.genai_builder import GenaiBuilder

    assert hardware.gpus() > 0, "no GPU answers nvidia-smi"
    source = tiny.build(architecture, tmp_path / "model")
    checkpoint = quantized(source, tmp_path / "quantized", algorithm)
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    ids = torch.tensor(AutoTokenizer.from_pretrained(checkpoint)(PROMPTS[0])["input_ids"])
    with torch.no_grad():
        exact = handler.load_model(cache_model=False).eval().cpu()(input_ids=ids[None]).logits[0]
    apply(GenaiBuilder, {"template": "chat", **options}, handler, tmp_path / "onnx")
    found = logits_of(tmp_path / "onnx")(ids)
    assert kinds(tmp_path / "onnx" / "model.onnx")["lm_head"] == head
    assert float((found - exact).pow(2).mean().sqrt() / exact.pow(2).mean().sqrt()) < error


@pytest.mark.parametrize(("precision", "wanted"), [("fp16", "FLOAT16"), ("bf16", "BFLOAT16")])
@pytest.mark.parametrize("algorithm", ["float", "rtn"])
def test_activations_are_in_the_type_asked_for(
    algorithm: str, precision: str, wanted: str, tmp_path: Path
) -> None:
    import onnx
    from olive.model import HfModelHandler

    from pipeline.passes.optimize.genai_builder import GenaiBuilder

    checkpoint = quantized(tiny.build("llama", tmp_path / "model"), tmp_path / "quantized", algorithm)
    handler = HfModelHandler(str(checkpoint))
    apply(GenaiBuilder, {"template": "chat", "precision": precision}, handler, tmp_path / "onnx")
    graph = onnx.load(tmp_path / "onnx" / "model.onnx", load_external_data=False).graph
    caches = [node for node in graph.input if node.name.startswith("past_key_values")]
    kinds = {onnx.TensorProto.DataType.Name(node.type.tensor_type.elem_type) for node in caches}
    assert kinds == {wanted}


def test_the_graph_answers_through_genai_with_an_adapter_in_half_precision(tmp_path: Path) -> None:
    """The adapter's file is in the type of the graph's activations, and ONNX Runtime GenAI takes it."""
    from olive.model import HfModelHandler

    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.lora_inputs import LoraInputs
    from tests.passes.optimize.test_export import exported, random_adapter

    checkpoint = quantized(tiny.build("llama", tmp_path / "model"), tmp_path / "quantized", "rtn")
    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    random_adapter(handler.load_model(cache_model=False), None).save_pretrained(tmp_path / "adapter")
    plain = apply(GenaiBuilder, {"template": "chat", "precision": "fp16"}, handler, tmp_path / "plain")
    apply(LoraInputs, {"adapter_path": str(tmp_path / "adapter")}, plain, tmp_path / "onnx")
    logits = exported(tmp_path / "onnx")
    ids = tiny.tokenizer()(PROMPTS[0])["input_ids"]
    assert abs(logits(ids, True) - logits(ids, False)).max() > 1
