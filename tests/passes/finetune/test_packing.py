"""Packs: all rows in few sequences, and none that sees another, in the mask and in the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.errors import LabError
from pipeline.stages import finetune
from pipeline.stages.context import Context
from tests.helpers import tiny
from tests.helpers.carry import OPTIONS, stage

pytestmark = pytest.mark.chain
SIZES = [30, 140, 20, 9, 60]  # gemma's window is 128
TOLERANCE = 1e-4  # of gradients, relative to the largest: the order of sums differs


def test_best_fit() -> None:
    from pipeline.passes.finetune.packing import pack

    assert pack([5, 5, 4, 3, 2, 1], 10, seed=0) in ([[0, 1], [2, 3, 4, 5]], [[1, 0], [2, 3, 4, 5]])
    sizes = [(i * 37) % 101 + 1 for i in range(500)]
    packs = pack(sizes, 128, seed=0)
    assert sorted(index for pack in packs for index in pack) == list(range(500))
    assert all(sum(sizes[index] for index in pack) <= 128 for pack in packs)
    assert len(packs) <= math.ceil(sum(sizes) / 128 * 1.02)
    assert pack(sizes, 128, seed=0) == packs != pack(sizes, 128, seed=1)
    assert pack([200, 3], 128, seed=0) == [[0], [1]]


def rows() -> list[tuple[Any, Any]]:
    """(ids, labels) of rows of SIZES tokens, whose last two thirds are learned."""
    import torch

    torch.manual_seed(3)
    made = []
    for size in SIZES:
        ids = torch.randint(3, 250, (size,))
        labels = ids.clone()
        labels[: size // 3] = -100
        made.append((ids, labels))
    made[1] = (made[1][0], made[1][0].clone())  # one that learns its prompt as well
    return made


def test_a_pack_knows_where_its_rows_begin() -> None:
    from pipeline.passes.finetune.packing import join

    inputs, labels = join(rows()[:3])
    assert inputs["position_ids"].tolist() == [*range(30), *range(140), *range(20)]
    assert "attention_mask" not in inputs
    assert labels[[0, 30, 170]].tolist() == [-100] * 3
    assert labels[31:170].tolist() == inputs["input_ids"][31:170].tolist()


def adapted(folder: Path, attention: str) -> Any:
    """A model with an adapter that matters, in evaluation mode."""
    import torch
    from transformers import AutoModelForCausalLM

    from pipeline.passes.finetune.quant_lora import add_lora

    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation=attention)
    torch.manual_seed(0)
    config = SimpleNamespace(method="lora", r=4, alpha=8, lora_dropout=0.0, target_modules=None)
    made = add_lora(model, config).eval()
    for name, parameter in made.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    return made


@pytest.mark.parametrize(
    ("architecture", "attention"),
    [
        *[(name, kind) for name in ("llama", "phi3", "qwen2", "gemma3") for kind in ("sdpa", "eager")],
        ("gemma2", "eager"),  # transformers gives it nothing else
    ],
)
def test_packed_rows_have_the_loss_and_the_gradients_of_rows_apart(
    architecture: str, attention: str, tmp_path: Path
) -> None:
    import torch

    from pipeline.passes.finetune.packing import join
    from pipeline.passes.finetune.training import Collator, ResponseLoss

    model = adapted(tiny.build(architecture, tmp_path), attention)
    loss = ResponseLoss(model)
    collate = Collator(SimpleNamespace(pad_token_id=0))
    learned = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}

    def summed(batches: list[Any]) -> tuple[float, int, dict[str, Any]]:
        model.zero_grad()
        parts = [loss(batch) for batch in batches]
        sum(part for part, _ in parts).backward()
        gradients = {name: weight.grad.clone() for name, weight in learned.items()}
        return float(sum(part for part, _ in parts)), sum(count for _, count in parts), gradients

    alone = [({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels) for ids, labels in rows()]
    apart = summed([collate([row]) for row in alone])
    packed = summed([collate([join(rows()[:3]), join(rows()[3:])])])  # the second one is padded
    assert packed[1] == apart[1] == sum(size - size // 3 for size in SIZES) + 140 // 3 - 1
    assert packed[0] == pytest.approx(apart[0], rel=1e-5)
    for name, gradient in apart[2].items():
        worst = float((gradient - packed[2][name]).abs().max() / gradient.abs().max())
        assert worst < TOLERANCE, name


@pytest.mark.parametrize("architecture", [name for name in tiny.MODELS if name != "phi3-long"])
def test_models_that_keep_rows_apart_are_let_through(architecture: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from pipeline.passes.finetune.packing import check_boundaries

    check_boundaries(AutoModelForCausalLM.from_pretrained(tiny.build(architecture, tmp_path)))


def test_a_recurrent_model_is_refused() -> None:
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    from pipeline.passes.finetune.packing import check_boundaries

    torch.manual_seed(0)
    model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
    with pytest.raises(LabError, match=r"finetune.packing: models of type mamba .* set packing to false"):
        check_boundaries(model)


def test_a_model_learns_from_packs(context: Context, reported: Callable[[], list[dict[str, Any]]]) -> None:
    options = replace(OPTIONS, packing=True, max_length=200, batch_size=2)
    made = stage(context, "finetune", finetune, options).metrics
    assert made["eval_loss_after"] < made["eval_loss_before"] - 0.5
    assert made["rows"] == 10
    packed = next(e["message"] for e in reported() if e.get("message", "").startswith("Packed"))
    assert int(packed.split()[-2]) < 10
