# mypy: disallow-subclassing-any=False
"""Which numbers to train in, and LoRA layers whose products are in bfloat16.

Between them are activations in bfloat16 (on GPUs, and CPUs with AMX), or in float32 (mixed: on other CPUs
with instructions for bfloat16). The adapter's weights are float32 in both.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import layer as lora_layer

from pipeline.system.files import write_whole

LOW = torch.bfloat16
SPOKEN = {
    "bfloat16": "bfloat16",
    "mixed": "float32, large products in bfloat16",
    "float32": "float32",
}
FILE = "precision"  # beside the checkpoints
ONE_PRODUCT = ("lora", "rslora")  # methods whose layers can be `MixedLinear`


def precision(name: str, method: str = "lora") -> str:
    """Resolve "auto": bfloat16 on CUDA and on CPUs with AMX tiles, where it is five times as fast; mixed on
    other CPUs with products of bfloat16, for the methods whose layers are mixed here; float32 elsewhere."""
    if name != "auto":
        return name
    if torch.cuda.is_available() or torch.cpu._is_amx_tile_supported():
        return "bfloat16"
    return "mixed" if torch.cpu._is_avx512_bf16_supported() and method in ONE_PRODUCT else "float32"


def kept_precision(name: str, method: str, checkpoints: Path) -> str:
    """`precision`, or what the training began in whose checkpoint is in the folder; kept for the next try."""
    file = checkpoints / FILE
    if file.is_file() and any(checkpoints.glob("checkpoint-*")):
        began = file.read_text("utf-8").strip()
        if began in SPOKEN:
            return began
    found = precision(name, method)
    checkpoints.mkdir(parents=True, exist_ok=True)
    write_whole(file, found)
    return found


class Product(torch.autograd.Function):
    """`x Wᵀ + scale · u Bᵀ` in bfloat16, rounded once.

    PEFT adds the adapter's part to a product that is rounded already, and rounds again: whatever is less than
    half a step of bfloat16 is lost, every time, and so is a fifth of what a young adapter does to the loss.
    Here both are one product, which is summed in float32.
    """

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, u: torch.Tensor, b: torch.Tensor, joined: torch.Tensor, scale: float
    ) -> torch.Tensor:
        """x [n, inputs], u [n, r], B [outputs, r]; `joined` [outputs, inputs + r] holds W and scale · B."""
        ctx.save_for_backward(u)
        ctx.joined, ctx.scale, ctx.width, ctx.type = joined, scale, x.shape[1], b.dtype
        return torch.cat([x, u], dim=1) @ joined.t()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Gradients of x, u and B; W is frozen."""
        (u,) = ctx.saved_tensors
        both = grad @ ctx.joined
        of_b = (grad.t() @ u).to(ctx.type) * ctx.scale
        return both[:, : ctx.width], both[:, ctx.width :], of_b, None, None


class MixedLinear(lora_layer.Linear):
    """PEFT's LoRA layer around a frozen plain layer, with products in bfloat16."""

    def __init__(self, base_layer: torch.nn.Linear, adapter_name: str, config: Any, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, config, **kwargs)
        self.trained = adapter_name
        outputs, inputs = base_layer.weight.shape
        self.joined = base_layer.weight.new_zeros(outputs, inputs + config.r, dtype=LOW, requires_grad=False)
        with torch.no_grad():
            self.joined[:, :inputs] = base_layer.weight
        # The same memory, under the name by which others look for it.
        base_layer.weight = torch.nn.Parameter(self.joined[:, :inputs], requires_grad=False)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """[..., inputs] to [..., outputs], of the same type: bfloat16 or float32."""
        a, b = self.lora_A[self.trained].weight, self.lora_B[self.trained].weight
        scale = self.scaling[self.trained]
        flat = x.flatten(0, -2).to(LOW)
        u = torch.nn.functional.linear(self.lora_dropout[self.trained](flat), a.to(LOW))
        with torch.no_grad():
            self.joined[:, flat.shape[1] :] = b * scale
        product: torch.Tensor = Product.apply(flat, u, b, self.joined, scale)  # type: ignore[no-untyped-call]
        result = product.view(*x.shape[:-1], -1).to(x.dtype)
        bias = self.base_layer.bias
        return result if bias is None else result + bias.to(x.dtype)
