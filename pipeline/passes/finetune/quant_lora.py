# mypy: disallow-subclassing-any=False
"""LoRA and its relatives on an Olive-quantized model, or on a float one.

Sources: Hu et al., LoRA, arXiv 2106.09685; Kalajdzievski, rsLoRA, arXiv 2312.03732; Liu et al., DoRA, arXiv
2402.09353; on frozen quantized weights and for nf4: Dettmers et al., QLoRA, arXiv 2305.14314. The adapter is
a PEFT adapter like any other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sized
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from olive.common.quant.nn import QuantLinear
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.model.config import ModelConfig
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.lora import LoRA
from olive.passes.pytorch.train_utils import load_hf_base_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as lora_layer

from pipeline import settings
from pipeline.passes.attention import without_plans
from pipeline.passes.finetune import further
from pipeline.passes.finetune.held_out import HeldOut
from pipeline.passes.finetune.mixed import ONE_PRODUCT, SPOKEN, MixedLinear, kept_precision, precision
from pipeline.passes.finetune.packing import Packs, check_boundaries
from pipeline.passes.finetune.ranks import ALONE, Ranks
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
        checkpoints = Path(config.training_args.create_training_args().output_dir)
        numbers = kept_precision(config.torch_dtype, config.method, checkpoints)
        emit(message=f"Training in {SPOKEN[numbers]}", progress=0.02)
        gpus = settings.training_gpus()
        if len(gpus) < 2:
            return self._train(model, config, output_model_path, numbers, ALONE)
        emit(message=f"Starting a process for each of {len(gpus)} GPUs", progress=0.02)
        task = {"model": model.to_json(), "pass": self.to_json(check_object=True), "numbers": numbers}
        with (
            further.started(checkpoints, gpus, task) as others,
            shared_cores(len(gpus)),
            closing(Ranks(0, len(gpus), others.folder, others.meet)) as ranks,
        ):
            return self._train(model, config, output_model_path, numbers, ranks)

    def _train(
        self, model: HfModelHandler, config: Any, output_model_path: str, numbers: str, ranks: Ranks
    ) -> HfModelHandler:
        """Train, alone or as the first of several, and write the adapter."""
        given = Given.of(model, config, numbers)
        rows, held_out, loss, collate = given.rows, given.held_out, given.loss, given.collate
        choosing = _choosing(config, held_out)
        judge = HeldOut(loss, held_out, collate)
        looks = HeldOut(loss, choosing, collate, config.early_stop, "Validation") if choosing else judge
        before = judge.measure(0, "before training", drawn=looks is judge)
        if looks is not judge:
            looks.measure(0, "before training")
        record = train(loss, given.shown, collate, given.arguments, looks, config.eval_every, ranks)
        rows.cut = ranks.union(rows.cut, len(rows.rows))
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
            **({"gpus": ranks.count} if ranks.count > 1 else {}),
        }
        adapter = Path(output_model_path) / "adapter"
        save(loss.model, adapter, config.base)
        (adapter / RECORD).write_text(json.dumps(finite(record), allow_nan=False, indent=1) + "\n", "utf-8")
        judged = {
            "max_length": held_out.max_length, "loss_on": held_out.loss_on, "eval_loss": after,
        }  # fmt: skip
        (adapter / JUDGED).write_text(json.dumps(finite(judged), allow_nan=False) + "\n", "utf-8")
        emit(message="Adapter written", progress=0.98)
        output = deepcopy(model)
        output.set_resource("adapter_path", adapter)
        return output


@dataclass(frozen=True)
class Given:
    """What each process of a training has before it begins."""

    arguments: transformers.TrainingArguments
    rows: Rows
    held_out: Rows
    shown: Rows | Packs
    loss: ResponseLoss
    collate: Collator

    @classmethod
    def of(cls, model: HfModelHandler, config: Any, numbers: str) -> Given:
        """Load the base, which gets an adapter, and the rows. `numbers` is a `precision`."""
        arguments = config.training_args.create_training_args()
        transformers.set_seed(arguments.seed)
        rows, held_out = _rows(config.train_data_config), _rows(config.eval_data_config)
        without_plans(max(rows.max_length, held_out.max_length, config.pack_length or 0))
        base = load_base(model, config.method, training_dtype(numbers))
        shown: Rows | Packs = rows
        if config.pack_length:
            check_boundaries(base)
            shown = Packs(rows, config.pack_length, arguments.seed)
            emit(message=f"Packed {len(rows)} rows into {len(shown)} sequences", progress=0.04)
        adapted = add_lora(base, config, rounded_once=numbers != "float32")
        return cls(
            arguments, rows, held_out, shown, ResponseLoss(adapted), Collator(model.get_hf_tokenizer())
        )


def train_along(task: dict[str, Any], ranks: Ranks) -> None:
    """What a further rank does: the same training, of which the first one writes down what comes of it.

    `task` has the model and the pass as JSON, and the `precision`.
    """
    given = task["pass"]
    config = QuantLora.generate_config(
        AcceleratorSpec(**given["accelerator"]), given["config"], disable_search=True
    )
    model = ModelConfig.model_validate(task["model"]).create_model()
    with shared_cores(ranks.count):
        given = Given.of(model, config, task["numbers"])
        looks = HeldOut(given.loss, given.held_out, given.collate)  # which the first one measures
        train(given.loss, given.shown, given.collate, given.arguments, looks, config.eval_every, ranks)
        ranks.union(given.rows.cut, len(given.rows.rows))


@contextmanager
def shared_cores(count: int) -> Iterator[None]:
    """Inside, PyTorch computes on this process's part of the cores, of which there are `count`."""
    before = torch.get_num_threads()
    torch.set_num_threads(max(1, before // count))
    try:
        yield
    finally:
        torch.set_num_threads(before)


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


def add_lora(base: transformers.PreTrainedModel, config: Any, rounded_once: bool = False) -> PeftModel:
    """Wrap the target layers. `config` has method, r, alpha, lora_dropout, target_modules (None: all).

    With `rounded_once`, plain layers of lora and rslora multiply in bfloat16, and the adapter's part and the
    base's are one product; packed ones, and other methods, are PEFT's, in the type of the base.
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
    if rounded_once and config.method in ONE_PRODUCT:
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
