# mypy: disallow-subclassing-any=False
"""LoRA on an Olive-quantized model, or on a float one.

Source of the method: Hu et al., LoRA, arXiv 2106.09685; on frozen quantized weights: Dettmers et al.,
QLoRA, arXiv 2305.14314. The adapter is a PEFT adapter like any other.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Iterator, Sized
from copy import deepcopy
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from olive.common.quant.nn import QuantLinear
from olive.data.config import DataConfig
from olive.data.constants import IGNORE_INDEX
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import HfModelHandler
from olive.passes.olive_pass import PassConfigParam
from olive.passes.pytorch.lora import LoRA
from olive.passes.pytorch.train_utils import load_hf_base_model
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import layer as lora_layer
from torch.utils.data import Sampler
from transformers.trainer_utils import get_last_checkpoint

from pipeline.errors import LabError
from pipeline.events import emit
from pipeline.passes.rows import Rows

RECORD = "training.json"  # stands in the adapter's folder
MOST_EVAL_ROWS = 256  # more would change the mean little and could take longer than the training
LENGTH_POOL = 16  # batches shuffled together before rows of like length are put side by side


class QuantLora(LoRA):
    """Train a LoRA adapter; the base model stays as it is.

    Writes `adapter/` (PEFT) with `training.json`: steps, losses on held-out rows before and after, speed.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        config: dict[str, PassConfigParam] = super()._default_config(accelerator_spec)
        config["torch_dtype"] = PassConfigParam(
            type_=str,
            default_value="auto",
            description="bfloat16, float32, or auto: bfloat16 where the hardware multiplies it natively.",
        )
        return config

    def _run_for_config(self, model: HfModelHandler, config: Any, output_model_path: str) -> HfModelHandler:
        emit(message="Loading the model", progress=0.01)
        arguments = config.training_args
        transformers.set_seed(arguments.extra_args["seed"])
        train, held_out = _rows(config.train_data_config), _rows(config.eval_data_config)
        base = self._load(model, config)
        adapted = add_lora(base, config)
        loss = ResponseLoss(adapted)
        tokenizer = model.get_hf_tokenizer()
        before = held_out_loss(loss, held_out, tokenizer, "before training")
        record = self._train(adapted, loss, train, tokenizer, arguments)
        after = held_out_loss(loss, held_out, tokenizer, "after training")
        record |= {
            "eval_loss_before": before,
            "eval_loss_after": after,
            "dtype": str(base.dtype).removeprefix("torch."),
        }
        adapter = Path(output_model_path) / "adapter"
        save(adapted, adapter)
        (adapter / RECORD).write_text(json.dumps(record, indent=1) + "\n", "utf-8")
        emit(message="Adapter written", progress=0.98, eval_loss=after)
        output = deepcopy(model)
        output.set_resource("adapter_path", adapter)
        return output

    def _load(self, handler: HfModelHandler, config: Any) -> transformers.PreTrainedModel:
        """The frozen base on the device it is trained on, in the training dtype."""
        cuda = torch.cuda.is_available()
        dtype = training_dtype(config.torch_dtype)
        base = load_hf_base_model(handler, torch_dtype=dtype, device_map={"": 0} if cuda else None)
        base.requires_grad_(False)
        base.config.use_cache = False
        count, kept = unpack_where_it_fits(base, dtype)
        if count or kept:
            emit(message=f"Unpacked {count} of {count + kept} quantized weights for training", progress=0.03)
        # To the Trainer and to PEFT this is now a model with frozen modules, not a quantization method
        # they would have to know.
        base.hf_quantizer = None
        base.is_quantized = False
        return base

    def _train(
        self, model: PeftModel, loss: ResponseLoss, train: Rows, tokenizer: Any, arguments: Any
    ) -> dict[str, Any]:
        """Run the steps, from the last checkpoint if one is left; return what is worth keeping."""
        if arguments.gradient_checkpointing:
            model.enable_input_require_grads()
        progress = Progress()
        trainer = ResponseTrainer(
            loss=loss,
            model=model,
            args=arguments.create_training_args(),
            train_dataset=train,
            data_collator=Collator(tokenizer),
            callbacks=[progress],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.remove_callback(transformers.ProgressCallback)
        result = trainer.train(resume_from_checkpoint=get_last_checkpoint(arguments.output_dir))
        return {
            "steps": result.global_step,
            "train_loss": result.training_loss,
            "tokens_per_second": progress.tokens_per_second(),
            "train_seconds": progress.seconds,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "rows": len(train),
        }


def save(model: PeftModel, folder: Path) -> None:
    """Write the adapter as PEFT does, without the paths of this machine that PEFT puts in."""
    model.peft_config["default"].base_model_name_or_path = ""  # None would be filled in
    model.save_pretrained(folder, save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card


def training_dtype(name: str) -> torch.dtype:
    """Resolve "auto": bfloat16 on CUDA and on CPUs with AMX tiles, where it is five times as fast."""
    if name == "auto":
        native = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else torch.float32
    return {"bfloat16": torch.bfloat16, "float32": torch.float32}[name]


def unpack_where_it_fits(model: torch.nn.Module, dtype: torch.dtype) -> tuple[int, int]:
    """Replace packed weights by plain copies while half of the free memory lasts; return (replaced, left).

    A frozen weight then need not be unpacked at every step. Those left over are unpacked when used.
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


def add_lora(base: transformers.PreTrainedModel, config: Any) -> PeftModel:
    """Wrap the target layers. `config` has r, alpha, lora_dropout, target_modules (None: all linear)."""
    peft_config = LoraConfig(
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.lora_dropout,
        target_modules=config.target_modules or all_linear(base),
        bias="none",
        task_type="CAUSAL_LM",
    )
    peft_config._register_custom_module({QuantLinear: LoraQuantLinear})
    return get_peft_model(base, peft_config)


def all_linear(model: transformers.PreTrainedModel) -> list[str]:
    """Last names of all linear layers, packed or plain, but the output layer."""
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
        super().__init__(base_layer, adapter_name, config, **kwargs)


class ResponseLoss:
    """Cross entropy summed over labelled positions, with logits computed for those only.

    The output layer of a small model is a fifth of all its arithmetic, and prompts have no labels.
    """

    def __init__(self, model: PeftModel) -> None:
        self.model = model
        self._keep: torch.Tensor | None = None
        model.get_base_model().get_output_embeddings().register_forward_pre_hook(self._select)

    def _select(self, _: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        """Before the output layer: [rows, tokens, hidden] to [labelled positions, hidden]."""
        return args if self._keep is None else (args[0][self._keep], *args[1:])

    def __call__(self, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, int]:
        """(sum of losses in nats, number of labelled tokens) of a batch of int64 [rows, tokens] tensors."""
        # A position predicts the token after it, so labels move one to the left.
        targets = torch.nn.functional.pad(batch["labels"][:, 1:], (0, 1), value=IGNORE_INDEX)
        self._keep = targets != IGNORE_INDEX
        try:
            logits = self.model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
        finally:
            kept, self._keep = self._keep, None
        wanted = targets[kept]
        return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"), wanted.numel()


class ResponseTrainer(transformers.Trainer):
    """transformers' Trainer with our loss and with batches of rows of like length."""

    def __init__(self, loss: ResponseLoss, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._loss = loss
        self.model_accepts_loss_kwargs = False

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Mean loss in nats per labelled token of the batch."""
        total, tokens = self._loss(inputs)
        return total / tokens

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        rows = train_dataset or self.train_dataset
        lengths = [rows.length(i) for i in range(len(rows))]
        return LikeLengths(lengths, self.args.train_batch_size, self.args.seed)


class LikeLengths(Sampler[int]):
    """Row indices in an order that puts rows of like length into a batch, new in every epoch."""

    def __init__(self, lengths: list[int], batch_size: int, seed: int) -> None:
        self.lengths = lengths
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate; a resumed run thus draws the same batches."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self.seed}:{self.epoch}")  # noqa: S311 - a shuffle, not a secret
        order = list(range(len(self.lengths)))
        dice.shuffle(order)
        pool = self.batch_size * LENGTH_POOL
        for start in range(0, len(order), pool):
            part = sorted(order[start : start + pool], key=lambda i: self.lengths[i])
            batches = [part[i : i + self.batch_size] for i in range(0, len(part), self.batch_size)]
            dice.shuffle(batches)
            yield from (index for batch in batches for index in batch)


class Collator:
    """Pads samples of `Rows` on the right into tensors of [rows, tokens]."""

    def __init__(self, tokenizer: Any) -> None:
        # Padding is masked and unlabelled, so any token will do where a model has none of its own.
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def __call__(
        self, samples: list[tuple[dict[str, torch.Tensor], torch.Tensor]]
    ) -> dict[str, torch.Tensor]:
        pad = torch.nn.utils.rnn.pad_sequence
        return {
            "input_ids": pad([x["input_ids"] for x, _ in samples], batch_first=True, padding_value=self.pad),
            "attention_mask": pad([x["attention_mask"] for x, _ in samples], batch_first=True),
            "labels": pad([y for _, y in samples], batch_first=True, padding_value=IGNORE_INDEX),
        }


class Progress(transformers.TrainerCallback):
    """Writes each step as an event."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._began = 0.0
        self._first_step = 0
        self._first_tokens = 0
        self._tokens = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first_step = time.monotonic(), state.global_step
        self._first_tokens = state.num_input_tokens_seen

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **kwargs: Any) -> None:
        if "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise LabError(
                f"Training went astray at step {state.global_step}: the loss is {logs['loss']}."
                f" Lower finetune.learning_rate ({args.learning_rate:g})."
            )
        self.seconds = time.monotonic() - self._began
        self._tokens = state.num_input_tokens_seen - self._first_tokens
        left = (state.max_steps - state.global_step) * self.seconds / (state.global_step - self._first_step)
        emit(
            message=f"Step {state.global_step} of {state.max_steps}",
            step=state.global_step,
            total_steps=state.max_steps,
            progress=0.1 + 0.85 * state.global_step / state.max_steps,
            eta_seconds=left,
            tokens_per_second=self.tokens_per_second(),
            **{
                name: logs[name]
                for name in ("loss", "learning_rate", "grad_norm")
                if math.isfinite(logs.get(name, math.nan))
            },
        )

    def tokens_per_second(self) -> float:
        return self._tokens / self.seconds if self.seconds else 0.0


@torch.no_grad()
def held_out_loss(loss: ResponseLoss, rows: Rows, tokenizer: Any, when: str) -> float:
    """Mean loss in nats per labelled token over the held-out rows, in evaluation mode."""
    model = loss.model
    was_training = model.training
    model.eval()
    indices = sorted(range(min(len(rows), MOST_EVAL_ROWS)), key=rows.length)
    collate, device = Collator(tokenizer), next(model.parameters()).device
    total, tokens = 0.0, 0
    for start in range(0, len(indices), 8):
        emit(message=f"Held-out loss {when}: row {start + 1} of {len(indices)}")
        batch = collate([rows[i] for i in indices[start : start + 8]])
        part, count = loss({name: tensor.to(device) for name, tensor in batch.items()})
        total, tokens = total + float(part), tokens + count
    model.train(was_training)
    emit(message=f"Held-out loss {when}: {total / tokens:.3f}", eval_loss=total / tokens)
    return total / tokens


def _rows(config: DataConfig | dict[str, Any]) -> Rows:
    """The dataset of a data config, without a copy in the `datasets` library's cache."""
    data = config if isinstance(config, DataConfig) else DataConfig.model_validate(config)
    rows = data.to_data_container().load_dataset()
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
