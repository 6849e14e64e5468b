"""Losses on rows that are not trained on: which adapter was best, and when to stop."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from pipeline.inputs.data.sampling import spread
from pipeline.passes.rows import Rows
from pipeline.stages.events import emit
from pipeline.system.files import finite

MOST_ROWS = 256  # more would change the mean little and could take longer than the training
BATCH = 8
STATE, BEST = "held_out.json", "best.safetensors"


class HeldOut:
    """Measures the loss on rows, keeps a copy of the best adapter, and counts looks without a better one.

    `loss` is a `ResponseLoss`, `collate` its `Collator`. With `patience` 0 it never asks to stop. `name` is
    the name of the rows in messages.
    """

    def __init__(
        self, loss: Any, rows: Rows, collate: Any, patience: int = 0, name: str = "Held-out"
    ) -> None:
        self.name = name
        self.loss = loss
        self.rows = rows
        self.collate = collate
        self.patience = patience
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.waited = 0
        self._best: dict[str, torch.Tensor] = {}

    @property
    def stops(self) -> bool:
        """Whether `patience` looks in a row found nothing better."""
        return 0 < self.patience <= self.waited

    def look(self, step: int) -> float:
        """Measure after a step, and keep the adapter if it is the best so far."""
        found = self.measure(step, f"at step {step}")
        if found < self.best_loss:
            self.best_step, self.best_loss, self.waited = step, found, 0
            self._best = {name: weight.detach().cpu().clone() for name, weight in self._weights().items()}
        else:
            self.waited += 1
        return found

    def restore(self) -> None:
        """Put the best adapter back into the model."""
        for name, weight in self._weights().items():
            weight.data.copy_(self._best[name])

    @torch.no_grad()
    def measure(self, step: int, when: str, drawn: bool = True) -> float:
        """Mean loss in nats per labelled token over the rows, in evaluation mode; `drawn` in the chart."""
        model = self.loss.model
        was_training = model.training
        model.eval()
        indices = sorted(spread(range(len(self.rows)), MOST_ROWS), key=self.rows.length)
        device = next(model.parameters()).device
        total, tokens = 0.0, 0
        for start in range(0, len(indices), BATCH):
            emit(message=f"{self.name} loss {when}: row {start + 1} of {len(indices)}")
            batch = self.collate([self.rows[i] for i in indices[start : start + BATCH]])
            part, count = self.loss({name: tensor.to(device) for name, tensor in batch.items()})
            total, tokens = total + float(part), tokens + count
        model.train(was_training)
        figure = {"step": step, "eval_loss": total / tokens} if drawn else {}
        emit(message=f"{self.name} loss {when}: {total / tokens:.3f}", **figure)
        return total / tokens

    def save(self, folder: Path) -> None:
        """Write what a resumed training needs to know, the best adapter included."""
        if self.best_step is None:
            return
        state = {"best_step": self.best_step, "best_loss": self.best_loss, "waited": self.waited}
        (folder / STATE).write_text(json.dumps(finite(state), allow_nan=False), "utf-8")
        save_file(self._best, folder / BEST)

    def load(self, folder: Path) -> None:
        """Restore what `save` wrote, if anything."""
        if not (folder / STATE).is_file():
            return
        state = json.loads((folder / STATE).read_text("utf-8"))
        self.best_step, self.best_loss, self.waited = state["best_step"], state["best_loss"], state["waited"]
        self._best = load_file(folder / BEST)

    def _weights(self) -> dict[str, torch.nn.Parameter]:
        return {name: weight for name, weight in self.loss.model.named_parameters() if weight.requires_grad}
