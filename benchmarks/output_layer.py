"""What the output layer's type costs: the size of an int4 export, and how fast it decodes and reads.

    python -m benchmarks.output_layer [--model starter] [--tokens 40] [--turns 12] [--prompt 512]

`--model random` makes a random one of Phi-3.5-mini's shape, which needs CUDA. In each turn every graph is
loaded again, in random order; ratios are taken within a turn, and their median is printed. What the
type does to the answers is `benchmarks.parity`'s to say. Weights are rounded to nearest.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
from pathlib import Path

from benchmarks import gpu
from benchmarks.adapter_tax import Side, arguments, build, packed, turn
from benchmarks.finetune import context_of
from pipeline.system import files, hardware

TYPES = ("int4", "int8", "float")


def main() -> None:
    args = arguments(str(__doc__))
    with tempfile.TemporaryDirectory() as work:
        model = str(gpu.random_model(Path(work) / "phi")) if args.model == "random" else args.model
        found = export(Path(work), model)
        lot = random.Random(0)
        for _ in range(args.turns):
            for side in lot.sample(found, len(found)):
                turn([side], side.folder, args.tokens, args.prompt)
        report(found, args.prompt)


def export(work: Path, model: str) -> list[Side]:
    """A side for each type."""
    context = context_of(work, model)
    checkpoint = packed(context)
    found = []
    for lm_head in TYPES:
        build(context.model, checkpoint, work / lm_head, lm_head)
        found.append(Side(lm_head, work / lm_head / "plain"))
    return found


def report(found: list[Side], prompt: int) -> None:
    """A line a type."""
    first = found[0]
    print(f"\n{hardware.cores()} cores, load {os.getloadavg()[0]:.1f}")
    print(f"{'lm_head':10}{'MB':>9}{'ms/step':>9}{'to ' + first.name:>9}{'prompt/s':>10}")
    for side in found:
        size = files.size(side.folder)
        ratio = statistics.median(b / a for a, b in zip(first.steps, side.steps, strict=True))
        step, read = statistics.median(side.steps), statistics.median(side.reads)
        print(f"{side.name:10}{size / 1e6:9.1f}{step * 1e3:9.2f}{ratio:9.3f}{prompt / read:10.0f}")


if __name__ == "__main__":
    main()
