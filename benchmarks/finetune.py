"""Seconds of a training step on the quantized base and on the float base, taken in turn in one process.

    python -m benchmarks.finetune [--model starter] [--steps 5] [--batch-size 8] [--length 96]

Both have the same LoRA adapter and see the same batch of the travel sample: forward, backward, AdamW, on a
GPU recorded as in training. The
third column is the quantized base with its weights left packed, as they are where memory is short.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline import settings
from pipeline.inputs.models import base_models
from pipeline.stages import finetune, quantize
from pipeline.stages.context import Context
from pipeline.system import hardware

GOALS = {"cpu": 1.3, "cuda": 1.0}
NOISE = 0.02  # of a ratio of medians on a quiet machine
SAMPLE = settings.SAMPLES / "travel.jsonl"
BASES = ("float", "quantized", "packed")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="a folder, or a catalogue id (default: starter)")
    parser.add_argument("--steps", type=int, default=5, help="steps measured on each base")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--length", type=int, default=96, help="tokens of a row at most")
    args = parser.parse_args()
    settings.quiet_this_process()
    with tempfile.TemporaryDirectory() as folder:
        context = context_of(Path(folder), args.model)
        checkpoint = quantized(context)
        batch = sample(context, args.batch_size, args.length)
        steps = {base: stepper(base, context.model, checkpoint, batch) for base in BASES}
        report(context.device, measure(steps, args.steps), batch)


def context_of(home: Path, model: str) -> Context:
    """What the quantize stage is given, in a home that is thrown away."""
    found = base_models.resolve(model if model == "starter" else str(Path(model).resolve()))
    return Context(
        model=base_models.materialize(found, home, print),
        inputs={},
        data=SAMPLE,
        template="chat",
        eval_fraction=0.1,
        seed=0,
        device="cuda" if hardware.gpus() else "cpu",
        output=home / "output",
        work=home / "work",
        checkpoints=home / "checkpoints",
        config=found.config,
    )


def quantized(context: Context) -> Path:
    """The model after the quantize stage."""
    from pipeline.stages.execute import execute

    return execute(quantize, quantize.Options(), context).artifacts[0].path


def sample(context: Context, size: int, length: int) -> dict[str, Any]:
    """The first rows of the sample, as one batch on the device."""
    from pipeline.passes.finetune.training import Collator
    from pipeline.passes.rows import lab_rows

    rows = lab_rows(str(SAMPLE), "chat", str(context.model), "train", 0.1, 0, length)
    batch = Collator(rows.tokenizer)([rows[i] for i in range(size)])
    return {name: tensor.to(context.device) for name, tensor in batch.items()}


def stepper(base: str, model: Path, checkpoint: Path, batch: dict[str, Any]) -> Callable[[], float]:
    """A function that trains one step on a base and returns the seconds it took."""
    import torch
    from olive.model import HfModelHandler

    from pipeline.passes.finetune import quant_lora
    from pipeline.passes.finetune.cuda_graphs import StepGraphs
    from pipeline.passes.finetune.training import ResponseLoss, next_tokens

    free = quant_lora._free_bytes
    if base == "packed":
        quant_lora._free_bytes = lambda: 0
    try:
        handler = HfModelHandler(str(model if base == "float" else checkpoint))
        loaded = quant_lora.load_base(handler, "lora", quant_lora.training_dtype("auto"))
    finally:
        quant_lora._free_bytes = free
    default = finetune.Options()
    config = SimpleNamespace(
        method="lora", r=default.r, alpha=default.alpha, lora_dropout=0.0, target_modules=None
    )
    adapted = quant_lora.add_lora(loaded, config).train()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-4, fused=True)
    loss = ResponseLoss(adapted)
    graphs = StepGraphs(adapted, weights) if torch.cuda.is_available() else None
    targets = next_tokens(batch["labels"])
    count = (targets >= 0).sum()

    def step() -> float:
        began = time.perf_counter()
        if graphs is None or graphs.run(batch["input_ids"], targets, count) is None:
            torch.autograd.backward(loss(batch)[0] / count)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad() if graphs is None else graphs.zero()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - began

    return step


def measure(steps: dict[str, Callable[[], float]], count: int) -> dict[str, list[float]]:
    """Seconds of `count` steps on each base in turn, after those on which a GPU's step is recorded."""
    for step in steps.values():
        for _ in range(3 if hardware.gpus() else 1):
            step()
    found: dict[str, list[float]] = {base: [] for base in steps}
    for turn in range(count):
        order = list(steps) if turn % 2 == 0 else list(steps)[::-1]
        for base in order:
            found[base].append(steps[base]())
    return found


def report(device: str, seconds: dict[str, list[float]], batch: dict[str, Any]) -> None:
    rows, tokens = batch["input_ids"].shape
    print(f"\n{device}, {rows} rows of {tokens} tokens, load of the machine {os.getloadavg()[0]:.1f}")
    print(f"{'seconds a step':16}{'min':>8}{'median':>8}{'max':>8}{'to float':>10}")
    plain = statistics.median(seconds["float"])
    for base, values in seconds.items():
        middle = statistics.median(values)
        print(f"{base:16}{min(values):8.3f}{middle:8.3f}{max(values):8.3f}{middle / plain:10.3f}")
    ratio, goal = statistics.median(seconds["quantized"]) / plain, GOALS[device]
    met = "met" if ratio <= goal else "met within noise" if ratio <= goal + NOISE else "not met"
    print(f"quantized / float {ratio:.3f}, goal {goal:.1f} on {device}: {met}")


if __name__ == "__main__":
    main()
