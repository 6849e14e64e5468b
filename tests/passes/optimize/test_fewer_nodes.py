"""SiLU as one node: only where it is one, and with the same result."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.chain


def graph(*nodes: tuple[str, list[str], str]) -> Any:
    """A model from x to y, both float [1, 8]."""
    from onnx import TensorProto, helper

    made = [
        helper.make_node(kind, given, [output], name=f"/{output}/{kind}") for kind, given, output in nodes
    ]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 8]) for name in "xy"]
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(
        helper.make_graph(made, "g", ends[:1], ends[1:]), opset_imports=opsets, ir_version=10
    )


def result(model: Any) -> Any:
    import numpy as np
    import onnxruntime

    x = np.linspace(-12, 12, 8, dtype=np.float32)[None]
    return onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"x": x})[0]


def test_silu_becomes_one_node_with_the_same_result() -> None:
    from pipeline.passes.optimize.fewer_nodes import fuse_silu

    model = graph(("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "m"), ("Relu", ["m"], "y"))
    before = result(model)
    assert fuse_silu(model.graph) == 1
    assert [node.op_type for node in model.graph.node] == ["QuickGelu", "Relu"]
    assert abs(result(model) - before).max() < 1e-6


@pytest.mark.parametrize(
    "nodes",
    [
        [("Sigmoid", ["x"], "s"), ("Neg", ["x"], "n"), ("Mul", ["n", "s"], "y")],
        [("Sigmoid", ["x"], "s"), ("Mul", ["x", "s"], "m"), ("Add", ["m", "s"], "y")],
        [("Sigmoid", ["x"], "s"), ("Add", ["x", "s"], "y")],
    ],
    ids=["of something else", "read elsewhere too", "no product"],
)
def test_what_is_no_silu_stays(nodes: list[tuple[str, list[str], str]]) -> None:
    from pipeline.passes.optimize.fewer_nodes import fuse_silu

    model = graph(*nodes)
    before = result(model)
    assert fuse_silu(model.graph) == 0
    assert [node.op_type for node in model.graph.node] == [kind for kind, _, _ in nodes]
    assert abs(result(model) - before).max() == 0
