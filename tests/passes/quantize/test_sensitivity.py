"""Which matrices get 8 bits: what is measured is what the model does with them rounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.stages import optimize, quantize
from tests.helpers import carry, tiny

pytestmark = pytest.mark.chain
# Fused projections, capped logits, windows, norms of queries and keys, an output layer that is the embedding.
ARCHITECTURES = ["llama", "phi3", "gemma2", "gemma3", "qwen3"]
GROUP = 16


def wrapped(folder: Path, architecture: str = "llama") -> Any:
    """A small model whose predictions its matrices matter for."""
    import torch
    from olive.common.hf.wrapper import ModelWrapper
    from olive.model import HfModelHandler
    from olive.passes.pytorch.train_utils import load_hf_base_model

    if not (folder / "config.json").exists():
        tiny.build(architecture, folder)
    model = load_hf_base_model(HfModelHandler(str(folder), load_kwargs={"torch_dtype": "float32"}))
    torch.manual_seed(3)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.2)
    return ModelWrapper.from_model(model.eval())


def blocks(count: int = 2, length: int = 24) -> Any:
    import torch

    return torch.randint(3, 259, (count, length), generator=torch.Generator().manual_seed(1))


def grid(bits: int = 4) -> Any:
    import torch

    from pipeline.passes.quantize.grid import Grid

    return Grid(bits, False, GROUP, torch.float32)


def by_running_it(wrapper: Any, names: tuple[str, ...]) -> float:
    """The divergence of the whole model with these matrices rounded, as the model itself computes it."""
    import torch

    with torch.no_grad():
        exact = wrapper.model(input_ids=blocks()).logits.log_softmax(-1)
        kept = {name: wrapper.model.get_submodule(name).weight.data for name in names}
        for name, weight in kept.items():
            wrapper.model.get_submodule(name).weight.data = grid().nearest(weight)
        moved = wrapper.model(input_ids=blocks()).logits.log_softmax(-1)
        for name, weight in kept.items():
            wrapper.model.get_submodule(name).weight.data = weight
        return float((exact.exp() * (exact - moved)).sum(-1).mean())


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_each_choice_is_measured_as_the_whole_model_would_have_it(architecture: str, tmp_path: Path) -> None:
    import torch

    from pipeline.passes.quantize import sensitivity

    wrapper = wrapped(tmp_path, architecture)
    before = {name: tensor.clone() for name, tensor in wrapper.model.state_dict().items()}
    found = sensitivity.sensitivities(wrapper, blocks(), grid())
    linears = [
        name
        for name, module in wrapper.model.named_modules()
        if isinstance(module, torch.nn.Linear) and name != "lm_head"
    ]
    assert sorted(name for choice in found for name in choice) == sorted(linears)
    for choice, value in found.items():
        assert value == pytest.approx(by_running_it(wrapper, choice), rel=1e-3), choice
        assert value > 1e-6, choice
    after = wrapper.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_what_reads_one_input_in_attention_has_the_same_bits(tmp_path: Path) -> None:
    from pipeline.passes.quantize import sensitivity

    found = sensitivity.sensitivities(wrapped(tmp_path), blocks(), grid())
    attention = "model.layers.0.self_attn."
    assert (attention + "q_proj", attention + "k_proj", attention + "v_proj") in found
    assert (attention + "o_proj",) in found


def test_the_most_divergence_a_weight_is_chosen_and_never_more_than_the_share() -> None:
    from pipeline.passes.quantize.sensitivity import chosen

    found = {("large",): 0.5, ("small",): 0.2, ("q", "k", "v"): 0.3, ("rest",): 0.0}
    sizes = {("large",): 60, ("small",): 10, ("q", "k", "v"): 20, ("rest",): 110}
    assert chosen(found, sizes, 0.15) == [("small",), ("q", "k", "v")]
    assert chosen(found, sizes, 0.14) == [("small",)]  # q, k and v do not fit, and the rest neither
    assert chosen(found, sizes, 0.45) == [("small",), ("q", "k", "v"), ("large",)]
    assert chosen(found, sizes, 0.04) == []


def test_a_part_of_the_calibration_is_its_first_and_its_last_block() -> None:
    import torch

    from pipeline.passes.quantize.sensitivity import LENGTH, few

    ids = torch.arange(3 * 2 * LENGTH).reshape(3, 2 * LENGTH)
    assert few(ids).tolist() == [ids[0, :LENGTH].tolist(), ids[2, :LENGTH].tolist()]
    assert few(ids[:1, :5]).tolist() == [[0, 1, 2, 3, 4]]
    with pytest.raises(LabError, match="no text to calibrate on"):
        few(ids[:0])


def test_numbers_that_are_not_finite_are_the_models_fault(tmp_path: Path) -> None:
    from pipeline.passes.quantize import sensitivity

    wrapper = wrapped(tmp_path)
    wrapper.model.model.layers[0].mlp.down_proj.weight.data[0, 0] = float("inf")
    with pytest.raises(LabError, match=r"not finite .*model or its number format"):
        sensitivity.sensitivities(wrapper, blocks(), grid())


@pytest.mark.parametrize("algorithm", ["awq", "gptq", "rtn"])
def test_what_was_chosen_is_packed_in_eight_bits_and_exported(algorithm: str, tmp_path: Path) -> None:
    """The checkpoint and its graph agree, where half of the weights have 8 bits and half 4."""
    import torch
    from olive.common.quant.nn import QuantLinear
    from olive.model import HfModelHandler

    from pipeline.passes.measure.graph_logits import logits_of

    model = tmp_path / "model"
    wrapped(model).model.save_pretrained(model)
    context = carry.context_of(tmp_path, model)
    options = quantize.Options(
        algorithm=algorithm, group_size=GROUP, mixed_precision="sensitivity", eight_bit_share=0.5,
        calibration_blocks=4, calibration_length=64,
    )  # fmt: skip
    packed = carry.stage(context, "quantize", quantize, options).artifacts[0].path
    loaded = HfModelHandler(str(packed), load_kwargs={"torch_dtype": "float32"}).load_model().eval()
    found = {name: part for name, part in loaded.named_modules() if isinstance(part, QuantLinear)}
    bits = {name: part.quantizer.bits for name, part in found.items()}
    eight = {name for name, count in bits.items() if count == 8}
    sizes = {name: part.rows * part.cols for name, part in found.items()}
    assert 0.2 < sum(sizes[name] for name in eight) / sum(sizes.values()) <= 0.5
    config = json.loads((packed / "config.json").read_text())["quantization_config"]
    assert eight == set(config["overrides"])
    exported = (
        carry.stage(
            context,
            "optimize",
            optimize,
            optimize.Options(accuracy_level=1, lm_head="float"),
            checkpoint=packed,
        )
        .artifacts[0]
        .path
    )
    with torch.no_grad():
        wanted = loaded(input_ids=blocks(1)).logits[0]
    assert torch.allclose(logits_of(exported)(blocks(1)[0]), wanted, atol=0.02 * float(wanted.abs().max()))
