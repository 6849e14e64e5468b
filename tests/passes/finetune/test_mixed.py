"""Large products in bfloat16: a small adapter counts in full, and whole trainings end as in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages import finetune
from pipeline.stages.context import Context
from tests.helpers.carry import OPTIONS, stage

pytestmark = pytest.mark.chain


def layers() -> tuple[Any, Any]:
    """A layer with an adapter, mixed and as PEFT has it, with the same weights."""
    import torch
    from peft import LoraConfig
    from peft.tuners.lora.layer import Linear

    from pipeline.passes.finetune.mixed import MixedLinear

    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0)
    torch.manual_seed(0)
    made = []
    for kind in (MixedLinear, Linear):
        plain = torch.nn.Linear(64, 48)
        made.append(kind(plain, "default", config=config, r=4, lora_alpha=8))
    weights = {name: torch.randn_like(weight) for name, weight in made[1].named_parameters()}
    for layer in made:
        with torch.no_grad():
            for name, weight in layer.named_parameters():
                weight.copy_(weights[name])
    return made[0], made[1]


def test_gradients_are_those_of_float32() -> None:
    import torch

    inputs = torch.randn(2, 9, 64)
    found = []
    for layer in layers():
        x = inputs.clone().requires_grad_()
        result = layer(x)
        assert (result.dtype, result.shape) == (torch.float32, (2, 9, 48))
        result.square().sum().backward()
        a, b = layer.lora_A["default"].weight.grad, layer.lora_B["default"].weight.grad
        found.append([result.detach(), x.grad, a, b])
    for low, full in zip(*found, strict=True):
        assert float((low - full).norm() / full.norm()) < 0.02


def test_what_is_less_than_a_step_of_bfloat16_is_not_lost() -> None:
    import torch

    mixed, _ = layers()
    x = torch.randn(512, 64)
    with torch.no_grad():
        added = 3e-4 * torch.sign(mixed.lora_B["default"].weight)
        mixed.lora_B["default"].weight.zero_()
        without = mixed(x)
        mixed.lora_B["default"].weight.copy_(added)
        effect = mixed(x) - without
        meant = (x @ mixed.lora_A["default"].weight.t()) @ added.t() * 2
        # Added after the first rounding, hardly any of it is left.
        product = (x.to(torch.bfloat16) @ mixed.base_layer.weight.t()).float()
        late = (product + meant).to(torch.bfloat16).float() - product
    share, lost = (float((found * meant).sum() / meant.square().sum()) for found in (effect, late))
    assert share == pytest.approx(1, abs=0.1)
    assert lost < 0.7


@pytest.mark.parametrize(
    ("method", "numbers", "once"),
    [
        ("lora", "bfloat16", True),
        ("rslora", "bfloat16", True),
        ("lora", "float32", False),
        ("dora", "bfloat16", False),
    ],
)
def test_with_the_whole_model_in_bfloat16_it_is_not_lost_either(
    context: Context, method: str, numbers: str, once: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.passes.finetune import quant_lora
    from pipeline.passes.finetune.mixed import MixedLinear

    made: list[Any] = []
    real = quant_lora.add_lora
    monkeypatch.setattr(
        quant_lora, "add_lora", lambda *given, **options: made.append(real(*given, **options)) or made[-1]
    )
    changed = replace(OPTIONS, method=method, precision=numbers, max_steps=2)
    found = stage(context, "trained", finetune, changed).metrics
    kinds = {type(module) for module in made[0].modules()}
    assert (MixedLinear in kinds, found["dtype"]) == (once, numbers)
    assert found["eval_loss_after"] < found["eval_loss_before"]


def test_activations_in_bfloat16_stay_so_and_gradients_are_those_of_float32() -> None:
    import torch

    low, full = layers()
    x = torch.randn(2, 9, 64)
    result = low(x.to(torch.bfloat16))
    assert (result.dtype, result.shape) == (torch.bfloat16, (2, 9, 48))
    for layer, given in ((low, result.float()), (full, full(x))):
        given.square().sum().backward()
        assert layer.lora_A["default"].weight.grad.dtype == torch.float32
    for name in ("lora_A", "lora_B"):
        found, meant = (getattr(layer, name)["default"].weight.grad for layer in (low, full))
        assert float((found - meant).norm() / meant.norm()) < 0.03


def test_a_whole_training(context: Context, reported: Callable[[], list[dict[str, Any]]]) -> None:
    full = stage(context, "full", finetune, OPTIONS).metrics
    mixed = stage(context, "mixed", finetune, replace(OPTIONS, precision="mixed")).metrics
    assert (full["dtype"], mixed["dtype"]) == ("float32", "mixed")
    said = [event["message"] for event in reported() if "Training in" in event.get("message", "")]
    assert said == ["Training in float32", "Training in float32, large products in bfloat16"]
    assert mixed["eval_loss_before"] == pytest.approx(full["eval_loss_before"], rel=5e-3)
    assert mixed["eval_loss_after"] == pytest.approx(full["eval_loss_after"], rel=2e-2)
    assert mixed["eval_loss_after"] < mixed["eval_loss_before"] - 0.5


def test_packed_layers_stay_in_float32(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from olive.model import HfModelHandler

    from pipeline.passes.finetune import mixed, quant_lora
    from pipeline.stages import quantize

    monkeypatch.setattr(quant_lora, "_free_bytes", lambda: 0)
    checkpoint = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    import torch

    base = quant_lora.load_base(HfModelHandler(str(checkpoint)), "lora", torch.float32)
    config = SimpleNamespace(method="lora", r=4, alpha=8, lora_dropout=0.0, target_modules=None)
    made = quant_lora.add_lora(base, config, rounded_once=True)
    kinds = {type(module) for module in made.modules()}
    assert quant_lora.LoraQuantLinear in kinds
    assert mixed.MixedLinear not in kinds


@pytest.mark.parametrize(
    ("cuda", "amx", "avx512", "method", "expected"),
    [
        (True, False, True, "lora", "bfloat16"),
        (False, True, True, "lora", "bfloat16"),
        (False, False, True, "rslora", "mixed"),
        (False, False, True, "dora", "float32"),
        (False, False, False, "lora", "float32"),
    ],
)
def test_auto_is_what_the_machine_multiplies(
    cuda: bool, amx: bool, avx512: bool, method: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipeline.passes.finetune import mixed

    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    assert mixed.precision("auto", method) == expected
    assert mixed.precision("float32", method) == "float32"


def test_a_training_resumes_in_the_precision_that_it_began_in(tmp_path: Path) -> None:
    from pipeline.passes.finetune.mixed import kept_precision

    assert kept_precision("float32", "lora", tmp_path) == "float32"
    assert kept_precision("mixed", "lora", tmp_path) == "mixed"  # there was no checkpoint
    (tmp_path / "checkpoint-3").mkdir()
    assert kept_precision("float32", "lora", tmp_path) == "mixed"
    (tmp_path / "precision").write_text("")
    assert kept_precision("float32", "lora", tmp_path) == "float32"
