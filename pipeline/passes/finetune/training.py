# mypy: disallow-subclassing-any=False
"""The steps of a training: transformers' Trainer with our loss, batches, evaluations and checkpoints."""

from __future__ import annotations

import math
import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from olive.data.constants import IGNORE_INDEX
from peft import PeftModel
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint

from pipeline import settings
from pipeline.passes.finetune.batches import LikeLengths, Shares
from pipeline.passes.finetune.cuda_graphs import StepGraphs, steady_rope
from pipeline.passes.finetune.held_out import HeldOut
from pipeline.passes.finetune.packing import Packs, Sample
from pipeline.passes.finetune.progress import Progress
from pipeline.passes.finetune.ranks import ALONE, Ranks
from pipeline.passes.rows import Rows
from pipeline.stages.events import emit

# A checkpoint is written after a twentieth of the steps, but not within `settings.checkpoint_seconds` of the
# last one, and at the latest after this many seconds; writing may take at most a twentieth of the time.
MOST_SECONDS = 300.0
SHARE = 20
LEAST_RECORDED = 10  # steps; to record a step takes as long as several
PART = "part"  # the folder in which a checkpoint is written before it gets its name


def train(
    loss: ResponseLoss,
    rows: Rows | Packs,
    collate: Collator,
    arguments: transformers.TrainingArguments,
    held_out: HeldOut,
    eval_every: int,
    ranks: Ranks = ALONE,
) -> dict[str, Any]:
    """Run the steps, from the last checkpoint if there is one; return the facts for the record.

    With `eval_every`, the model is left with the adapter that had the least loss on `held_out`. Each of
    several `ranks` runs its part of each step; only the first one measures `held_out` and writes checkpoints.
    Raises LabError if the loss is not finite, and Lost if another rank has ended.
    """
    plan(arguments, math.ceil(len(rows) / arguments.per_device_train_batch_size))
    model = loss.model
    if arguments.gradient_checkpointing:
        model.enable_input_require_grads()
    progress = Progress()
    trainer = ResponseTrainer(
        loss=loss,
        held_out=held_out,
        progress=progress,
        pace=Pace(eval_every),
        model=model,
        args=arguments,
        train_dataset=rows,
        data_collator=collate,
        ranks=ranks,
    )
    last = get_last_checkpoint(arguments.output_dir)
    if last is not None:
        held_out.load(Path(last))
        step = int(last.rpartition("-")[2])
        print(f"Resuming from the checkpoint of step {step}", flush=True)
        emit(message=f"Resuming from the checkpoint of step {step}", resumed=step)
    trainer.begin_together()
    result = trainer.train(resume_from_checkpoint=last)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    record = {
        "steps": result.global_step,
        "train_loss": sum(losses) / len(losses),  # of all steps, those before an interruption too
        "tokens_per_second": progress.tokens_per_second(),
        "train_seconds": progress.seconds,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
    }
    if held_out.best_step is not None:
        held_out.restore()
        record |= {"best_step": held_out.best_step, "stopped_early": held_out.stops}
    return record


def plan(arguments: transformers.TrainingArguments, batches: int) -> None:
    """Turn epochs of that many batches into steps, and limit the warm-up to half of the steps."""
    if arguments.max_steps < 0:
        steps = math.ceil(batches / arguments.gradient_accumulation_steps)
        arguments.max_steps = max(1, math.ceil(arguments.num_train_epochs * steps))
    arguments.warmup_steps = min(arguments.warmup_steps, arguments.max_steps // 2)


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
        """(sum of losses in nats, number of labelled tokens) of a `Collator`'s batch."""
        targets = next_tokens(batch["labels"])
        inputs = {name: tensor for name, tensor in batch.items() if name != "labels"}
        self._keep = targets != IGNORE_INDEX
        try:
            # With a cache, even an empty one, transformers does not detect packs.
            logits = self.model(**inputs, use_cache=False).logits
        finally:
            kept, self._keep = self._keep, None
        wanted = targets[kept]
        return torch.nn.functional.cross_entropy(logits.float(), wanted, reduction="sum"), wanted.numel()


def next_tokens(labels: torch.Tensor) -> torch.Tensor:
    """The target of each position, [rows, tokens]: labels moved one to the left."""
    return torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


def step_graphs(model: Any, trained: list[Any], rows: Any, arguments: Any) -> StepGraphs | None:
    """CUDA graphs for the steps where these can be recorded: plain rows, no dropout, enough steps."""
    dropout = any(
        getattr(module, "p", 0) for module in model.modules() if isinstance(module, torch.nn.Dropout)
    )
    possible = (
        torch.cuda.is_available()
        and not isinstance(rows, Packs)
        and not arguments.gradient_checkpointing
        and not dropout
        and arguments.max_steps >= LEAST_RECORDED
        and not getattr(model, "is_loaded_in_4bit", False)
    )
    if not possible or not steady_rope(model, rows.max_length):
        return None
    return StepGraphs(model, trained)


class Collator:
    """Pads samples of `Rows` or `Packs` on the right into int64 tensors of [rows, tokens]."""

    def __init__(self, tokenizer: Any) -> None:
        # Padding is masked and unlabelled, so any token will do where a model has none of its own.
        self.pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else 0

    def __call__(self, samples: list[Sample]) -> dict[str, torch.Tensor]:
        if not samples:  # a rank's part of a step that has fewer rows than there are ranks
            return {name: torch.zeros(0, 0, dtype=torch.int64) for name in ("input_ids", "labels")}
        pad = torch.nn.utils.rnn.pad_sequence
        batch = {
            "input_ids": pad([x["input_ids"] for x, _ in samples], batch_first=True, padding_value=self.pad),
            "labels": pad([y for _, y in samples], batch_first=True, padding_value=IGNORE_INDEX),
        }
        if "position_ids" in samples[0][0]:
            return batch | {"position_ids": _positions(samples, batch["labels"].shape[1])}
        return batch | {"attention_mask": pad([x["attention_mask"] for x, _ in samples], batch_first=True)}


def _positions(samples: list[Sample], length: int) -> torch.Tensor:
    """Positions of packs [packs, length]; padding after a pack is one more row, so nothing sees it."""
    filled = [torch.cat([x["position_ids"], torch.arange(length - len(y))]) for x, y in samples]
    return torch.stack(filled)


class ResponseTrainer(transformers.Trainer):
    """transformers' Trainer with our loss, batches of rows of similar length, and complete checkpoints."""

    def __init__(
        self, loss: ResponseLoss, held_out: HeldOut, progress: Progress, pace: Pace, ranks: Ranks,
        **kwargs: Any,
    ) -> None:  # fmt: skip
        super().__init__(callbacks=[progress, pace], **kwargs)
        self._ranks = ranks
        self._tokens_before = 0  # trained on before the current step, in all ranks
        self.remove_callback(transformers.PrinterCallback)
        self.remove_callback(transformers.ProgressCallback)
        self._loss = loss
        self._held_out = held_out
        self._progress = progress
        self._pace = pace
        self._saving = False
        self._trained = [p for p in self.model.parameters() if p.requires_grad]
        self._graphs = step_graphs(self.model, self._trained, self.train_dataset, self.args)
        self.model.zero_grad = self._forget  # the original walks thousands of modules at each step
        self.model.train()
        self.model_accepts_loss_kwargs = (
            True  # so that our mean over all batches of a step is not divided again
        )

    def begin_together(self) -> None:
        """Wait for all ranks, and begin with the first one's adapter."""
        self._ranks.from_first(self._trained)
        if self._ranks.rank:  # of the same seed, but for what is drawn while training
            torch.manual_seed(self.args.seed + self._ranks.rank)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if self._ranks.rank == 0:  # whose it is
            super()._load_rng_state(checkpoint)

    def get_train_dataloader(self) -> Any:
        """The batches of all rows, or of several ranks this one's part of them."""
        if self._ranks.count == 1:
            return super().get_train_dataloader()
        shares = Shares(
            self._get_train_sampler(),
            self.args.gradient_accumulation_steps,
            self._ranks.rank,
            self._ranks.count,
        )
        return self.accelerator.prepare(
            DataLoader(
                self.train_dataset,
                batch_sampler=shares,
                collate_fn=self.data_collator,
                pin_memory=self.args.dataloader_pin_memory,
            )
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> torch.Tensor:
        """Forward and backward of one batch, as a CUDA graph where possible."""
        inputs = self._prepare_inputs(inputs)
        if not len(inputs["input_ids"]):
            return torch.zeros((), device=self.args.device)
        if self._graphs is not None:
            targets = next_tokens(inputs["labels"])
            done = self._graphs.run(inputs["input_ids"], targets, num_items_in_batch)
            if done is not None:
                return done
        loss: torch.Tensor = self.compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)
        torch.autograd.backward(loss)
        return loss.detach()

    def _forget(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the last step."""
        if self._graphs is not None:
            self._graphs.zero()
            return
        for parameter in self._trained:
            parameter.grad = None

    def _clip_grad_norm(self, model: Any) -> torch.Tensor:
        """Clip the gradient to `max_grad_norm` and return its norm, without walking all modules."""
        if self._ranks.count > 1:
            self._add_up()
        return torch.nn.utils.clip_grad_norm_(self._trained, self.args.max_grad_norm)

    def _add_up(self) -> None:
        """Add up what the ranks have computed of this step: gradients, its loss, and the tokens in it."""
        for parameter in self._trained:
            if parameter.grad is None:  # no row of this step is ours
                parameter.grad = torch.zeros_like(parameter)
        tokens = torch.tensor(
            float(self.state.num_input_tokens_seen - self._tokens_before), device=self.args.device
        )
        self._ranks.add_up([*(parameter.grad for parameter in self._trained), self._tr_loss, tokens])
        self.state.num_input_tokens_seen = self._tokens_before + int(tokens.item())

    def floating_point_ops(self, inputs: Any) -> int:
        """Zero: the original walks all modules at each step for a count that nobody reads."""
        return 0

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The batch's part of the step's mean loss in nats per labelled token."""
        total, _ = self._loss(inputs)
        return total / num_items_in_batch

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> torch.Tensor:
        """Labelled tokens of all batches of one step: the first token of a row is predicted by none."""
        self._tokens_before = self.state.num_input_tokens_seen
        counts = [(batch["labels"][:, 1:] != IGNORE_INDEX).sum() for batch in batch_samples]
        count = torch.stack(counts).sum().to(device)
        self._ranks.add_up([count])
        return count

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the rows, and end the training after `patience` looks without improvement."""
        began = time.monotonic()
        first = self._ranks.rank == 0
        found = self._held_out.look(self.state.global_step) if first else math.nan
        self.control.should_evaluate = False  # else the end of an epoch would measure again
        if self._ranks.agree(first and self._held_out.stops):
            self.control.should_training_stop = True
            self.control.should_save = False
        self._progress.aside += time.monotonic() - began
        return {"eval_loss": found}

    def _get_train_sampler(self, train_dataset: Any = None) -> LikeLengths:
        rows = train_dataset or self.train_dataset
        lengths = [rows.length(i) for i in range(len(rows))]
        return LikeLengths(lengths, self.args.train_batch_size, self.args.seed)

    def _get_output_dir(self, trial: Any) -> str:
        folder = Path(super()._get_output_dir(trial))
        return str(folder / PART if self._saving else folder)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write a checkpoint under a temporary name and rename it when it is complete.

        The Trainer writes under the final name, so a killed process would leave half a checkpoint, from which
        training could not resume. Of several ranks the first one writes what one alone would write.
        """
        if self._ranks.rank:
            return
        began = time.monotonic()
        folder = Path(self.args.output_dir)
        name = f"checkpoint-{self.state.global_step}"
        shutil.rmtree(folder / PART, ignore_errors=True)
        self._saving = True
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self._saving = False
        self._held_out.save(folder / PART / name)
        for file in (folder / PART / name).rglob("*"):
            if file.is_file():
                with file.open("rb") as written:
                    os.fsync(written.fileno())  # else a power cut leaves empty files under the final name
        (folder / PART / name).replace(folder / name)
        for older in folder.glob("checkpoint-*"):
            if older.name != name:
                shutil.rmtree(older)
        self._pace.written(self.state.global_step, time.monotonic() - began)


class Pace(transformers.TrainerCallback):
    """Decides after which steps to measure the held-out rows and to write a checkpoint."""

    def __init__(self, eval_every: int) -> None:
        self.eval_every = eval_every
        self._cost = 0.0
        self._last_step, self._last_time = 0, 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._last_step, self._last_time = state.global_step, time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        step, last = state.global_step, state.global_step >= state.max_steps
        control.should_evaluate = bool(self.eval_every) and (step % self.eval_every == 0 or last)
        seconds = time.monotonic() - self._last_time
        control.should_save = not last and due(step - self._last_step, state.max_steps, seconds, self._cost)

    def written(self, step: int, cost: float) -> None:
        """Note that a checkpoint was written in `cost` seconds."""
        self._last_step, self._last_time, self._cost = step, time.monotonic(), cost


def due(steps: int, total: int, seconds: float, cost: float) -> bool:
    """Whether to write a checkpoint, `seconds` after the last one, which took `cost` seconds to write."""
    if seconds < max(settings.checkpoint_seconds(), SHARE * cost):
        return False
    return steps * SHARE >= total or seconds >= MOST_SECONDS
