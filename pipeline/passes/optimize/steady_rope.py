"""A long RoPE without a branch, so that a GPU's steps can be recorded as a CUDA graph.

onnxruntime-genai's model builder (0.18) chooses between two tables of cosines and sines, for up to
`original_max_position_embeddings` tokens and for more, with an If whose branches hold them as constants: some
26 MB within the graph's own file. CUDA graphs cannot record control flow. Here Where chooses, by the length
that attention itself is given, and the tables lie in the file of weights.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

ATTENTION = "GroupQueryAttention"
LENGTHS = 5  # of its inputs: seqlens_k, tokens of each row before its last one
PAGE = 4096  # bytes, see `bound.constants`


def straighten(file: Path) -> bool:
    """Rewrite the graph in a file, with its weights in FILE.data; return whether there was such a branch.

    Raises ValueError for a branch of another form.
    """
    model = onnx.load(file, load_external_data=False)
    branches = [node for node in model.graph.node if node.op_type == "If"]
    if not branches:
        return False
    with file.with_name(f"{file.name}.data").open("ab") as data:
        for branch in branches:
            _replace(model.graph, branch, data)
    onnx.save(model, file)
    return True


def _replace(graph: onnx.GraphProto, branch: onnx.NodeProto, data: Any) -> None:
    """Put nodes that choose in the place of one branch, after the node that makes the lengths."""
    sides = {attribute.name: attribute.g for attribute in branch.attribute}
    longer, shorter = (_tables(sides[side]) for side in ("then_branch", "else_branch"))
    lengths = next(node.input[LENGTHS] for node in graph.node if node.op_type == ATTENTION)
    name = branch.name or "rope"
    last = numpy_helper.from_array(np.array(_limit(graph, branch.input[0]) - 1, np.int32), f"{name}/last")
    graph.initializer.append(last)
    nodes = [
        helper.make_node("ReduceMax", [lengths], [f"{name}/longest"], f"{name}/ReduceMax", keepdims=0),
        helper.make_node("Greater", [f"{name}/longest", last.name], [f"{name}/is_long"], f"{name}/Greater"),
    ]
    for made, many, few in zip(branch.output, longer, shorter, strict=True):
        padded = np.zeros_like(many)
        padded[: len(few)] = few
        stored = [
            _stored(f"{made}/{side}", table, data) for side, table in (("long", many), ("short", padded))
        ]
        graph.initializer.extend(stored)
        given = [f"{name}/is_long", *(tensor.name for tensor in stored)]
        nodes.append(helper.make_node("Where", given, [made], f"{made}/Where"))
    kept = list(_in_order(graph, branch, lengths, nodes))
    del graph.node[:]
    graph.node.extend(kept)


def _in_order(
    graph: onnx.GraphProto, branch: onnx.NodeProto, lengths: str, nodes: list[onnx.NodeProto]
) -> Iterator[onnx.NodeProto]:
    for node in graph.node:
        if node.name != branch.name or node.op_type != branch.op_type:
            yield node
        if lengths in node.output:
            yield from nodes


def _tables(side: onnx.GraphProto) -> list[Any]:
    """The constants that one side of a branch returns, as arrays [positions, half a head]."""
    made = {node.output[0]: node for node in side.node if node.op_type == "Constant"}
    if len(made) != len(side.node) or any(value.name not in made for value in side.output):
        raise ValueError("a branch of the graph is no choice between two tables; export for a CPU")
    return [numpy_helper.to_array(made[value.name].attribute[0].t) for value in side.output]


def _limit(graph: onnx.GraphProto, condition: str) -> int:
    """The tokens up to which the shorter tables are for: the right side of the comparison."""
    node = next(node for node in graph.node if condition in node.output)
    name = node.input[1]
    found = [tensor for tensor in graph.initializer if tensor.name == name]
    found += [
        node.attribute[0].t for node in graph.node if node.op_type == "Constant" and name in node.output
    ]
    if node.op_type != "Greater" or len(found) != 1:
        raise ValueError("a branch of the graph has another condition than a length; export for a CPU")
    return int(numpy_helper.to_array(found[0]).item())


def _stored(name: str, table: Any, data: Any) -> onnx.TensorProto:
    """A tensor whose values are written to the end of the file of weights."""
    data.write(b"\0" * (-data.tell() % PAGE))
    tensor = onnx.TensorProto(
        name=name, data_type=helper.np_dtype_to_tensor_dtype(table.dtype), dims=table.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )  # fmt: skip
    written = table.tobytes()
    place = {"location": Path(data.name).name, "offset": data.tell(), "length": len(written)}
    for key, value in place.items():
        tensor.external_data.add(key=key, value=str(value))
    data.write(written)
    return tensor
