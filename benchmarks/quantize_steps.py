"""Where the time of quantizing goes: AWQ alone, and with GPTQ after it.

    python -m benchmarks.quantize_steps MODEL [--data FILE] [--template TEMPLATE] [--blocks 32] [--group 64]

MODEL is a folder. Each step waits for the device before and after, so steps add up to a little more than
what an ordinary run takes. Seconds of the process's CPU are beside those of the clock.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from olive.model import HfModelHandler
from olive.passes.pytorch.quant_utils import finalize, prepare_model

from pipeline import settings
from pipeline.display import size as as_size
from pipeline.passes.quantize import awq, compensation
from pipeline.passes.quantize.calibration import lab_calibration

# Owner, name of a function, and what it is called here. An indented step is part of the one above it.
STEPS: list[tuple[Any, str, str]] = [
    (awq, "layer_inputs", "embedding"),
    (awq.LayerWork, "__init__", "weights to float32"),
    (awq.LayerWork, "calibrate", "running layers"),
    (awq.LayerWork, "scale", "searching scales"),
    (awq, "search_clip", "clipping"),
    (awq, "compensated", "GPTQ"),
    (compensation, "factored", "  its factors"),
    (compensation, "_group", "  its columns"),
    (awq, "packed", "packing"),
]

SAID = (awq, "emit")  # what layers report themselves by


class Clock:
    """Seconds by step, of the clock and of this process's CPU."""

    def __init__(self) -> None:
        self.steps: dict[str, list[float]] = {}

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, its time counted as step `name`."""

        @wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            before = now()
            made = function(*args, **kwargs)
            found = self.steps.setdefault(name, [0.0, 0.0])
            for i, (end, begin) in enumerate(zip(now(), before, strict=True)):
                found[i] += end - begin
            return made

        return call


def now() -> tuple[float, float]:
    """The clock and the process's CPU seconds, once the device has done its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter(), time.process_time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=settings.SAMPLES / "travel.jsonl")
    parser.add_argument("--template", default="chat")
    parser.add_argument("--blocks", type=int, default=32, help="of 512 tokens")
    parser.add_argument("--group", type=int, default=64)
    args = parser.parse_args()
    model = HfModelHandler(str(args.model), load_kwargs={"trust_remote_code": False})
    found = lab_calibration(str(args.data), args.template, str(args.model), 0.1, 0, args.blocks, 512, 0.5)
    for compensate in (False, True):
        measure(model, found.ids, args.group, compensate)


def measure(model: HfModelHandler, ids: torch.Tensor, group: int, compensate: bool) -> None:
    """Quantize the model once, and print the time of each step."""
    clock = Clock()
    ended: list[tuple[float, float]] = []
    config = SimpleNamespace(bits=4, sym=False, group_size=group, lm_head=False, overrides=None)
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in [*STEPS, (*SAID, "")]]
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    wrapper, quantization, _ = clock.timed(prepare_model, "loading")(model, config)
    for owner, name, label in STEPS:
        setattr(owner, name, clock.timed(getattr(owner, name), label))
    setattr(*SAID, lambda **facts: ended.append(now()))  # a message a layer
    before = now()
    try:
        clock.timed(awq.quantize, "all layers")(wrapper, ids, "gram", compensate)
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)
    with tempfile.TemporaryDirectory() as folder:
        clock.timed(finalize, "saving")(model, f"{folder}/model", wrapper, quantization, "cpu")
    wall = time.perf_counter() - began
    clock.steps["  the first of them"] = [end - begin for end, begin in zip(ended[0], before, strict=True)]
    report(clock, wall, f"{len(ids)} blocks, group {group}, {'AWQ and GPTQ' if compensate else 'AWQ alone'}")


def report(clock: Clock, wall: float, title: str) -> None:
    """A line a step."""
    memory = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    print(f"\n{title}: {wall:.1f} s{f', on GPU {as_size(memory)}' if memory else ''}")
    print(f"{'step':22}{'seconds':>9}{'of CPU':>9}")
    labels = ["loading", "all layers", "  the first of them", *(label for _, _, label in STEPS), "saving"]
    for label in labels:
        if label in clock.steps:
            seconds, cpu = clock.steps[label]
            print(f"{label:22}{seconds:9.2f}{cpu:9.2f}", flush=True)


if __name__ == "__main__":
    main()
