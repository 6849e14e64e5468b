# mypy: disallow-subclassing-any=False
"""LoRA and its relatives on an Olive-quantized model, or on a float one.

Sources: Hu et al., LoRA, arXiv 2106.09685; Kalajdzievski, rsLoRA, arXiv 2312.03732; Liu et al., DoRA, arXiv
2402.09353; on frozen quantized weights and for nf4: Dettmers et al., QLoRA, arXiv 2305.14314. The adapter is
a PEFT adapter like any other.
"""

from __future__ import annotations

import json
from collections.abc import Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from olive.common.quant.nn import QuantLinear
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.lora import LoRA
from olive.passes.pytorch.train_utils import load_hf_base_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as lora_layer

from pipeline.passes.finetune.held_out import HeldOut
from pipeline.passes.finetune.mixed import SPOKEN, MixedLinear, kept_precision, precision
from pipeline.passes.finetune.packing import Packs, check_boundaries
from pipeline.passes.finetune.training import Collator, ResponseLoss, train
from pipeline.passes.rows import Rows, dataset_of
from pipeline.stages.events import emit
from pipeline.stages.optimize import JUDGED
from pipeline.system.files import finite

RECORD = "training.json"  # in the adapter's folder
PARAMETERS: dict[str, tuple[Any, Any, str]] = {  # of the pass, besides Olive's: type, default, description
    "method": (str, "lora", "lora, rslora, dora, or qlora: LoRA on the float model put into nf4."),
    "base": (str, "", "Name of the base, written into the adapter."),
    "torch_dtype": (
        str,
        "auto",
        "bfloat16, mixed, float32, or auto: bfloat16 or mixed where the hardware multiplies bfloat16.",
    ),
    "pack_length": (int, None, "Tokens of a sequence packed with several rows; None keeps rows apart."),
    "eval_every": (int, 0, "Steps between validation losses, of which the best decides; 0: none."),
    "early_stop": (int, 0, "Validation losses in a row without a better one that end the training; 0: none."),
}


class QuantLora(LoRA):
    """Train a LoRA adapter; the base model stays as it is.

    Writes `adapter/` (PEFT) with `training.json`: steps, losses on held-out rows before and after, speed.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        config: dict[str, PassConfigParam] = super()._default_config(accelerator_spec)
        for name, (kind, default, description) in PARAMETERS.items():
            config[name] = PassConfigParam(type_=kind, default_value=default, description=description)
        config["validation_data_config"] = PassConfigParam(
            type_=DataConfig | dict,
            default_value=None,
            description="Rows that choose the best adapter: with eval_every.",
        )
        return config

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model", progress=0.01)
        arguments = config.training_args.create_training_args()
        transformers.set_seed(arguments.seed)
        rows, held_out = _rows(config.train_data_config), _rows(config.eval_data_config)
        numbers = kept_precision(config.torch_dtype, config.method, Path(arguments.output_dir))
        emit(message=f"Training in {SPOKEN[numbers]}", progress=0.02)
        base = load_base(model, config.method, training_dtype(numbers))
        shown: Rows | Packs = rows
        if config.pack_length:
            check_boundaries(base)
            shown = Packs(rows, config.pack_length, arguments.seed)
            emit(message=f"Packed {len(rows)} rows into {len(shown)} sequences", progress=0.04)
        adapted = add_lora(base, config, mixed=numbers == "mixed")
        loss, collate = ResponseLoss(adapted), Collator(model.get_hf_tokenizer())
        choosing = _choosing(config, held_out)
        judge = HeldOut(loss, held_out, collate)
        looks = HeldOut(loss, choosing, collate, config.early_stop, "Validation") if choosing else judge
        before = judge.measure(0, "before training", drawn=looks is judge)
        if looks is not judge:
            looks.measure(0, "before training")
        record = train(loss, shown, collate, arguments, looks, config.eval_every)
        # The best of many looks at the same rows is too optimistic, so other rows chose the adapter.
        after = judge.measure(record["steps"], "after training", drawn=looks is judge)
        if rows.cut or held_out.cut:
            emit(message=cut_note(rows, held_out))
        if choosing:
            record |= {"validation_rows": len(choosing), "validation_loss": looks.best_loss}
        record |= {
            "rows": len(rows),
            "rows_cut": len(rows.cut),
            "held_out_cut": len(held_out.cut),
            "eval_loss_before": before,
            "eval_loss_after": after,
            "dtype": numbers,
        }
        adapter = Path(output_model_path) / "adapter"
        save(adapted, adapter, config.base)
        (adapter / RECORD).write_text(json.dumps(finite(record), allow_nan=False, indent=1) + "\n", "utf-8")
        judged = {
            "max_length": held_out.max_length, "loss_on": held_out.loss_on, "eval_loss": after,
        }  # fmt: skip
        (adapter / JUDGED).write_text(json.dumps(finite(judged), allow_nan=False) + "\n", "utf-8")
        emit(message="Adapter written", progress=0.98)
        output = deepcopy(model)
        output.set_resource("adapter_path", adapter)
        return output


def _choosing(config: Any, held_out: Rows) -> Rows | None:
    """The rows that choose the best adapter; None if the last one is kept."""
    if not config.eval_every:
        return None
    rows = _rows(config.validation_data_config) if config.validation_data_config else held_out
    if len(rows):
        return rows
    note = (
        "The dataset has too few different prompts to set validation rows apart: the held-out rows choose the"
        " adapter, so the held-out loss is too optimistic"
    )
    print(note)
    emit(message=note)
    return held_out


def cut_note(rows: Rows, held_out: Rows) -> str:
    """How many rows did not fit, as a sentence for the log; prints it as well."""
    note = (
        f"Longer than {rows.max_length} tokens (finetune.max_length), so trained on without their middle,"
        " conversations without their last turns:"
        f" {len(rows.cut)} rows; so measured: {len(held_out.cut)} held-out rows"
    )
    print(note)
    return note


def load_base(handler: HfModelHandler, method: str, dtype: torch.dtype) -> transformers.PreTrainedModel:
    """The frozen base on the device it is trained on, in the training dtype; for qlora in nf4."""
    cuda = torch.cuda.is_available()
    quantization = nf4(dtype) if method == "qlora" else {}
    base = load_hf_base_model(
        handler, torch_dtype=dtype, device_map={"": 0} if cuda else None, **quantization
    )
    base.requires_grad_(False)
    base.config.use_cache = False
    if method == "qlora":  # the Trainer and PEFT support nf4
        return base
    count, kept = unpack_where_it_fits(base, dtype)
    if count or kept:
        emit(message=f"Unpacked {count} of {count + kept} quantized weights for training", progress=0.03)
    # To the Trainer and to PEFT this is now a model with frozen modules, not a quantization method
    # they would have to know.
    base.hf_quantizer = None
    base.is_quantized = False
    return base


def nf4(dtype: torch.dtype) -> dict[str, Any]:
    """Olive's load arguments for QLoRA's base: 4-bit normal floats whose scales are quantized once more."""
    return {
        "quantization_method": "bitsandbytes",
        "quantization_config": {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": True,
            "bnb_4bit_compute_dtype": str(dtype).removeprefix("torch."),
        },
    }


def save(model: PeftModel, folder: Path, base: str = "") -> None:
    """Write the adapter as PEFT does, with the name of its base instead of the path that PEFT writes."""
    model.peft_config["default"].base_model_name_or_path = base  # PEFT would fill in None
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def training_dtype(name: str) -> torch.dtype:
    """The type of the base and its activations. In mixed training they are float32, and products bfloat16."""
    return torch.bfloat16 if precision(name) == "bfloat16" else torch.float32


def unpack_where_it_fits(model: torch.nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """Replace packed weights by plain copies, up to half of the free memory; return (replaced, left).

    A plain weight need not be unpacked at every step. The others are unpacked when used.
    """
    budget = _free_bytes() // 2
    replaced = left = 0
    for name, module in list(model.named_modules()):
        if not isinstance(module, QuantLinear):
            continue
        size = module.rows * module.cols * dtype.itemsize
        if size <= budget:
            model.set_submodule(name, _plain(module, dtype))
            budget, replaced = budget - size, replaced + 1
        else:
            module.scales = module.scales.to(dtype)
            left += 1
    return replaced, left


def add_lora(base: transformers.PreTrainedModel, config: Any, mixed: bool = False) -> PeftModel:
    """Wrap the target layers. `config` has method, r, alpha, lora_dropout, target_modules (None: all).

    With `mixed`, products of plain layers are in bfloat16; packed ones stay in the type of the base.
    """
    peft_config = LoraConfig(
        use_rslora=config.method == "rslora",
        use_dora=config.method == "dora",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules or all_linear(base),
        bias="none",
        task_type="CAUSAL_LM",
    )
    layers: dict[type, type] = {QuantLinear: LoraQuantLinear}
    if mixed:
        layers[torch.nn.Linear] = MixedLinear
    peft_config._register_custom_module(layers)
    return get_peft_model(base, peft_config)


def all_linear(model: transformers.PreTrainedModel) -> list[str]:
    """Last names of all linear layers, packed or plain, except the output layer."""
    head = model.get_output_embeddings()
    return sorted(
        {
            name.rpartition(".")[2]
            for name, module in model.named_modules()
            if isinstance(module, (torch.nn.Linear, QuantLinear)) and module is not head
        }
    )


class LoraQuantLinear(lora_layer.Linear):
    """PEFT's LoRA layer around a packed weight. Gradients pass through its dequantized product."""

    def __init__(self, base_layer: QuantLinear, adapter_name: str, config: LoraConfig, **kwargs: Any) -> None:
        # The names under which PEFT looks for a layer's shape.
        base_layer.in_features, base_layer.out_features = base_layer.cols, base_layer.rows
        if config.use_dora:
            base_layer.__class__ = ReadableQuantLinear
        super().__init__(base_layer, adapter_name, config, **kwargs)


class ReadableQuantLinear(QuantLinear):
    """A packed layer that shows its weight as a plain one does: DoRA needs the norms of its rows."""

    @property
    def weight(self) -> torch.Tensor:
        """The unpacked weight [outputs, inputs]."""
        unpacked: torch.Tensor = self.unpack_and_dequantize(self.qweight, self.scales, self.qzeros)
        return unpacked


def _rows(config: DataConfig | dict[str, Any]) -> Rows:
    """The rows of a data config."""
    rows = dataset_of(config)
    assert isinstance(rows, Sized)
    return rows  # type: ignore[return-value]  # another class of the same name where Olive loaded the file


def _plain(layer: QuantLinear, dtype: torch.dtype) -> torch.nn.Linear:
    """The packed layer as a frozen plain one, dequantized in float32 and rounded once."""
    weight = layer.unpack_and_dequantize(layer.qweight, layer.scales.float(), layer.qzeros).to(dtype)
    plain = torch.nn.Linear(layer.cols, layer.rows, bias=layer.bias is not None, device="meta")
    plain.weight = torch.nn.Parameter(weight, requires_grad=False)
    if layer.bias is not None:
        plain.bias = torch.nn.Parameter(layer.bias.to(dtype), requires_grad=False)
    return plain


def _free_bytes() -> int:
    if torch.cuda.is_available():
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)
