"""How far losses on rows are from each other: of a checkpoint in PyTorch, and of the graphs exported from it.

    python -m benchmarks.exported_losses [--model starter] [--rows 64]

Rows are held-out ones of the sample; a loss is nats a response token. `mean` is the mean over rows of the
graph's loss − the checkpoint's in float32, `most` the largest size of such a difference of one row. The float
model is also read in bfloat16, as it is on machines that have that type.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune import context_of
from pipeline.evaluation.measured import Floats
from pipeline.stages import optimize, quantize
from pipeline.stages.context import Context
from pipeline.system import files

WAYS = ("float", "rtn", "gptq", "awq")
HEADS: tuple[Any, ...] = ("auto", "float", "int4")  # auto is int8 on a CPU


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="starter, or a folder")
    parser.add_argument("--rows", type=int, default=64)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        context = dataclasses.replace(context_of(Path(work), args.model), eval_fraction=0.5)
        print("| weights | graph | MB | loss of the checkpoint | of the graph | mean | most |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for way in WAYS:
            _report(way, context, Path(work) / way, args.rows)


def _report(way: str, context: Context, work: Path, rows: int) -> None:
    """The lines of one way to quantize."""
    checkpoint = context.model
    if way != "float":
        options: Any = quantize.Options(algorithm=way)  # type: ignore[arg-type]
        checkpoint = _made(quantize, options, context, work / "quantize", {})
    graphs = {}
    for head in HEADS if way != "float" else ("float",):
        given = optimize.Options(lm_head=head) if way != "float" else optimize.Options(precision="fp32")
        inputs = {} if way == "float" else {"checkpoint": checkpoint}
        graphs[head] = _made(optimize, given, context, work / head, inputs)
    right = _losses(next(iter(graphs.values())), context, work / "torch", rows, checkpoint)
    for head, graph in graphs.items():
        size = f"{files.size(*graph.glob('model.onnx*')) / 1e6:.0f}"
        _line(
            way,
            f"lm_head {head}" if way != "float" else "fp32",
            size,
            right,
            _losses(graph, context, work / f"{head}-rows", rows),
        )
    if way == "float":
        _line(
            way,
            "none: PyTorch in bfloat16",
            "",
            right,
            _losses(graph, context, work / "bf16", rows, checkpoint, "bfloat16"),
        )


def _made(stage: Any, options: Any, context: Context, folder: Path, inputs: dict[str, Path]) -> Path:
    """What a stage makes, in a folder of its own."""
    from pipeline.stages.execute import execute

    own: dict[str, Any] = {name: folder / name for name in ("output", "work", "checkpoints")}
    found: Path = (
        execute(stage, options, dataclasses.replace(context, inputs=inputs, **own)).artifacts[0].path
    )
    return found


def _losses(
    graph: Path,
    context: Context,
    work: Path,
    rows: int,
    checkpoint: Path | None = None,
    dtype: str = "float32",
) -> Floats:
    """Losses row by row of an exported graph, or of a checkpoint in its place: float64 [rows]."""
    import torch

    from pipeline.exports import generation
    from pipeline.inputs.data import datasets
    from pipeline.inputs.data.sampling import spread
    from pipeline.passes.measure import float_losses
    from pipeline.passes.measure.row_losses import Losses, Record

    work.mkdir(parents=True)
    loaded = generation.load(graph)
    parts = datasets.split(context.data, loaded.template, context.eval_fraction, context.seed)
    losses = Losses(
        loaded, context.model, context.data, loaded.template, {"base": None}, Record(work / "rows.jsonl", {})
    )
    chosen = spread(parts.held_out, rows)
    if checkpoint is None:
        return losses.rows("held_out", chosen).means("base")
    with float_losses.loaded(checkpoint, getattr(torch, dtype)) as measure:
        return losses.rows("held_out", chosen, measure=measure).means("base")


def _line(way: str, graph: str, size: str, right: Floats, found: Floats) -> None:
    apart = found - right
    cells = f"{right.mean():.4f} | {found.mean():.4f} | {apart.mean():+.4f} | {np.abs(apart).max():.4f}"
    print(f"| {way}, {len(found)} rows | {graph} | {size} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
