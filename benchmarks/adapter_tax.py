"""What an adapter costs: decoding and reading speed of one graph without, beside and with adapters.

    python -m benchmarks.adapter_tax [--model starter] [--tokens 40] [--turns 12] [--prompt 512] [--one-core]

In each turn every graph is loaded again, in an order drawn by lot, and every side decodes: where weights come
to lie in memory and what else the machine does changes speeds by a tenth. Ratios are taken within a turn, and
their median is printed.

builder   the graph of onnxruntime-genai's model builder, no places for adapters
plain     the same with FewerNodes, as it is exported without an adapter
idle      places for adapters on all products, none active
r=16      an adapter of rank 16 on all products, active; `q,v` on queries and values only
bound     the same as constants of the graph, in a folder of its own

`to plain` compares with `plain`. The floor is what reading the bytes alone would allow: products /
(products + adapter), in bytes. Weights are rounded to nearest: that and random adapters cost what trained
ones do. With --one-core all runs on one core and the seconds that it works are counted, which other programs
change little; what several cores cannot share is not seen then.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.finetune import context_of
from pipeline import settings
from pipeline.exports import generation
from pipeline.exports.bound.binding import bind
from pipeline.exports.contract import ADAPTER_DATA
from pipeline.stages.context import Context
from pipeline.system import hardware

RANKS = (4, 8, 16, 64)
BOUND = (16, 64)  # of them, those that are bound too
QV = ("q_proj", "v_proj")


@dataclass
class Side:
    """A folder, with or without one of its adapters; seconds of its steps and of reading the prompt."""

    name: str
    folder: Path
    adapter: str | None = None
    adapter_bytes: int = 0
    steps: list[float] = field(default_factory=list)  # a median a turn
    reads: list[float] = field(default_factory=list)


def arguments(description: str) -> argparse.Namespace:
    """What is measured and how often, as the command line says; nothing else is printed from now on."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="starter", help="a folder, or a catalogue id (default: starter)")
    parser.add_argument("--tokens", type=int, default=40, help="decoded in a turn")
    parser.add_argument("--turns", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=512, help="tokens of the prompt that is read")
    parser.add_argument("--one-core", action="store_true", help="one core, and its seconds of work")
    args = parser.parse_args()
    if args.one_core:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    settings.quiet_this_process()
    return args


def main() -> None:
    args = arguments(str(__doc__))
    with tempfile.TemporaryDirectory() as work:
        folders = export(Path(work), args.model)
        found = list(sides(folders))
        lot = random.Random(0)
        for _ in range(args.turns):
            for folder in lot.sample(list(folders.values()), len(folders)):
                turn([side for side in found if side.folder == folder], folder, args.tokens, args.prompt)
        report(found, args.prompt)
        switching(folders["all"])


def clock() -> float:
    """Seconds, of the wall's clock; with --one-core, that this process has worked."""
    return time.process_time() if len(os.sched_getaffinity(0)) == 1 else time.perf_counter()


def turn(found: list[Side], folder: Path, tokens: int, prompt: int) -> None:
    """Load a folder and let its sides decode and read."""
    loaded = generation.load(folder, {file.stem: file for file in folder.glob("*.onnx_adapter")})
    for side in found:
        decode(side, loaded, tokens)
        read(side, loaded, prompt)


def switching(folder: Path) -> None:
    """What it takes to go from one adapter to another: the first token of a request, adapters in turn."""
    loaded = generation.load(folder, {file.stem: file for file in folder.glob("*.onnx_adapter")})
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for switched in (True, False) * 10:
        for adapter in ("4", "8", "16") if switched else ("8", "8", "8"):
            began = clock()
            begin(Side("", folder, adapter), loaded, 1, 1)
            seconds[switched].append(clock() - began)
    other, same = (1000 * statistics.median(seconds[switched]) for switched in (True, False))
    print(f"first token after another adapter {other:.2f} ms, after the same one {same:.2f} ms")


def export(work: Path, model: str) -> dict[str, Path]:
    """Folders by name: builder, plain, with places on all products and on q and v, and bound ones."""
    context = context_of(work, model)
    build(context.model, packed(context), work)
    folders = {"builder": work / "builder", "plain": work / "plain", "all": work / "all", "qv": work / "qv"}
    for name in ("all", "qv"):
        fused = context.config.get("model_type") == "phi3" and name == "all"
        add_places(folders["plain"], folders[name], QV if name == "qv" else None, fused)
    for name, rank in [("all", rank) for rank in BOUND] + [("qv", 16)]:
        label = f"bound r={rank}" if name == "all" else f"bound q,v r={rank}"
        folders[label] = bind(folders[name], str(rank), work / label).folder
    return folders


def packed(context: Context) -> Path:
    """The checkpoint of a model, rounded to nearest."""
    from pipeline.stages import quantize
    from pipeline.stages.execute import execute

    return execute(quantize, quantize.Options(algorithm="rtn"), context).artifacts[0].path


def build(model: Path, checkpoint: Path, work: Path, lm_head: str = "auto", device: str = "cpu") -> None:
    """Export a checkpoint of a model as int4: the builder's graph, and `plain` with fewer nodes."""
    from olive.hardware.accelerator import AcceleratorSpec
    from olive.model import HfModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    from pipeline.passes.optimize.fewer_nodes import FewerNodes
    from pipeline.passes.optimize.genai_builder import GenaiBuilder

    provider = {"cpu": "CPUExecutionProvider", "gpu": "CUDAExecutionProvider"}[device]
    accelerator = AcceleratorSpec(device, provider)
    options = {"block_size": 32, "accuracy_level": 4}
    has_chat = (model / "chat_template.jinja").exists()
    config = {
        "precision": "int4", "lm_head": lm_head, "extra_options": options,
        "template": "chat" if has_chat else "{prompt}\n{response}",
    }  # fmt: skip

    def apply(kind: Any, given: dict[str, Any], handler: Any, folder: Path) -> Any:
        return create_pass_from_dict(kind, given, disable_search=True, accelerator_spec=accelerator).run(
            handler, str(folder)
        )

    builder = apply(GenaiBuilder, config, HfModelHandler(str(checkpoint)), work / "builder")
    apply(FewerNodes, {}, builder, work / "plain")


def add_places(plain: Path, folder: Path, only: tuple[str, ...] | None, fused: bool) -> None:
    """Write the graph of `plain` with places for adapters, and adapters of several ranks.

    `fused`: queries, keys and values are one module of the model, with one A.
    """
    import onnx

    from pipeline.passes.optimize import lora_inputs
    from pipeline.passes.optimize.folders import carry_over
    from pipeline.passes.optimize.peft_lora import Lora

    carry_over(plain / "model.onnx", folder)
    model = onnx.load(plain / "model.onnx", load_external_data=False)
    widths = lora_inputs.read_widths(plain)
    initializers = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    sizes: dict[tuple[int, str], tuple[int, int]] = {}
    for name, (layer, product, _) in lora_inputs.products(model.graph):
        inputs, outputs = lora_inputs.size_of(nodes[name], initializers)
        parts = lora_inputs.PARTS[product] if product == "qkv_proj" and not fused else (product,)
        sizes |= {(layer, part): (inputs, widths.get(part, outputs)) for part in parts}
    wanted = {place: size for place, size in sizes.items() if only is None or place[1] in only}
    lora_inputs.add_branches(model.graph, set(wanted), widths)
    onnx.save(model, folder / "model.onnx")
    dice = np.random.default_rng(0)

    def weights(*shape: int) -> Any:
        return 0.01 * dice.standard_normal(shape, dtype=np.float32)

    for rank in RANKS if only is None else (16,):
        modules = {
            place: Lora(weights(rank, inputs), weights(outputs, rank))
            for place, (inputs, outputs) in wanted.items()
        }
        tensors = lora_inputs.weights_for(modules, model.graph, widths)
        lora_inputs.write_adapter(tensors, folder / f"{rank}.onnx_adapter")


def sides(folders: dict[str, Path]) -> Iterator[Side]:
    """Everything that is measured."""
    for name, folder in folders.items():
        adapters = {file.stem: file for file in folder.glob("*.onnx_adapter")}
        labels = {"all": "idle", "qv": "q,v idle"}
        constants = folder / ADAPTER_DATA
        size = constants.stat().st_size if constants.exists() else 0
        yield Side(labels.get(name, name), folder, adapter_bytes=size)
        for rank in sorted(adapters, key=int):
            label = f"r={rank}" if name == "all" else f"q,v r={rank}"
            yield Side(label, folder, rank, adapters[rank].stat().st_size)


def decode(side: Side, loaded: Any, tokens: int) -> None:
    """Note the median seconds of so many decoding steps."""
    generator = begin(side, loaded, 12, tokens)
    steps = []
    for _ in range(tokens):
        began = clock()
        generator.generate_next_token()
        steps.append(clock() - began)
    side.steps.append(statistics.median(steps))


def read(side: Side, loaded: Any, prompt: int) -> None:
    """Note the seconds to read a prompt."""
    began = clock()
    begin(side, loaded, prompt, 1)
    side.reads.append(clock() - began)


def begin(side: Side, loaded: Any, prompt: int, tokens: int) -> Any:
    """A generator that has read a prompt of so many tokens."""
    import onnxruntime_genai as og

    params = og.GeneratorParams(loaded.model)
    length = prompt + tokens + 1
    params.set_search_options(max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(loaded.model, params)
    if side.adapter is not None:
        generator.set_active_adapter(loaded.adapters, side.adapter)
    generator.append_tokens([100 + i % 50 for i in range(prompt)])
    generator.generate_next_token()
    return generator


def product_bytes(folder: Path) -> int:
    """Bytes of the weights that a decoding step reads."""
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    used = {name for node in graph.node if node.op_type.startswith("MatMul") for name in node.input}
    return sum(
        int(np.prod(tensors[name].dims)) * tensor_dtype_to_np_dtype(tensors[name].data_type).itemsize
        for name in used & set(tensors)
    )


def report(found: list[Side], prompt: int) -> None:
    """A line a side."""
    base = product_bytes(found[0].folder)
    plain = next(side.steps for side in found if side.name == "plain")
    cores = hardware.cores()
    counted = f"{cores} cores" if cores > 1 else "seconds of work of one core"
    print(f"\nproducts {base / 1e6:.1f} MB, {counted}, load {os.getloadavg()[0]:.1f}")
    columns = f"{'adapter MB':>11}{'ms/step':>9}{'tokens/s':>10}{'to plain':>10}{'floor':>7}{'to floor':>10}"
    print(f"{'':16}{columns}{'prompt/s':>10}")
    for side in found:
        step = statistics.median(side.steps)
        ratio = statistics.median(a / b for a, b in zip(plain, side.steps, strict=True))
        floor = 1 / (1 + side.adapter_bytes / base)
        size = f"{side.adapter_bytes / 1e6:.1f}" if side.adapter_bytes else ""
        print(
            f"{side.name:16}{size:>11}{step * 1e3:9.2f}{1 / step:10.1f}{ratio:10.3f}{floor:7.3f}"
            f"{ratio / floor:10.3f}{prompt / statistics.median(side.reads):10.0f}"
        )


if __name__ == "__main__":
    main()
