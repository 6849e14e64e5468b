# mypy: disallow-subclassing-any=False
"""Give an exported graph places for LoRA adapters, and write one adapter as a file.

Beside each adapted product y = xW the graph gets the branch y + (xA)B, with A and B as graph inputs

    model.layers.0.attn.qkv_proj.lora_A    [inputs, rank]
    model.layers.0.attn.qkv_proj.lora_B    [rank, outputs], times alpha / r

named after the product's node. They are optional: each has an empty default of rank 0, so that the graph
without an adapter is the base model. One file of theirs, `adapter_weights.onnx_adapter`, is what
`onnxruntime_genai.Adapters.load` reads; any adapter over the same products fits the same graph.

Where the export put several PEFT modules into one product (q, k and v), A is theirs side by side and B
block-diagonal. Where it cut one PEFT module into several (gate_up), each part has the same A and its own
rows of B.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from onnx import TensorProto, helper
from safetensors.torch import load_file

from pipeline.events import emit

ADAPTER = "adapter_weights.onnx_adapter"
KEY = re.compile(r"(?:^|\.)model\.layers\.(\d+)\.(self_attn|mlp)\.(\w+)\.lora_([AB])\.weight$")
# PEFT's fused modules, and the parts the export may put into products of their own.
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
Array = np.ndarray[Any, np.dtype[Any]]


class LoraInputs(Pass):
    """Add the branches to an ONNX model of GenaiBuilder and write the adapter beside it."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "adapter_path": PassConfigParam(
                type_=str, required=True, description="Folder of a PEFT LoRA adapter."
            )
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        emit(message="Adding the adapter's inputs to the graph", progress=0.75)
        source, folder = Path(model.model_path), Path(output_model_path)
        folder.mkdir(parents=True, exist_ok=True)
        others = _carry_over(source, folder)
        graph = onnx.load(source, load_external_data=False)
        genai = json.loads((source.parent / "genai_config.json").read_text("utf-8"))
        modules = read_adapter(Path(config.adapter_path))
        weights = add_branches(graph.graph, modules, genai["model"]["decoder"])
        onnx.save(graph, folder / source.name)
        write_adapter(weights, folder / ADAPTER)
        emit(message="Adapter written", progress=0.95)
        return ONNXModelHandler(
            folder,
            onnx_file_name=source.name,
            model_attributes={"additional_files": sorted(map(str, [*others, folder / ADAPTER]))},
        )


@dataclass(frozen=True)
class Lora:
    """One module's adapter: a [rank, inputs], b [outputs, rank] with the scale folded in, both float32."""

    a: Array
    b: Array

    def rows(self, start: int, stop: int) -> Lora:
        """The adapter of some of the outputs."""
        return Lora(self.a, self.b[start:stop])


def read_adapter(folder: Path) -> dict[tuple[int, str], Lora]:
    """A PEFT adapter by (layer, last name of the module).

    Raises ValueError for anything but plain LoRA, because it would be exported wrongly.
    """
    config = json.loads((folder / "adapter_config.json").read_text("utf-8"))
    for variant in ("use_dora", "use_bdlora", "modules_to_save", "fan_in_fan_out"):
        if config.get(variant):
            raise ValueError(f"the adapter uses {variant}, which the exported graph has no place for")
    found: dict[tuple[int, str], dict[str, Array]] = {}
    for key, tensor in load_file(folder / "adapter_model.safetensors").items():
        match = KEY.search(key)
        if match is None:
            raise ValueError(
                f"the adapter's {key} has no place in the graph; it adapts attention and MLP layers only"
            )
        layer, _, module, side = match.groups()
        found.setdefault((int(layer), module), {})[side] = tensor.float().numpy()
    return {
        place: Lora(sides["A"], sides["B"] * np.float32(scale(config, place[1], sides["A"].shape[0])))
        for place, sides in found.items()
    }


def scale(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies a module's output with: alpha / r, or alpha / sqrt(r) for rank-stabilized LoRA."""
    patterns = config.get("alpha_pattern") or {}
    alpha = next(
        (value for name, value in patterns.items() if re.search(rf"(^|\.){name}$", module)),
        config["lora_alpha"],
    )
    return float(alpha) / (math.sqrt(rank) if config.get("use_rslora") else rank)


def add_branches(
    graph: onnx.GraphProto, modules: Mapping[tuple[int, str], Lora], decoder: Mapping[str, Any]
) -> dict[str, Array]:
    """Add a branch beside every product that `modules` adapt; return the adapter's tensors by input name.

    `decoder` is genai_config.json's, from which the widths of packed q, k and v follow.
    Raises ValueError if a module has no product in the graph.
    """
    head = decoder["head_size"]
    widths = {"q_proj": head * decoder["num_attention_heads"]}
    widths["k_proj"] = widths["v_proj"] = head * decoder["num_key_value_heads"]
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    weights: dict[str, Array] = {}
    nodes: list[onnx.NodeProto] = []
    used: set[tuple[int, str]] = set()
    for node in graph.node:
        nodes.append(node)
        place = _place(node)
        if place is None:
            continue
        pieces = list(_pieces(place, modules, widths))
        if not pieces:
            continue
        used |= {piece.source for piece in pieces}
        total = (
            sum(widths[part] for part in PARTS["qkv_proj"])
            if place[1] == "qkv_proj"
            else pieces[0].lora.b.shape[0]
        )
        branch = Branch(node, f"model.layers.{place[0]}.{place[2]}.{place[1]}", _kind(node, initializers))
        a, b = combine(pieces, total)
        weights |= branch.weights(a, b)
        nodes += branch.nodes()
        graph.input.extend(branch.inputs(a.shape[0], b.shape[1]))
        graph.initializer.extend(branch.defaults(a.shape[0], b.shape[1]))
    if missing := sorted(set(modules) - used):
        names = ", ".join(f"layer {layer} {module}" for layer, module in missing[:5])
        raise ValueError(f"the graph has no product for {len(missing)} adapted modules: {names}")
    del graph.node[:]
    graph.node.extend(nodes)
    return weights


@dataclass(frozen=True)
class Piece:
    """A module's adapter at the outputs it has in one product, counted from `start`."""

    source: tuple[int, str]
    lora: Lora
    start: int


def combine(pieces: list[Piece], outputs: int) -> tuple[Array, Array]:
    """(A [inputs, ranks side by side], B [ranks, outputs] block-diagonal) of the pieces of one product."""
    a = np.concatenate([piece.lora.a for piece in pieces]).T
    b = np.zeros((a.shape[1], outputs), np.float32)
    rank = 0
    for piece in pieces:
        rows, width = piece.lora.a.shape[0], piece.lora.b.shape[0]
        b[rank : rank + rows, piece.start : piece.start + width] = piece.lora.b.T
        rank += rows
    return a, b


@dataclass(frozen=True)
class Branch:
    """The nodes, inputs and defaults beside one product."""

    product: onnx.NodeProto
    name: str
    kind: int  # TensorProto type of activations and adapter

    def nodes(self) -> list[onnx.NodeProto]:
        """Two small products and a sum, which takes over the name of the product's output."""
        output = self.product.output[0]
        plain, low, delta = f"{output}/plain", f"{output}/lora_A", f"{output}/lora_B"
        self.product.output[0] = plain
        base = self.product.name.rpartition("/")[0]
        return [
            helper.make_node(
                "MatMul", [self.product.input[0], f"{self.name}.lora_A"], [low], f"{base}/lora_A/MatMul"
            ),
            helper.make_node("MatMul", [low, f"{self.name}.lora_B"], [delta], f"{base}/lora_B/MatMul"),
            helper.make_node("Add", [plain, delta], [output], f"{base}/lora/Add"),
        ]

    def inputs(self, inputs: int, outputs: int) -> list[onnx.ValueInfoProto]:
        rank = f"{self.name}.rank"
        return [
            helper.make_tensor_value_info(f"{self.name}.lora_A", self.kind, [inputs, rank]),
            helper.make_tensor_value_info(f"{self.name}.lora_B", self.kind, [rank, outputs]),
        ]

    def defaults(self, inputs: int, outputs: int) -> list[onnx.TensorProto]:
        """Initializers under the inputs' names make them optional; with rank 0 the branch adds zero."""
        return [
            helper.make_tensor(f"{self.name}.lora_A", self.kind, [inputs, 0], b"", raw=True),
            helper.make_tensor(f"{self.name}.lora_B", self.kind, [0, outputs], b"", raw=True),
        ]

    def weights(self, a: Array, b: Array) -> dict[str, Array]:
        kind = NUMPY[self.kind]
        return {
            f"{self.name}.lora_A": np.ascontiguousarray(a, dtype=kind),
            f"{self.name}.lora_B": np.ascontiguousarray(b, dtype=kind),
        }


def write_adapter(weights: Mapping[str, Array], file: Path) -> None:
    """Write tensors as ONNX Runtime's adapter format."""
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    )
    adapter.export_adapter(str(file))


def _place(node: onnx.NodeProto) -> tuple[int, str, str] | None:
    """(layer, module, "attn" or "mlp") of a product that the builder made, else None."""
    match = re.match(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul", node.name)
    if match is None or not node.op_type.startswith("MatMul"):
        return None
    return int(match[1]), match[3], match[2]


def _pieces(
    place: tuple[int, str, str], modules: Mapping[tuple[int, str], Lora], widths: Mapping[str, int]
) -> Iterator[Piece]:
    """The adapters that belong to one product: its own, its parts', or its share of a fused one."""
    layer, name, _ = place
    if (layer, name) in modules:
        yield Piece((layer, name), modules[layer, name], 0)
        return
    start = 0
    for part in PARTS.get(name, ()):
        if (layer, part) in modules:
            yield Piece((layer, part), modules[layer, part], start)
        start += widths.get(part, 0)
    for fused, parts in PARTS.items():
        if name in parts and (layer, fused) in modules:
            whole = modules[layer, fused]
            edges = _edges(parts, widths, whole.b.shape[0])
            index = parts.index(name)
            yield Piece((layer, fused), whole.rows(edges[index], edges[index + 1]), 0)


def _edges(parts: Iterable[str], widths: Mapping[str, int], total: int) -> list[int]:
    """Where the parts of a fused matrix begin and end; parts without a known width are equal."""
    parts = list(parts)
    edges = [0]
    for part in parts:
        edges.append(edges[-1] + widths.get(part, total // len(parts)))
    return edges


def _kind(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> int:
    """The type of a product's activations: that of its scales, or of its plain weight."""
    name = node.input[2] if node.op_type == "MatMulNBits" else node.input[1]
    kind = initializers[name].data_type
    if kind not in NUMPY:
        name = TensorProto.DataType.Name(kind)
        raise ValueError(f"{node.name} has weights of type {name}; LoRA needs float or float16")
    return int(kind)


def _carry_over(source: Path, folder: Path) -> list[Path]:
    """Link what stands beside the graph, weights too, into the new folder; return what are not weights."""
    others = []
    for file in source.parent.iterdir():
        if file == source or not file.is_file():
            continue
        target = folder / file.name
        try:
            os.link(file, target)
        except OSError:  # another file system: then a copy it must be
            shutil.copyfile(file, target)
        if file.name != f"{source.name}.data":
            others.append(target)
    return others
