"""The exported graph against the PyTorch model it came from, with and without an adapter.

Exported with float32 activations and a float output layer, both sides compute the same products of the
same numbers, so only the order of sums differs: TOLERANCE, on logits of size 2 to 9. A wrong split,
scale or zero point is off by tenths. At the default settings the export also quantizes the output layer
and embeddings to int4 and activations to int8, which PyTorch does not; CLOSE is for that.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import tiny

pytestmark = pytest.mark.chain

TOLERANCE = 5e-5
CLOSE = 0.9  # correlation of logits
PROMPTS = ["What is the best thing to see in Chicago?", "Where do I go first in Rome, and why?"]


def cpu() -> Any:
    from olive.hardware.accelerator import AcceleratorSpec

    return AcceleratorSpec("cpu", "CPUExecutionProvider")


def apply(kind: Any, config: dict[str, Any], model: Any, folder: Path) -> Any:
    """Run one Olive pass."""
    from olive.passes.olive_pass import create_pass_from_dict

    made = create_pass_from_dict(kind, config, disable_search=True, accelerator_spec=cpu())
    return made.run(model, str(folder))


def quantized(source: Path, folder: Path, algorithm: str, **options: Any) -> Path:
    """Quantize a Hugging Face folder; "float" leaves it as it is."""
    from olive.model import HfModelHandler

    from pipeline.passes.quantize.awq import LabAwq
    from pipeline.passes.quantize.rounding import LabGptq, LabRtn

    if algorithm == "float":
        return source
    config: dict[str, Any] = {"bits": 4, "group_size": 16, **options}
    if algorithm != "rtn":
        config["data_config"] = calibration(source, folder)
    kind = {"awq": LabAwq, "gptq": LabGptq, "rtn": LabRtn}[algorithm]
    apply(kind, config, HfModelHandler(str(source)), folder)
    return folder


def calibration(source: Path, folder: Path) -> dict[str, Any]:
    folder.mkdir(parents=True)
    from pipeline.passes.quantize import calibration

    return {
        "name": "calibration",
        "user_script": calibration.__file__,
        "load_dataset_config": {
            "type": "lab_calibration",
            "params": {
                "path": str(tiny.dataset(folder / "rows.jsonl")),
                "template": "chat",
                "model": str(source),
                "eval_fraction": 0.1,
                "seed": 0,
                "blocks": 8,
                "length": 64,
                "general": 0.5,
            },
        },
    }


@dataclass
class Pair:
    """Logits [tokens, vocabulary] of one model on a prompt: by PyTorch and by the exported graph."""

    torch_base: Any
    torch_adapter: Any
    onnx_base: Any
    onnx_adapter: Any

    def worst(self) -> tuple[float, float]:
        """Largest differences (without, with) adapter."""
        return (
            float(abs(self.torch_base - self.onnx_base).max()),
            float(abs(self.torch_adapter - self.onnx_adapter).max()),
        )

    def learned(self) -> float:
        """How much the adapter changes the logits: if nothing, nothing is tested."""
        return float(abs(self.torch_adapter - self.torch_base).max())


def both(
    checkpoint: Path,
    folder: Path,
    export: dict[str, Any],
    targets: list[str] | None = None,
    fewer: bool = True,
    **lora: Any,
) -> list[Pair]:
    """Give a checkpoint a random adapter, export it, and run both on the prompts."""
    import torch
    from olive.model import HfModelHandler
    from transformers import AutoTokenizer

    from pipeline.passes.optimize.fewer_nodes import FewerNodes
    from pipeline.passes.optimize.genai_builder import GenaiBuilder
    from pipeline.passes.optimize.lora_inputs import LoraInputs

    handler = HfModelHandler(str(checkpoint), load_kwargs={"torch_dtype": "float32"})
    model = handler.load_model(cache_model=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    base = [run(model, ids) for ids in prompts]
    adapted = random_adapter(model, targets, **lora)
    adapted.save_pretrained(folder / "adapter")
    after = [run(adapted, ids) for ids in prompts]
    with torch.no_grad():
        plain = apply(GenaiBuilder, {"template": "chat", **export}, handler, folder / "plain")
    if fewer:
        plain = apply(FewerNodes, {}, plain, folder / "fewer")
    apply(LoraInputs, {"adapter_path": str(folder / "adapter")}, plain, folder / "onnx")
    logits = exported(folder / "onnx")
    return [Pair(base[i], after[i], logits(ids, False), logits(ids, True)) for i, ids in enumerate(prompts)]


def run(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.no_grad():
        return model(input_ids=torch.tensor([ids])).logits[0].float().numpy()


def random_adapter(model: Any, targets: list[str] | None, **lora: Any) -> Any:
    """A PEFT adapter as large as a trained one: PEFT's own start has B at zero."""
    import torch
    from peft import LoraConfig, get_peft_model

    from pipeline.passes.finetune.quant_lora import LoraQuantLinear, QuantLinear, all_linear

    torch.manual_seed(1)
    given = {"r": 4, "lora_alpha": 8, "init_lora_weights": False, "task_type": "CAUSAL_LM", **lora}
    config = LoraConfig(target_modules=targets or all_linear(model), **given)
    config._register_custom_module({QuantLinear: LoraQuantLinear})
    return get_peft_model(model, config).eval()


def exported(folder: Path) -> Callable[[list[int], bool], Any]:
    """Logits of an exported folder by ONNX Runtime GenAI, which is what answers users."""
    import onnxruntime_genai as og

    model = og.Model(str(folder))
    adapters = og.Adapters(model)
    adapters.load(str(folder / "adapter_weights.onnx_adapter"), "lab")

    def logits(ids: list[int], adapter: bool) -> Any:
        params = og.GeneratorParams(model)
        params.set_search_options(max_length=len(ids) + 1)
        generator = og.Generator(model, params)
        if adapter:
            generator.set_active_adapter(adapters, "lab")
        generator.append_tokens(ids)
        return generator.get_output("logits")[0].astype("float32")

    return logits


EXACT = {"precision": "fp32", "extra_options": {"accuracy_level": 1}}


@pytest.mark.parametrize("architecture", tiny.MODELS)
@pytest.mark.parametrize("algorithm", ["awq", "rtn", "float"])
def test_every_architecture(architecture: str, algorithm: str, tmp_path: Path) -> None:
    source = tiny.build(architecture, tmp_path / "model")
    for pair in both(quantized(source, tmp_path / "quantized", algorithm), tmp_path, EXACT):
        assert pair.learned() > 1
        assert max(pair.worst()) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
@pytest.mark.parametrize(
    ("algorithm", "options"),
    [
        ("awq", {"sym": True}),
        ("awq", {"bits": 8}),
        ("awq", {"lm_head": True}),
        ("awq", {"overrides": {"model.layers.0.mlp.down_proj": {"bits": 8}}}),
        ("gptq", {}),
        ("gptq", {"sym": True}),
        ("rtn", {"sym": True}),
        ("rtn", {"bits": 8}),
        ("gptq", {"bits": 8}),
        ("rtn", {"group_size": 32}),
        ("rtn", {"lm_head": True}),
    ],
    ids=str,
)
def test_every_way_to_quantize(
    architecture: str, algorithm: str, options: dict[str, Any], tmp_path: Path
) -> None:
    source = tiny.build(architecture, tmp_path / "model")
    checkpoint = quantized(source, tmp_path / "quantized", algorithm, **options)
    for pair in both(checkpoint, tmp_path, EXACT):
        assert pair.learned() > 1
        assert max(pair.worst()) < TOLERANCE


@pytest.mark.parametrize(
    ("architecture", "targets"),
    [
        ("llama", ["q_proj", "v_proj"]),
        ("llama", ["k_proj", "down_proj"]),
        ("phi3", ["qkv_proj"]),
        ("phi3", ["gate_up_proj"]),
    ],
    ids=str,
)
def test_some_targets_only(architecture: str, targets: list[str], tmp_path: Path) -> None:
    source = tiny.build(architecture, tmp_path / "model")
    checkpoint = quantized(source, tmp_path / "quantized", "rtn")
    for pair in both(checkpoint, tmp_path, EXACT, targets):
        assert pair.learned() > 0.1
        assert max(pair.worst()) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "phi3", "qwen3", "gemma3"])
def test_the_builders_own_form_fits_too(architecture: str, tmp_path: Path) -> None:
    """As it goes to CUDA."""
    checkpoint = quantized(tiny.build(architecture, tmp_path / "model"), tmp_path / "quantized", "rtn")
    for pair in both(checkpoint, tmp_path, EXACT, fewer=False):
        assert pair.learned() > 1
        assert max(pair.worst()) < TOLERANCE


@pytest.mark.parametrize("architecture", ["llama", "phi3"])
def test_the_scale_of_rslora_is_in_the_file(architecture: str, tmp_path: Path) -> None:
    """alpha / sqrt(r) where LoRA has alpha / r: with r = 4 twice as much."""
    checkpoint = quantized(tiny.build(architecture, tmp_path / "model"), tmp_path / "quantized", "rtn")
    plain = both(checkpoint, tmp_path / "lora", EXACT)
    for pair, other in zip(both(checkpoint, tmp_path / "rs", EXACT, use_rslora=True), plain, strict=True):
        assert pair.learned() > 1
        assert max(pair.worst()) < TOLERANCE
        assert abs(pair.torch_adapter - other.torch_adapter).max() > 1


@pytest.mark.parametrize("algorithm", ["rtn", "float"])
def test_the_default_export_is_close(algorithm: str, tmp_path: Path) -> None:
    import numpy as np

    source = tiny.build("llama", tmp_path / "model")
    checkpoint = quantized(source, tmp_path / "quantized", algorithm)
    export = {"precision": "int4", "extra_options": {"accuracy_level": 4, "block_size": 32}}
    for pair in both(checkpoint, tmp_path, export):
        assert np.corrcoef(pair.torch_base.ravel(), pair.onnx_base.ravel())[0, 1] > CLOSE
        assert np.corrcoef(pair.torch_adapter.ravel(), pair.onnx_adapter.ravel())[0, 1] > CLOSE


def test_an_adapter_without_a_place_is_an_error(tmp_path: Path) -> None:
    source = tiny.build("llama", tmp_path / "model")
    both(source, tmp_path, EXACT, ["q_proj"])
    import onnx
    from safetensors.torch import load_file, save_file

    from pipeline.passes.optimize.lora_inputs import add_branches, read_widths
    from pipeline.passes.optimize.peft_lora import read_adapter

    file = tmp_path / "adapter" / "adapter_model.safetensors"
    tensors = {name.replace("layers.1", "layers.7"): tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file)
    graph = onnx.load(tmp_path / "plain" / "model.onnx", load_external_data=False).graph
    with pytest.raises(ValueError, match="no product for 1 adapted modules: layer 7 q_proj"):
        add_branches(graph, set(read_adapter(tmp_path / "adapter")), read_widths(tmp_path / "plain"))
    save_file({"base_model.model.lm_head.lora_A.weight": next(iter(tensors.values()))}, file)
    with pytest.raises(ValueError, match="lm_head"):
        read_adapter(tmp_path / "adapter")


def test_the_folder_runs_with_its_own_app(tmp_path: Path) -> None:
    source = tiny.build("llama", tmp_path / "model")
    both(quantized(source, tmp_path / "quantized", "rtn"), tmp_path, EXACT)
    done = subprocess.run(
        [sys.executable, tmp_path / "onnx" / "app.py"],
        input="Where?\n\n",
        capture_output=True,
        text=True,
        check=True,
    )
    assert "[base]" in done.stdout
    assert "[adapter_weights]" in done.stdout
    assert not (tmp_path / "onnx" / "__pycache__").exists()
