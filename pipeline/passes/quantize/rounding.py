# mypy: disallow-subclassing-any=False
"""Olive's rounding passes, computed in float32 and with progress."""

from __future__ import annotations

from typing import Any

import torch
from olive.common.hf.wrapper import ModelWrapper
from olive.common.quant.nn import QuantEmbedding, QuantLinear
from olive.model import HfModelHandler
from olive.passes.pytorch.gptq import Gptq
from olive.passes.pytorch.quant_utils import finalize, prepare_model, run_layerwise_quantization
from olive.passes.pytorch.rtn import Rtn

from pipeline.stages.events import emit


class LabRtn(Rtn):
    """Round to nearest: needs no data and takes seconds."""

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model", progress=0.02)
        wrapper, quantization, retie = prepare_model(model, config, allow_quantized=True)
        pack(wrapper, begin=0.2)
        emit(message="Saving the quantized model", progress=0.9)
        return finalize(model, output_model_path, wrapper, quantization, "cpu", retie_word_embeddings=retie)


class LabGptq(Gptq):
    """GPTQ: layer by layer, each correcting for the rounding errors so far.

    Source: Frantar et al., GPTQ, arXiv 2210.17323.
    """

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model and the calibration rows", progress=0.02)
        wrapper, quantization, _ = prepare_model(model, config)
        total = sum(hasattr(module, "quant_info") for module in wrapper.model.modules())
        done = 0

        def process(module: torch.nn.Module, _: str) -> None:
            nonlocal done
            self.process_module(module, percdamp=config.damp_percent, actorder=config.desc_act)
            done += 1
            emit(message=f"Rounded {done} of {total} weight matrices", progress=0.05 + 0.8 * done / total)

        run_layerwise_quantization(
            model,
            wrapper,
            config.data_config,
            input_hook=self.accumulate_hessian,
            process_module=process,
            update_before_process=False,
            include_lm_head=config.lm_head,
        )
        pack(wrapper, begin=0.85)
        emit(message="Saving the quantized model", progress=0.95)
        return finalize(model, output_model_path, wrapper, quantization, "cpu")


def pack(wrapper: ModelWrapper, begin: float) -> None:
    """Replace every module that has `quant_info` by its packed form, in place.

    Olive packs in the model's own type. In bfloat16 a code near 255 is off by one or more, and CPUs
    take ten times as long; so the arithmetic here is float32. Scales are first rounded to the model's
    type, in which they are kept: PyTorch and the exported graph then multiply with the same numbers.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    chosen = [
        (name, module) for name, module in wrapper.model.named_modules() if hasattr(module, "quant_info")
    ]
    for done, (name, module) in enumerate(chosen):
        if done % 20 == 0:
            emit(
                message=f"Packed {done} of {len(chosen)} weight matrices",
                progress=begin + (0.9 - begin) * done / len(chosen),
            )
        dtype, info = module.weight.dtype, module.quant_info
        weight = module.weight.to(device).float()
        scales, zero_points = info.scales, info.zero_points
        if scales is None:
            scales, zero_points = info.quantizer.find_qparams(weight)
        wrapper.model.set_submodule(name, packed(module, weight, scales, zero_points, dtype).to("cpu"))


def packed(
    module: Any,
    weight: torch.Tensor,
    scales: torch.Tensor,
    zero_points: torch.Tensor,
    dtype: torch.dtype,
) -> QuantLinear | QuantEmbedding:
    """A module with `quant_info` in packed form: `weight` in float32, scales to be kept in `dtype`."""
    quantizer = module.quant_info.quantizer
    embedding = isinstance(module, torch.nn.Embedding)
    shape: dict[str, Any] = (
        {
            "num_embeddings": module.num_embeddings,
            "embedding_dim": module.embedding_dim,
            "padding_idx": module.padding_idx,
        }
        if embedding
        else {
            "in_features": module.in_features,
            "out_features": module.out_features,
            "bias": module.bias is not None,
        }
    )
    made = (QuantEmbedding if embedding else QuantLinear).from_tensors(
        weight=weight,
        bits=quantizer.bits,
        symmetric=quantizer.symmetric,
        group_size=quantizer.group_size,
        scales=scales.to(dtype).float(),
        zero_points=zero_points,
        **shape,
    )
    made.scales = made.scales.to(dtype)
    if shape.get("bias"):
        made.bias = module.bias.detach().to(dtype)
    return made
