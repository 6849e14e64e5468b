"""Processor seconds of a step with `finetune.precision: mixed` beside float32, and what it does to the loss.

    python -m benchmarks.mixed [--turns 5]

The starter in 4 bits (rtn), 8 rows of the travel sample, one thread; ways take turns in one process. After
one step of AdamW's size (each weight moved by 0.001 against its gradient's sign) the loss and the gradient
are measured again, and the gradient is compared with float32's there.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.finetune import context_of, sample
from pipeline import settings
from pipeline.stages import finetune, quantize

LIMIT = 0.59  # of float32's time
WAYS = {"float32": False, "mixed": True}  # whether large products are in bfloat16
SMALL = 1e-3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--turns", type=int, default=5, help="steps measured of each way")
    args = parser.parse_args()
    settings.quiet_this_process()
    import torch

    from pipeline.stages.execute import execute

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(Path(folder), "starter")
        checkpoint = execute(quantize, quantize.Options(algorithm="rtn"), context).artifacts[0].path
        batch = sample(context, 8, 96)
        ways = [Way(name, checkpoint, batch) for name in WAYS]
    found = [way.quality() for way in ways]
    for turn in range(args.turns + 1):
        for way in ways if turn % 2 == 0 else reversed(ways):
            way.step()
    report(ways, found)


@dataclass
class Way:
    """A model with an adapter, as one of `WAYS` computes it."""

    name: str
    checkpoint: Path
    batch: dict[str, Any]
    seconds: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        import torch
        from olive.model import HfModelHandler

        from pipeline.passes.finetune import quant_lora
        from pipeline.passes.finetune.training import ResponseLoss

        base = quant_lora.load_base(HfModelHandler(str(self.checkpoint)), "lora", torch.float32)
        given = finetune.Options()
        config = SimpleNamespace(
            method="lora", r=given.r, alpha=given.alpha, lora_dropout=0.0, target_modules=None
        )
        torch.manual_seed(0)
        model = quant_lora.add_lora(base, config, rounded_once=WAYS[self.name]).train()
        self.loss = ResponseLoss(model)
        self.weights = [weight for weight in model.parameters() if weight.requires_grad]
        self.optimizer = torch.optim.AdamW(self.weights, lr=1e-4)

    def gradients(self) -> float:
        """The mean loss; its gradients are in the weights."""
        import torch

        self.optimizer.zero_grad()
        total, count = self.loss(self.batch)
        torch.autograd.backward(total / count)
        return float(total) / count

    def quality(self) -> tuple[float, float, Any]:
        """The loss before and after one step, and the gradient after it; the weights are put back."""
        import torch

        kept = [weight.detach().clone() for weight in self.weights]
        before = self.gradients()
        with torch.no_grad():
            for weight in self.weights:
                weight.sub_(SMALL * weight.grad.sign())
        after = self.gradients()
        with torch.no_grad():
            for weight, value in zip(self.weights, kept, strict=True):
                weight.copy_(value)
        return before, after, torch.cat([weight.grad.flatten() for weight in self.weights]).double()

    def step(self) -> None:
        """One step as in training; its seconds of a processor are kept."""
        import torch

        began = time.process_time()
        self.gradients()
        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
        self.optimizer.step()
        self.seconds.append(time.process_time() - began)


def report(ways: list[Way], found: list[tuple[float, float, Any]]) -> None:
    """A line for each way; each one's first step warms it up."""
    medians = [statistics.median(way.seconds[1:]) for way in ways]
    meant = found[0][2]
    print(f"\nload of the machine {os.getloadavg()[0]:.1f}, limit {LIMIT} of float32's time")
    print(f"{'':10}{'s':>7}{'ratio':>8}{'before':>9}{'after':>9}{'cosine':>9}{'same sign':>11}")
    for way, seconds, (before, after, gradient) in zip(ways, medians, found, strict=True):
        cosine = float(gradient @ meant / gradient.norm() / meant.norm())
        same = float((gradient.sign() == meant.sign()).double().mean())
        print(
            f"{way.name:10}{seconds:7.2f}{seconds / medians[0]:8.3f}{before:9.4f}{after:9.4f}"
            f"{cosine:9.4f}{same:11.3f}"
        )


if __name__ == "__main__":
    main()
