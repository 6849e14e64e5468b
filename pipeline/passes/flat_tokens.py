# mypy: disallow-subclassing-any=False
"""An exported graph with fewer and cheaper nodes between its products, for a CPU.

A decoding step of a small model spends a few milliseconds on some four hundred nodes, so the nodes count.

- Hidden states become [tokens, width] where the builder has [batch, sequence, width]: products are as fast or
  faster, and an adapter's branch can end in a Gemm, which adds where MatMul needs an Add after it. Attention
  still gets what it wants: Flatten and Reshape around it move no data.
- x * sigmoid(x) becomes one node: QuickGelu with alpha 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import onnx
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from onnx import TensorProto, helper

from pipeline.passes.folders import carry_over

# What treats every token by itself, whatever the axes before the last.
TOKENWISE = {
    "MatMul", "MatMulNBits", "Add", "Sub", "Mul", "Div", "Sigmoid", "Tanh", "Gelu", "FastGelu", "QuickGelu",
    "Relu", "Cast", "SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "Split",
}  # fmt: skip
FLAT, DEEP, SHAPE = "/flat", "/deep", "/flat_tokens/shape"


class FlatTokens(Pass):
    """Rewrite the graph of GenaiBuilder; what it computes stays the same."""

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        return {}

    def _run_for_config(
        self, model: ONNXModelHandler, config: Any, output_model_path: str
    ) -> ONNXModelHandler:
        source, folder = Path(model.model_path), Path(output_model_path)
        others = carry_over(source, folder)
        graph = onnx.load(source, load_external_data=False)
        fuse_silu(graph.graph)
        flatten(graph.graph)
        onnx.save(graph, folder / source.name)
        return ONNXModelHandler(
            folder,
            onnx_file_name=source.name,
            model_attributes={"additional_files": sorted(map(str, others))},
        )


def fuse_silu(graph: onnx.GraphProto) -> int:
    """Make one node of Sigmoid(x) and the Mul by x that alone reads it; return how many were found."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    gone: dict[str, onnx.NodeProto] = {}  # by the output of the Mul
    for node in graph.node:
        after = readers.get(node.output[0], []) if node.op_type == "Sigmoid" else []
        if [n.op_type for n in after] == ["Mul"] and node.input[0] in after[0].input:
            gone[after[0].output[0]] = node
    sigmoids = {node.output[0] for node in gone.values()}
    nodes = []
    for node in graph.node:
        if node.output[0] in gone:
            given, name = gone[node.output[0]].input[0], node.name.rpartition("/")[0] + "/QuickGelu"
            made = helper.make_node(
                "QuickGelu", [given], [node.output[0]], name, domain="com.microsoft", alpha=1.0
            )
            nodes.append(made)
        elif node.output[0] not in sigmoids:
            nodes.append(node)
    _replace(graph, nodes)
    return len(gone)


def flatten(graph: onnx.GraphProto, ids: str = "input_ids") -> int:
    """Take the axes of batch and sequence together wherever tokens are treated one by one.

    `ids` is the input [batch, sequence] that says how many there are. Returns the number of nodes that see
    tokens; 0, and nothing changed, if the graph has no such input.
    """
    if ids not in {value.name for value in graph.input}:
        return 0
    region = _region(graph)
    inside = {node.name for node in region}
    made = {name for node in region for name in _results(node)}
    fixed = _fixed(graph)
    taken = {name for node in region for name in _activations(node, fixed)} - made
    given = {name for node in graph.node if node.name not in inside for name in node.input if name in made}
    nodes: list[onnx.NodeProto] = [*_shape(graph, ids)]
    for node in graph.node:
        if node.name in inside:
            node.input[:] = [name + FLAT if name in taken else name for name in node.input]
        else:
            node.input[:] = [name + DEEP if name in given else name for name in node.input]
        nodes.append(node)
        for name in node.output:
            if name in taken:
                nodes.append(helper.make_node("Flatten", [name], [name + FLAT], name + FLAT, axis=2))
            if name in given:
                nodes.append(helper.make_node("Reshape", [name, SHAPE], [name + DEEP], name + DEEP))
    _replace(graph, nodes)
    kept = [value for value in graph.value_info if value.name not in made]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    return len(region)


def flat_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of the activations that are [tokens, width]."""
    fixed, found = _fixed(graph), set()
    for node in graph.node:
        if node.name.endswith(FLAT) or (
            _tokenwise(node, fixed) and any(name in found for name in _activations(node, fixed))
        ):
            found.update(_results(node))
    return found


def _region(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """The token-wise nodes that hang together with the layers' products, and make no output of the graph."""
    fixed = _fixed(graph)
    outputs = {value.name for value in graph.output}
    able = [n for n in graph.node if _tokenwise(n, fixed) and not outputs & set(n.output)]
    touching: dict[str, list[onnx.NodeProto]] = {}
    for node in able:
        for name in [*_activations(node, fixed), *_results(node)]:
            touching.setdefault(name, []).append(node)
    start = [node for node in able if node.op_type.startswith("MatMul")]
    found = {node.name: node for node in start}
    while start:
        node = start.pop()
        for name in [*_activations(node, fixed), *_results(node)]:
            for near in touching[name]:
                if near.name not in found:
                    found[near.name] = near
                    start.append(near)
    return list(found.values())


def _fixed(graph: onnx.GraphProto) -> dict[str, int]:
    """Ranks of the tensors that are the same for every input."""
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            value = next((a.t for a in node.attribute if a.name == "value"), TensorProto())
            ranks[node.output[0]] = len(value.dims)
    return ranks


def _tokenwise(node: onnx.NodeProto, fixed: dict[str, int]) -> bool:
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    if node.op_type not in TOKENWISE or axis != -1 or node.input[0] in fixed:
        return False
    if node.op_type == "MatMul":
        return fixed.get(node.input[1]) == 2 or node.input[1].endswith(".lora_A")
    return node.op_type == "MatMulNBits" or all(fixed[name] < 2 for name in node.input[1:] if name in fixed)


def _activations(node: onnx.NodeProto, fixed: dict[str, int]) -> list[str]:
    return [name for name in node.input if name and name not in fixed]


def _results(node: onnx.NodeProto) -> list[str]:
    return [name for name in node.output if name]  # an output that is left out has no name


def _shape(graph: onnx.GraphProto, ids: str) -> Iterable[onnx.NodeProto]:
    """Nodes that compute [batch, sequence, -1]."""
    graph.initializer.append(helper.make_tensor("/flat_tokens/rest", TensorProto.INT64, [1], [-1]))
    yield helper.make_node("Shape", [ids], ["/flat_tokens/ids"], "/flat_tokens/Shape")
    yield helper.make_node(
        "Concat", ["/flat_tokens/ids", "/flat_tokens/rest"], [SHAPE], "/flat_tokens/Concat", axis=0
    )


def _replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
