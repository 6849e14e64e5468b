# mypy: disallow-subclassing-any=False
"""Give an exported graph places for LoRA adapters, and write adapters that fit them.

Beside each adapted product y = xW the graph gets the branch y + (xA)B, with A and B as graph inputs

    model.layers.0.attn.o_proj.lora_A    [inputs, rank]
    model.layers.0.attn.o_proj.lora_B    [rank, outputs], times alpha / r

named after the product's node. They are optional: each has an empty default of rank 0, so that the graph
without an adapter is the base model. `onnxruntime_genai.Adapters.load` reads a file with these tensors;
adapters of any rank for all or some of the products fit the same graph.

Where the export merged several PEFT modules into one product (packed q, k and v), A is their As side by side
and B is block-diagonal. Where it split one PEFT module (gate_up), each part has the same A and its own rows
of B.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
from olive.data.config import DataConfig
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from onnx import TensorProto, helper

from pipeline.exports.contract import ADAPTER
from pipeline.exports.serving_ids import LAB
from pipeline.passes.optimize.fewer_nodes import replace
from pipeline.passes.optimize.folders import carry_over
from pipeline.passes.optimize.peft_lora import Array, Lora, read_adapter
from pipeline.stages.events import emit
from pipeline.system.files import finite, whole

if TYPE_CHECKING:
    from pipeline.passes.measure.graph_loss import Judging

# PEFT's fused modules, and the parts the export may put into products of their own.
PARTS = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
INPUT = re.compile(r"model\.layers\.(\d+)\.(?:attn|mlp)\.(\w+)\.lora_A$")
NUMPY = {TensorProto.FLOAT: np.float32, TensorProto.FLOAT16: np.float16}
Modules = Mapping[tuple[int, str], Lora]  # an adapter by (layer, last name of the module)


class LoraInputs(Pass):
    """Add the branches to an ONNX model of GenaiBuilder and write the adapter beside it.

    A graph that already has the places is left unchanged, and only the adapter is written.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {
            "adapter_path": PassConfigParam(
                type_=str, required=True, description="Folder of a PEFT LoRA adapter."
            ),
            "base": PassConfigParam(type_=str, default_value="", description="Name of the base."),
            "data_config": PassConfigParam(
                type_=DataConfig | dict, default_value=None, description="Rows to measure the loss on."
            ),
            "report": PassConfigParam(
                type_=str, default_value=None, description="The file to write that loss to."
            ),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        emit(message="Adding the adapter's inputs to the graph", progress=0.75)
        source, folder = Path(model.model_path), Path(output_model_path)
        others = carry_over(source, folder)
        graph = onnx.load(source, load_external_data=False)
        modules = read_adapter(Path(config.adapter_path))
        if not places(graph.graph):
            add_branches(graph.graph, set(modules), read_widths(source.parent))
        onnx.save(graph, folder / source.name)
        with _judging(folder) if config.data_config else nullcontext() as judging:
            write_adapter(weights_for(modules, graph.graph, read_widths(source.parent)), folder / ADAPTER)
            note_base(folder, config.base)
            emit(message="Adapter written", progress=0.8)
            if judging is not None:
                found = {"eval_loss_graph": judging.held_out(config.data_config)}
                Path(config.report).write_text(json.dumps(finite(found), allow_nan=False) + "\n", "utf-8")
        return ONNXModelHandler(
            folder,
            onnx_file_name=source.name,
            model_attributes={"additional_files": sorted(map(str, [*others, folder / ADAPTER]))},
        )


def _judging(folder: Path) -> Judging:
    from pipeline.passes.measure.graph_loss import Judging  # only what measures imports that

    return Judging(folder)


def convert(adapter: Path, folder: Path, file: Path) -> None:
    """Write the PEFT adapter in one folder as a file for the exported graph in another.

    Raises ValueError with the reason if they do not fit.
    """
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    if not places(graph):
        raise ValueError("the graph has no places for adapters; export it once with an adapter")
    write_adapter(weights_for(read_adapter(adapter), graph, read_widths(folder)), file)


def note_base(folder: Path, base: str) -> None:
    """Write the name of the base into the folder's lab.json, to check adapters from elsewhere."""
    file = folder / LAB
    known = json.loads(file.read_text("utf-8")) if file.exists() else {}
    file.unlink(missing_ok=True)  # it may be a link, whose file must not change
    file.write_text(
        json.dumps(finite({**known, "base": base}), allow_nan=False, ensure_ascii=False, indent=1) + "\n",
        "utf-8",
    )


def read_widths(folder: Path) -> dict[str, int]:
    """Outputs of q, k and v by name, from the exported folder's genai_config.json."""
    decoder = json.loads((folder / "genai_config.json").read_text("utf-8"))["model"]["decoder"]
    head = decoder["head_size"]
    keys = head * decoder["num_key_value_heads"]
    return {"q_proj": head * decoder["num_attention_heads"], "k_proj": keys, "v_proj": keys}


@dataclass(frozen=True)
class Place:
    """The inputs A and B beside one product. `kind` is their TensorProto type."""

    layer: int
    product: str
    a: str  # the graph input's name
    b: str
    inputs: int
    outputs: int
    kind: int


def places(graph: onnx.GraphProto) -> list[Place]:
    """The places for adapters in a graph, found by its inputs."""
    values = {value.name: value for value in graph.input}
    found = []
    for name, value in values.items():
        match = INPUT.match(name)
        if match is None or (other := values.get(f"{name.removesuffix('A')}B")) is None:
            continue
        kind = value.type.tensor_type.elem_type
        found.append(
            Place(int(match[1]), match[2], name, other.name, _sizes(value)[0], _sizes(other)[1], kind)
        )
    return found


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [axis.dim_value for axis in value.type.tensor_type.shape.dim]


def weights_for(modules: Modules, graph: onnx.GraphProto, widths: Mapping[str, int]) -> dict[str, Array]:
    """The adapter's tensors by graph input. `widths` are the outputs of q, k and v.

    Places without a module are left out. Raises ValueError with the reason if a module has no place, or has
    another size than the graph's product.
    """
    weights: dict[str, Array] = {}
    used: set[tuple[int, str]] = set()
    for place in places(graph):
        pieces = list(_pieces(place, modules, widths))
        if not pieces:
            continue
        used |= {piece.source for piece in pieces}
        a, b = combine(pieces, place.inputs, place.outputs)
        kind = NUMPY[place.kind]
        weights[place.a] = np.ascontiguousarray(a, dtype=kind)
        weights[place.b] = np.ascontiguousarray(b, dtype=kind)
        if not (np.isfinite(weights[place.a]).all() and np.isfinite(weights[place.b]).all()):
            raise ValueError(
                f"layer {place.layer} {place.product}: the adapter has numbers that are not finite"
            )
    if missing := sorted(set(modules) - used):
        names = ", ".join(f"layer {layer} {module}" for layer, module in missing[:5])
        raise ValueError(f"the graph has no place for {len(missing)} adapted modules: {names}")
    return weights


@dataclass(frozen=True)
class Piece:
    """A module's adapter at the `width` outputs it has in one product, counted from `start`."""

    source: tuple[int, str]
    lora: Lora
    start: int
    width: int


def combine(pieces: Sequence[Piece], inputs: int, outputs: int) -> tuple[Array, Array]:
    """(A [inputs, ranks side by side], B [ranks, outputs] block-diagonal) of the pieces of one product.

    Raises ValueError if the size of one does not fit.
    """
    for piece in pieces:
        read, width = piece.lora.a.shape[1], piece.lora.b.shape[0]
        if (read, width) != (inputs, piece.width):
            layer, name = piece.source
            raise ValueError(
                f"layer {layer} {name}: the adapter is for {read} inputs and {width} outputs, the graph has"
                f" {inputs} and {piece.width}; it was trained on another base"
            )
    rank = sum(piece.lora.a.shape[0] for piece in pieces)
    a, b = np.zeros((inputs, rank), np.float32), np.zeros((rank, outputs), np.float32)
    at = 0
    for piece in pieces:
        rows, width = piece.lora.a.shape[0], piece.lora.b.shape[0]
        a[:, at : at + rows] = piece.lora.a.T
        b[at : at + rows, piece.start : piece.start + width] = piece.lora.b.T
        at += rows
    return a, b


def add_branches(graph: onnx.GraphProto, wanted: set[tuple[int, str]], widths: Mapping[str, int]) -> None:
    """Add a branch beside every product that `wanted` modules, (layer, last name), are part of.

    `widths` are the outputs of q, k and v. Raises ValueError if a module has no product in the graph.
    """
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    found = {name: place for name, place in products(graph) if _sources(place, wanted)}
    if missing := sorted(wanted - {s for place in found.values() for s in _sources(place, wanted)}):
        names = ", ".join(f"layer {layer} {module}" for layer, module in missing[:5])
        raise ValueError(f"the graph has no product for {len(missing)} adapted modules: {names}")
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        nodes.append(node)
        if place := found.get(node.name):
            branch = Branch(node, place, _kind(node, initializers))
            nodes += branch.nodes()
            for side, size in zip("AB", size_of(node, initializers), strict=True):
                graph.input.append(branch.input(side, size))
                graph.initializer.append(branch.default(side, size))
    replace(graph, nodes)


@dataclass(frozen=True)
class Branch:
    """The nodes, inputs and defaults beside one product; `place` is (layer, product, "attn" or "mlp")."""

    product: onnx.NodeProto
    place: tuple[int, str, str]
    kind: int  # TensorProto type of activations and adapter

    def name(self, side: str) -> str:
        """Name of the graph input A or B."""
        layer, product, part = self.place
        return f"model.layers.{layer}.{part}.{product}.lora_{side}"

    def nodes(self) -> list[onnx.NodeProto]:
        """Two small products and a sum, which takes over the name of the product's output."""
        output, base = self.product.output[0], self.product.name.rpartition("/")[0]
        plain, low, delta = f"{output}/plain", f"{output}/lora_A", f"{output}/lora_B"
        self.product.output[0] = plain
        return [
            helper.make_node(
                "MatMul", [self.product.input[0], self.name("A")], [low], f"{base}/lora_A/MatMul"
            ),
            helper.make_node("MatMul", [low, self.name("B")], [delta], f"{base}/lora_B/MatMul"),
            helper.make_node("Add", [plain, delta], [output], f"{base}/lora/Add"),
        ]

    def _sizes(self, side: str, size: int, rank: Any) -> list[Any]:
        return [size, rank] if side == "A" else [rank, size]

    def input(self, side: str, size: int) -> onnx.ValueInfoProto:
        """The graph input A or B, with `size` inputs or outputs and any rank."""
        name = self.name(side)
        return helper.make_tensor_value_info(name, self.kind, self._sizes(side, size, f"{name[:-2]}.rank"))

    def default(self, side: str, size: int) -> onnx.TensorProto:
        """An initializer under the input's name makes it optional; with rank 0 the branch adds zero."""
        return helper.make_tensor(self.name(side), self.kind, self._sizes(side, size, 0), b"", raw=True)


def write_adapter(weights: Mapping[str, Array], file: Path) -> None:
    """Write tensors as ONNX Runtime's adapter format; the file is written whole or not at all."""
    adapter = onnxruntime.AdapterFormat()
    adapter.set_adapter_version(1)
    adapter.set_model_version(1)
    adapter.set_parameters(
        {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in weights.items()}
    )
    with whole(file, shared=True) as part:  # the folder may be one that others write to
        adapter.export_adapter(str(part))


def products(graph: onnx.GraphProto) -> Iterator[tuple[str, tuple[int, str, str]]]:
    """(node's name, (layer, product, "attn" or "mlp")) of the products that the builder made."""
    for node in graph.node:
        match = re.match(r"/model/layers\.(\d+)/(attn|mlp)/(\w+)/MatMul", node.name)
        if match and node.op_type.startswith("MatMul"):
            yield node.name, (int(match[1]), match[3], match[2])


def _sources(place: tuple[int, str, str], wanted: set[tuple[int, str]]) -> set[tuple[int, str]]:
    """The wanted modules that a product carries: its own, its parts', or the fused one it is a part of."""
    layer, name, _ = place
    names = [name, *PARTS.get(name, ()), *(whole for whole, parts in PARTS.items() if name in parts)]
    return {(layer, each) for each in names} & wanted


def _pieces(place: Place, modules: Modules, widths: Mapping[str, int]) -> Iterator[Piece]:
    """The adapters that belong to one product: its own, its parts', or its share of a fused one.

    Raises ValueError if a fused module has more or fewer outputs than its parts in the graph together.
    """
    layer, name = place.layer, place.product
    if (layer, name) in modules:
        yield Piece((layer, name), modules[layer, name], 0, place.outputs)
    parts = PARTS.get(name, ())
    edges = _edges(parts, widths, place.outputs)
    for part, (start, stop) in zip(parts, pairwise(edges), strict=True):
        if (layer, part) in modules:
            yield Piece((layer, part), modules[layer, part], start, stop - start)
    for fused, parts in PARTS.items():
        if name in parts and (layer, fused) in modules:
            whole = modules[layer, fused]
            edges = _edges(parts, widths, place.outputs * len(parts))
            if whole.b.shape[0] != edges[-1]:
                raise ValueError(
                    f"layer {layer} {fused}: the adapter has {whole.b.shape[0]} outputs, and"
                    f" {', '.join(parts)} of the graph have {edges[-1]} together; it was trained on another"
                    " base"
                )
            index = parts.index(name)
            yield Piece((layer, fused), whole.rows(edges[index], edges[index + 1]), 0, place.outputs)


def _edges(parts: Iterable[str], widths: Mapping[str, int], total: int) -> list[int]:
    """Where the parts of a fused matrix begin and end; parts without a known width are equal."""
    parts = list(parts)
    return list(accumulate((widths.get(part, total // len(parts)) for part in parts), initial=0))


def _kind(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> int:
    """The type of a product's activations: that of its scales, or of its plain weight."""
    name = node.input[2] if node.op_type == "MatMulNBits" else node.input[1]
    kind = initializers[name].data_type
    if kind not in NUMPY:
        name = TensorProto.DataType.Name(kind)
        raise ValueError(f"{node.name} has weights of type {name}; LoRA needs float or float16")
    return int(kind)


def size_of(node: onnx.NodeProto, initializers: Mapping[str, onnx.TensorProto]) -> tuple[int, int]:
    """(inputs, outputs) of a product."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    if "K" in given:
        return given["K"], given["N"]
    inputs, outputs = initializers[node.input[1]].dims
    return inputs, outputs
