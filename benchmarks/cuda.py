"""Decoding on a GPU: tokens/s of base, adapter and bound export beside what the memory allows.

    python -m benchmarks.cuda [--model phi] [--tokens 128] [--turns 7] [--prompt 512] [--profile]

The graphs and the turns are those of `benchmarks.adapter_tax`, exported for CUDA. The floor of a step is the
bytes of the matrices that it reads over the bandwidth of a copy on the same GPU (bytes read and written), and
`share` is the floor over the step. The steps of bound exports are recorded as CUDA graphs; `plain, recorded`
is the base so. With --profile a table of what a step of a side spends on the GPU, by kernel. `--model phi` is
a random model of Phi-3.5-mini's shape (`benchmarks.gpu`). Needs CUDA and the GPU set.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks import adapter_tax, gpu
from benchmarks.finetune import context_of
from pipeline import settings
from pipeline.exports import generation
from pipeline.exports.bound.binding import bind
from pipeline.exports.contract import ADAPTER_DATA
from pipeline.system import hardware

GOAL = 0.35  # of the floor
BOUND = (16, 64)
COPIED = 1 << 32  # bytes of the copy that is timed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="phi", help="phi, a folder, or a catalogue id (default: phi)")
    parser.add_argument("--tokens", type=int, default=128, help="decoded in a turn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is read")
    parser.add_argument("--work", type=Path, help="where models go; kept if given")
    parser.add_argument("--profile", action="store_true", help="kernels of a step of each side")
    args = parser.parse_args()
    if not hardware.gpus():
        sys.exit("This needs an NVIDIA GPU, and nvidia-smi found none.")
    settings.quiet_this_process()
    bandwidth = copy_bandwidth()
    with tempfile.TemporaryDirectory() as scratch:
        folders = exports(args.work or Path(scratch), args.model)
        found = list(sides(folders))
        measure(found, args.turns, args.tokens, args.prompt)
        report(found, bandwidth, args.prompt)
        if args.profile:
            for side in found:
                profile(side)


def copy_bandwidth() -> float:
    """Bytes a second, read and written, that a copy within the GPU's memory moves; the best of ten."""
    import torch

    source = torch.empty(COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        began = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    del source, target
    torch.cuda.empty_cache()
    return 2 * COPIED / min(seconds)


def exports(work: Path, model: str) -> dict[str, Path]:
    """Folders by name: plain, with places for adapters, bound, and plain with steps that are recorded."""
    work.mkdir(parents=True, exist_ok=True)
    folders = {"plain": work / "builder", "all": work / "all"}
    folders |= {f"bound r={rank}": work / f"bound r={rank}" for rank in BOUND}
    if not folders["plain"].exists():
        context = context_of(work, str(gpu.random_model(work / "phi")) if model == "phi" else model)
        adapter_tax.build(context.model, adapter_tax.packed(context), work, device="gpu")
    if not folders["all"].exists():
        config = json.loads((folders["plain"] / "genai_config.json").read_text("utf-8"))
        fused = config["model"]["type"].startswith("phi3")
        adapter_tax.add_places(folders["plain"], folders["all"], None, fused)
    for rank in BOUND:
        if not folders[f"bound r={rank}"].exists():
            bind(folders["all"], str(rank), folders[f"bound r={rank}"])
    return folders | {"plain, recorded": recording(folders["plain"])}


def recording(folder: Path) -> Path:
    """A copy of a folder, with links to its weights, whose steps are recorded as CUDA graphs."""
    made = folder.with_name(f"{folder.name} graph")
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(folder, made, copy_function=os.link)
    file = made / "genai_config.json"
    config = json.loads(file.read_text("utf-8"))
    config["model"]["decoder"]["session_options"]["provider_options"] = [{"cuda": {"enable_cuda_graph": "1"}}]
    file.unlink()  # a link to the original's
    file.write_text(json.dumps(config, indent=1), "utf-8")
    return made


def sides(folders: dict[str, Path]) -> Iterator[adapter_tax.Side]:
    """Everything that is measured."""
    for name, folder in folders.items():
        label = name.replace("all", "idle")
        constants = folder / ADAPTER_DATA
        size = constants.stat().st_size if constants.exists() else 0
        yield adapter_tax.Side(label, folder, adapter_bytes=size)
        for rank in BOUND if name.startswith("all") else ():
            file = folder / f"{rank}.onnx_adapter"
            yield adapter_tax.Side(name.replace("all", f"r={rank}"), folder, str(rank), file.stat().st_size)


def measure(found: list[adapter_tax.Side], turns: int, tokens: int, prompt: int) -> None:
    """Let every side decode in every turn, folders in an order drawn by lot. Sides that fail are told."""
    lot = random.Random(0)
    folders = list(dict.fromkeys(side.folder for side in found))
    for _ in range(turns):
        for folder in lot.sample(folders, len(folders)):
            here = [side for side in found if side.folder == folder]
            try:
                adapter_tax.turn(here, folder, tokens, prompt)
            except Exception as error:  # a provider that cannot run a side says so in its own types
                print(f"{folder.name}: {str(error)[:300]}", flush=True)
                for side in here:
                    found.remove(side)
                folders.remove(folder)


def report(found: list[adapter_tax.Side], bandwidth: float, prompt: int) -> None:
    """A line a side."""
    base = adapter_tax.product_bytes(found[0].folder)
    plain = statistics.median(found[0].steps)
    print(f"\nproducts {base / 1e6:.1f} MB, copy {bandwidth / 1e12:.2f} TB/s, goal {GOAL} of the floor")
    columns = f"{'adapter MB':>11}{'ms/step':>9}{'tokens/s':>10}{'floor ms':>10}{'share':>7}{'to plain':>10}"
    print(f"{'':20}{columns}{'prompt/s':>10}")
    for side in found:
        step = statistics.median(side.steps)
        floor = (base + side.adapter_bytes) / bandwidth
        size = f"{side.adapter_bytes / 1e6:.1f}" if side.adapter_bytes else ""
        print(
            f"{side.name:20}{size:>11}{step * 1e3:9.3f}{1 / step:10.1f}{floor * 1e3:10.3f}{floor / step:7.3f}"
            f"{plain / step:10.3f}{prompt / statistics.median(side.reads):10.0f}",
            flush=True,
        )


def profile(side: adapter_tax.Side, steps: int = 32) -> None:
    """What a step spends on the GPU, by kernel, and what of its time the GPU waits."""
    import torch
    from torch.profiler import ProfilerActivity

    loaded: Any = generation.load(
        side.folder, {file.stem: file for file in side.folder.glob("*.onnx_adapter")}
    )
    generator = adapter_tax.begin(side, loaded, 12, 2 * steps)
    for _ in range(steps):
        generator.generate_next_token()
    with torch.profiler.profile(activities=[ProfilerActivity.CUDA]) as profiled:
        began = time.perf_counter()
        for _ in range(steps):
            generator.generate_next_token()
        wall = (time.perf_counter() - began) / steps
    events = sorted(profiled.key_averages(), key=lambda each: -each.self_device_time_total)
    busy = sum(each.self_device_time_total for each in events) / steps / 1e6
    kernels = sum(each.count for each in events) / steps
    print(f"\n{side.name}: {wall * 1e3:.3f} ms a step, GPU works {busy * 1e3:.3f}, {kernels:.0f} kernels")
    for each in events[:10]:
        per_step = each.self_device_time_total / steps
        print(f"  {per_step:8.1f} us {each.count / steps:6.1f} x {each.key[:100]}", flush=True)


if __name__ == "__main__":
    main()
