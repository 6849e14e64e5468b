# mypy: disallow-subclassing-any=False
"""Fold a LoRA adapter into the weights it adapts, and measure on held-out rows what that loses.

W + B A alpha / r is rounded to nearest again, with the same group size and new scales. A weight that the
adapter changes by less than half a step of the new grid may come out unchanged or a whole step off. Measured:
4 bits undo most of what was learned; 8 bits keep it.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from olive.common.quant.hf_utils import OliveHfQuantizationOverrideConfig
from olive.common.quant.nn import QuantLinear
from olive.common.quant.utils import WeightQuantizer
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.common import inherit_hf_from_hf
from olive.passes.pytorch.train_utils import load_hf_base_model
from peft import LoraConfig, PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor

from pipeline.passes.finetune.quant_lora import LoraQuantLinear
from pipeline.passes.measure.perplexity import Text, judge, read
from pipeline.passes.quantize.rounding import packed
from pipeline.passes.rows import dataset_of
from pipeline.stages.events import emit
from pipeline.system.files import finite

ADAPTER = "default"  # PEFT's name for the loaded adapter


class MergeAdapter(Pass):
    """Write a checkpoint like the input, with the adapter merged into its weights.

    Writes to the file `report`: {held_out_perplexity_detachable, held_out_perplexity_merged,
    held_out_divergence_merged, merged_matrices}; the divergence is from the model with the adapter beside it.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        def param(kind: Any, description: str) -> PassConfigParam:
            return PassConfigParam(type_=kind, required=True, description=description)

        return {
            "adapter_path": param(str, "Folder of a PEFT LoRA adapter."),
            "data_config": param(DataConfig | dict, "Held-out rows."),
            "bits": param(int, "Bits of the packed matrices that are merged, 4 or 8."),
            "report": param(str, "The file to write what was measured to."),
        }

    @torch.no_grad()
    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model and its adapter", progress=0.02)
        placed = {"": 0} if torch.cuda.is_available() else None
        # In bfloat16 a sum of weight and adapter would be rounded twice. Packed weights stay packed.
        base = load_hf_base_model(model, torch_dtype=torch.float32, device_map=placed)
        adapted = with_adapter(base, Path(config.adapter_path))
        rows = dataset_of(config.data_config)
        texts = [(rows[i][0]["input_ids"], rows[i][1]) for i in range(len(rows))]
        count, report = merge_measured(adapted, texts, config.bits)
        Path(config.report).write_text(
            json.dumps(finite(report | {"merged_matrices": count}), allow_nan=False) + "\n", "utf-8"
        )
        emit(message="Saving the merged model", progress=0.5)
        base.to("cpu").save_pretrained(output_model_path)
        model.save_metadata(output_model_path)
        return inherit_hf_from_hf(model, output_model_path)


def with_adapter(base: torch.nn.Module, folder: Path) -> torch.nn.Module:
    """The model with the adapter of a folder beside its weights.

    Raises ValueError for DoRA, which is more than a product to add.
    """
    config = LoraConfig.from_pretrained(folder)
    if config.use_dora:
        raise ValueError("the adapter uses use_dora, which cannot be merged as a product")
    config._register_custom_module({QuantLinear: LoraQuantLinear})
    adapted: torch.nn.Module = PeftModel.from_pretrained(base, folder, config=config).get_base_model().eval()
    return adapted


def merge_measured(
    model: torch.nn.Module, texts: list[Text], bits: int
) -> tuple[int, dict[str, float | None]]:
    """`merge` with perplexity on the texts before and after, and the divergence of after from before."""
    emit(message="Held-out rows with the adapter beside the weights", progress=0.1)
    beside = read(model, texts)
    before = judge(model, texts).perplexity
    emit(message="Merging", progress=0.25)
    count = merge(model, bits)
    emit(message="Held-out rows with the adapter in the weights", progress=0.35)
    after = judge(model, texts, exact=beside)
    return count, {
        "held_out_perplexity_detachable": before,
        "held_out_perplexity_merged": after.perplexity,
        "held_out_divergence_merged": after.divergence,
    }


def merge(model: Any, bits: int) -> int:
    """Replace every adapted layer by a merged one of the base's type, in place; return the number of layers.

    Packed ones get `bits` bits, and the model's quantization config says so.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, LoraLayer)]
    for name, layer in layers:
        delta = layer.get_delta_weight(ADAPTER).float()
        base = layer.get_base_layer()
        model.set_submodule(
            name, _packed(base, delta, bits) if isinstance(base, QuantLinear) else _plain(base, delta)
        )
        if isinstance(base, QuantLinear):
            _tell_bits(model.config.quantization_config, name, bits)
    return len(layers)


def _packed(base: QuantLinear, delta: Tensor, bits: int) -> torch.nn.Module:
    """The packed layer plus delta [outputs, inputs], rounded to nearest."""
    weight = base.unpack_and_dequantize(base.qweight, base.scales.float(), base.qzeros) + delta
    old = base.quantizer
    quantizer = WeightQuantizer(bits, old.symmetric, old.group_size, signed=False)
    scales, zero_points = quantizer.find_qparams(weight)
    module = SimpleNamespace(
        quant_info=SimpleNamespace(quantizer=quantizer),
        in_features=base.cols,
        out_features=base.rows,
        bias=base.bias,
    )
    made: torch.nn.Module = packed(module, weight, scales, zero_points, base.scales.dtype)
    return made


def _tell_bits(quantization: Any, name: str, bits: int) -> None:
    """Set a matrix's bits in a checkpoint's config, keeping its other settings."""
    overrides = dict(quantization.overrides or {})
    said = overrides.get(name)
    given = {} if said is None else {k: v for k, v in vars(said).items() if v is not None}
    overrides[name] = OliveHfQuantizationOverrideConfig(**{**given, "bits": bits})
    quantization.overrides = overrides


def _plain(base: torch.nn.Linear, delta: Tensor) -> torch.nn.Linear:
    """The float layer plus delta [outputs, inputs], in its own type."""
    base.weight.copy_((base.weight.float() + delta).to(base.weight.dtype))
    return base
