"""Attention over short blocks by plain products.

With its gradient it takes half of the time of PyTorch's flash attention on a CPU in bfloat16, and its
gradient is nearer to float32's. It keeps the weights of all pairs of tokens, which flash attention does not:
they are few in a short block. Scores stay in float32 until their softmax. In bfloat16 they would cost
quality: the starter's divergence in groups of 32 was 8 % higher.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from pipeline.passes.quantize.awq_search import quick_products

LONGEST = 1024  # tokens; there the weights of 32 heads take 64 MiB a block


class ShortAttention(TorchFunctionMode):
    """While it is entered, `scaled_dot_product_attention` is by plain products where these are faster."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        given = kwargs or {}
        if func is functional.scaled_dot_product_attention and _is_faster(*args, **given):
            return attention(*args, **given)
        return func(*args, **given)


def _is_faster(query: Tensor, key: Tensor, *_: Any, dropout_p: float = 0.0, **__: Any) -> bool:
    short = query.ndim == 4 and max(query.shape[-2], key.shape[-2]) <= LONGEST
    quick = query.dtype == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return short and quick and query.device.type == "cpu" and not dropout_p


def attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """As PyTorch's function of these arguments, of [blocks, heads, tokens, width] each, without any dropout.

    Heads that read the same keys are rows of one product. A block at a time stays in a CPU's cache.
    """
    heads, tokens, width = query.shape[1:]
    shared = len(key[0]), heads // len(key[0]) * tokens
    bias = _bias(attn_mask, is_causal, query, key)
    times = 1 / math.sqrt(width) if scale is None else scale
    answers = []
    for index, (asked, keys, values) in enumerate(zip(query, key, value, strict=True)):
        scores = _Scores.apply(asked.reshape(*shared, width), keys, times).view(heads, tokens, -1)  # type: ignore[no-untyped-call]
        if bias is not None:
            scores = scores + bias[index % len(bias)]
        weights = scores.softmax(-1).to(values.dtype).view(*shared, -1)
        answers.append((weights @ values).view(heads, tokens, -1))
    return torch.stack(answers)


class _Scores(torch.autograd.Function):
    """Products of queries and keys, times a number, in float32; their gradient's products are of their type.

    Numbers of bfloat16 are multiplied as they are, summed up in float32, and not rounded again.
    """

    @staticmethod
    def forward(context: Any, query: Tensor, key: Tensor, times: float) -> Tensor:
        context.save_for_backward(query, key)
        context.times = times
        with quick_products() if query.dtype == torch.bfloat16 else nullcontext():
            return (query.float() @ key.float().transpose(-1, -2)).mul_(times)

    @staticmethod
    def backward(context: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        query, key = context.saved_tensors
        grad = (grads[0] * context.times).to(query.dtype)
        return grad @ key, grad.transpose(-1, -2) @ query, None


def _bias(mask: Tensor | None, is_causal: bool, query: Tensor, key: Tensor) -> Tensor | None:
    """What is added to scores, [blocks or 1, heads or 1, tokens, keys]; None for nothing."""
    if is_causal:
        mask = torch.ones(1, 1, query.shape[-2], key.shape[-2], dtype=torch.bool).tril()
    if mask is None:
        return None
    mask = mask[(None,) * (4 - mask.ndim)]
    if mask.dtype == torch.bool:
        mask = torch.zeros_like(mask, dtype=torch.float32).masked_fill_(~mask, -torch.inf)
    return mask
