"""What a training step is said to keep, against what PyTorch saves for the way back."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.stages import finetune
from pipeline.stages.costs import finetune_cost, shape
from pipeline.stages.costs.machine import Machine

SIZES: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 768, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 300, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
RANK = 4


def saved(kind: str, dtype: str, padded: bool) -> tuple[float, shape.Shape]:
    """Bytes that autograd saves of each token in a layer of a small model with an adapter, and its sizes."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    config = getattr(transformers, f"{kind}Config")(**SIZES)
    model = (
        getattr(transformers, f"{kind}ForCausalLM")(config).to(getattr(torch, dtype)).requires_grad_(False)
    )
    linear = {name.rpartition(".")[2] for name, one in model.named_modules() if type(one) is torch.nn.Linear}
    given = LoraConfig(r=RANK, target_modules=sorted(linear - {"lm_head"}), task_type="CAUSAL_LM")
    adapted = get_peft_model(model, given).train()
    ids = torch.randint(3, 300, (2, 64))
    mask = torch.ones_like(ids)
    mask[0, -5:] = 0
    own = {tensor.untyped_storage().data_ptr() for tensor in (*adapted.parameters(), *adapted.buffers())}
    found: dict[int, int] = {}
    kept = []  # else the memory of one may become another's

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            found[storage.data_ptr()] = storage.nbytes()
        kept.append(tensor)
        return tensor

    more = {"attention_mask": mask} if padded else {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        adapted.get_base_model().model(input_ids=ids, use_cache=False, **more)
    sizes = shape.of(config.to_dict())
    assert sizes is not None
    return sum(found.values()) / (ids.numel() * SIZES["num_hidden_layers"]), sizes


@pytest.mark.parametrize(
    ("kind", "dtype", "padded"),
    [
        ("Llama", "bfloat16", False), ("Llama", "bfloat16", True), ("Llama", "float32", False),
        ("Phi3", "bfloat16", False), ("Qwen2", "bfloat16", True),
    ],
)  # fmt: skip
def test_a_layer_keeps_what_autograd_saves(kind: str, dtype: str, padded: bool) -> None:
    measured, sizes = saved(kind, dtype, padded)
    options = finetune.Options(r=RANK)
    size = 2 if dtype == "bfloat16" else 4
    assert finetune_cost.layer_kept(options, sizes, size, masked=padded) == pytest.approx(measured, rel=0.06)


@pytest.mark.parametrize(
    ("native", "mixed", "method", "expected"),
    [
        (True, True, "lora", "bfloat16"),
        (False, True, "rslora", "mixed"),
        (False, True, "dora", "float32"),
        (False, False, "lora", "float32"),
    ],
)
def test_what_auto_is_taken_for(native: bool, mixed: bool, method: Any, expected: str) -> None:
    machine = Machine(native_bf16=native, mixed_bf16=mixed)
    assert finetune_cost.dtype(finetune.Options(method=method), machine) == expected
    assert finetune_cost.dtype(finetune.Options(precision="float32"), machine) == "float32"
    assert machine.product("mixed") == machine.product_bf16
