"""Kinds of fine-tuning on an NVIDIA GPU, on tiny models, and what the GPU's events say."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.stages import events, finetune, quantize
from pipeline.stages.context import Context
from pipeline.system import hardware
from tests.helpers import tiny
from tests.helpers.carry import OPTIONS, context_of, stage

pytestmark = pytest.mark.gpu
ON_GPU = replace(OPTIONS, precision="auto", max_steps=24)


@pytest.fixture
def context(tmp_path: Path) -> Context:
    assert hardware.gpus() > 0, "no GPU answers nvidia-smi"
    made = context_of(tmp_path, tiny.build("llama", tmp_path / "model"))
    return replace(made, device="cuda")


@pytest.fixture
def reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    file = tmp_path / "events.jsonl"
    monkeypatch.setenv("OLIVE_LAB_EVENTS", str(file))
    return lambda: events.read(file)[0]


@pytest.mark.parametrize("method", ["lora", "rslora", "dora", "qlora"])
def test_every_method_learns_and_the_gpu_is_reported(
    method: str, context: Context, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    inputs = {}
    if method == "qlora":
        pytest.importorskip("bitsandbytes", reason="requirements.txt names it")
    else:
        inputs["checkpoint"] = stage(context, "quantize", quantize, quantize.Options()).artifacts[0].path
    options = replace(ON_GPU, method=method, eval_every=8, gradient_accumulation=2)
    made = stage(context, "finetune", finetune, options, **inputs)
    record = made.metrics
    assert record["dtype"] == "bfloat16"
    assert record["eval_loss_after"] < record["eval_loss_before"] - 0.5
    steps = [event for event in reported() if "loss" in event]
    assert [event["step"] for event in steps] == list(range(1, 25))
    for event in steps:
        assert 100_000 < event["gpu_memory_bytes"] <= steps[-1]["gpu_memory_bytes"]
        assert event["tokens_per_second"] > 0
    if method != "dora":
        from pipeline.passes.optimize.peft_lora import read_adapter

        assert len(read_adapter(made.artifacts[0].path)) == 14


def test_qlora_trains_on_nf4(context: Context) -> None:
    pytest.importorskip("bitsandbytes", reason="requirements.txt names it")
    import torch
    from bitsandbytes.nn import Linear4bit
    from olive.model import HfModelHandler

    from pipeline.passes.finetune import quant_lora
    from pipeline.passes.finetune.training import ResponseLoss

    options = finetune.Options(method="qlora", max_length=128)
    assert finetune.check(options, SimpleNamespace(config=context.config)) == []  # type: ignore[arg-type]
    base = quant_lora.load_base(HfModelHandler(str(context.model)), "qlora", torch.bfloat16)
    packed = [module for module in base.modules() if isinstance(module, Linear4bit)]
    assert len(packed) == 14
    assert all(module.weight.quant_type == "nf4" and module.weight.is_cuda for module in packed)
    config = SimpleNamespace(method="qlora", r=4, alpha=8, lora_dropout=0.0, target_modules=None)
    model = quant_lora.add_lora(base, config)
    ids = torch.randint(3, 250, (2, 20), device="cuda")
    loss, tokens = ResponseLoss(model)(
        {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    )
    loss.backward()
    assert tokens == 38
    assert math.isfinite(float(loss.detach()))
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert len(learned) == 28
    assert all(weight.grad.abs().max() > 0 for name, weight in learned.items() if "lora_B" in name)


@pytest.mark.parametrize("architecture", ["llama", "phi3-long", "qwen3", "gemma3"])
def test_recorded_steps_learn_what_others_learn(
    architecture: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: Callable[[], list[dict[str, Any]]],
) -> None:
    """float32; short rows, so that long RoPE stays within its first window."""
    from pipeline.passes.finetune import training

    model = tiny.build(architecture, tmp_path / "other")
    context = replace(context_of(tmp_path, model), device="cuda", template="{prompt} {response}<|im_end|>")
    options = replace(ON_GPU, precision="float32", max_length=64, gradient_accumulation=2)
    stage(context, "recorded", finetune, options)
    told = reported()
    recorded = [event["message"] for event in told if event.get("message", "").startswith("Recorded")]
    assert recorded, told
    assert all("for 4 rows" in message for message in recorded), "the last two rows of an epoch fill a part"
    monkeypatch.setattr(training, "step_graphs", lambda *_: None)
    stage(context, "plain", finetune, options)
    assert not any("Recorded" in event.get("message", "") for event in reported()[len(told) :])
    losses = [
        [event["loss"] for event in part if "loss" in event] for part in (told, reported()[len(told) :])
    ]
    assert len(losses[0]) == len(losses[1]) == 24
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_steps_that_cannot_be_recorded_run_as_usual(
    context: Context, monkeypatch: pytest.MonkeyPatch, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    from pipeline.passes.finetune import training

    def waiting(model: Any, _: int) -> bool:
        layer = model.get_base_model().model.layers[0]
        layer.register_forward_hook(lambda module, given, made: print(float(made.detach().sum()) > 1e9))
        return True

    monkeypatch.setattr(training, "steady_rope", waiting)
    made = stage(context, "waits", finetune, replace(ON_GPU, precision="float32"))
    assert any("cannot be recorded" in event.get("message", "") for event in reported())
    assert made.metrics["eval_loss_after"] < made.metrics["eval_loss_before"] - 0.5


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_packed_rows_train_as_rows_apart(
    precision: str, context: Context, reported: Callable[[], list[dict[str, Any]]]
) -> None:
    """One step over all rows: loss and gradient norm, for which bfloat16 has three digits."""
    apart = replace(ON_GPU, precision=precision, epochs=1.0, batch_size=10)
    packed = replace(apart, packing=True, max_length=256)
    for name, options in {"apart": apart, "packed": packed}.items():
        stage(context, name, finetune, options)
    first, second = [event for event in reported() if "loss" in event]
    allowed = {"float32": 1e-3, "bfloat16": 2e-2}[precision]
    assert second["loss"] == pytest.approx(first["loss"], rel=allowed)
    assert second["grad_norm"] == pytest.approx(first["grad_norm"], rel=2 * allowed)
