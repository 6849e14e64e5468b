"""Kinds of adapter: what PEFT is told, that each learns, and that packed weights serve each of them."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages import finetune, quantize
from pipeline.stages.context import Context
from tests.helpers.carry import OPTIONS, stage

pytestmark = pytest.mark.chain


def adapted(checkpoint: Path, method: str, monkeypatch: pytest.MonkeyPatch, free: int) -> Any:
    """A quantized model with an adapter that matters; with no memory free, its weights stay packed."""
    import torch
    from olive.model import HfModelHandler

    from pipeline.passes.finetune import quant_lora

    monkeypatch.setattr(quant_lora, "_free_bytes", lambda: free)
    base = quant_lora.load_base(HfModelHandler(str(checkpoint)), method, torch.float32)
    torch.manual_seed(0)
    config = SimpleNamespace(method=method, r=4, alpha=8, lora_dropout=0.0, target_modules=None)
    made = quant_lora.add_lora(base, config)
    for name, parameter in made.named_parameters():
        if "lora_A" in name or "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.mark.parametrize("method", ["lora", "rslora", "dora"])
def test_packed_and_plain_weights_learn_alike(
    method: str, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients through a packed weight, unpacked at every step, and through its plain copy."""
    import torch
    from olive.common.quant.nn import QuantLinear

    from pipeline.passes.finetune.training import ResponseLoss

    checkpoint = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    torch.manual_seed(3)
    ids = torch.randint(3, 250, (3, 20))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    losses, gradients = [], []
    for free in (10**12, 0):
        model = adapted(checkpoint, method, monkeypatch, free)
        assert any(isinstance(module, QuantLinear) for module in model.modules()) == (free == 0)
        loss, _ = ResponseLoss(model)(batch)
        loss.backward()
        losses.append(float(loss.detach()))
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert gradients[0].keys() == gradients[1].keys()
    assert any("magnitude" in name for name in gradients[0]) == (method == "dora")
    for name, gradient in gradients[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, gradients[1][name], rtol=1e-3, atol=1e-5)


def test_the_scale_of_rslora(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    from peft.tuners.lora import LoraLayer

    checkpoint = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    for method, scale in {"lora": 8 / 4, "rslora": 8 / math.sqrt(4)}.items():
        model = adapted(checkpoint, method, monkeypatch, 10**12)
        found = {m.scaling["default"] for m in model.modules() if isinstance(m, LoraLayer)}
        assert found == {scale}


@pytest.mark.parametrize("method", ["rslora", "dora"])
@pytest.mark.parametrize("free", [10**12, 0], ids=["plain", "packed"])
def test_a_quantized_model_learns(
    method: str, free: int, context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.passes.finetune import quant_lora
    from pipeline.passes.optimize.peft_lora import read_adapter

    monkeypatch.setattr(quant_lora, "_free_bytes", lambda: free)
    checkpoint = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    options = replace(OPTIONS, method=method)
    made = stage(context, "finetune", finetune, options, checkpoint=checkpoint)
    assert made.metrics["eval_loss_after"] < made.metrics["eval_loss_before"] - 0.5
    adapter = made.artifacts[0].path
    config = json.loads((adapter / "adapter_config.json").read_text())
    assert (config["use_rslora"], config["use_dora"]) == (method == "rslora", method == "dora")
    if method == "dora":
        with pytest.raises(ValueError, match="use_dora"):
            read_adapter(adapter)
    else:
        assert read_adapter(adapter)
