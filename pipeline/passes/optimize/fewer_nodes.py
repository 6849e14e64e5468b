# mypy: disallow-subclassing-any=False
"""An exported graph with fewer nodes between its matrix products, for a CPU.

A decoding step of a small model spends a few milliseconds on some four hundred nodes, so the nodes count.
x * sigmoid(x) becomes one: QuickGelu with alpha 1.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from olive.hardware.accelerator import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.passes import Pass
from olive.passes.olive_pass import PassConfigParam
from onnx import helper

from pipeline.passes.optimize.folders import carry_over


class FewerNodes(Pass):
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
        onnx.save(graph, folder / source.name)
        return ONNXModelHandler(
            folder,
            onnx_file_name=source.name,
            model_attributes={"additional_files": sorted(map(str, others))},
        )


def fuse_silu(graph: onnx.GraphProto) -> int:
    """Fuse Sigmoid(x) with the Mul by x that is its only reader; return how many were fused."""
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
            given, name = gone[node.output[0]].input[0], f"{node.name.rpartition('/')[0]}/QuickGelu"
            nodes.append(
                helper.make_node(
                    "QuickGelu", [given], [node.output[0]], name, domain="com.microsoft", alpha=1.0
                )
            )
        elif node.output[0] not in sigmoids:
            nodes.append(node)
    replace(graph, nodes)
    return len(gone)


def replace(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Give the graph these nodes, in this order; they may be some of its own."""
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(kept)
