"""The progress of a training, as one event for each step."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
import transformers

from pipeline.errors import LabError
from pipeline.stages.events import emit


class Progress(transformers.TrainerCallback):  # type: ignore[misc]
    """Writes each step as an event. Raises LabError when the loss is not finite."""

    def __init__(self) -> None:
        self.seconds = 0.0  # since training began
        self.aside = 0.0  # of these, spent on held-out rows
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
                f"Training diverged at step {state.global_step}: the loss is {logs['loss']}."
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
            **gpu_memory(),
            **{
                name: logs[name]
                for name in ("loss", "learning_rate", "grad_norm")
                if math.isfinite(logs.get(name, math.nan))
            },
        )

    def tokens_per_second(self) -> float:
        """Tokens trained on in a second, padding included, since this process began to train."""
        training = self.seconds - self.aside
        return self._tokens / training if training > 0 else 0.0


def gpu_memory() -> dict[str, int]:
    """Peak bytes of tensors on a GPU so far. The peak is not reset, because the stage reports it too."""
    return {"gpu_memory_bytes": int(torch.cuda.max_memory_allocated())} if torch.cuda.is_available() else {}
