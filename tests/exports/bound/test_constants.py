"""Branches that an adapter has nothing for are taken out of a bound graph, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from pipeline.exports.bound import constants

X = np.linspace(-1, 1, 8, dtype=np.float32).reshape(2, 4)
A, B = (np.arange(8, dtype=np.float32).reshape(shape) for shape in ((4, 2), (2, 4)))


def graph(last: str = "Neg") -> Any:
    """y = last(z + (z A2) B2) with z = x W + (x A1) B1."""
    kind = TensorProto.FLOAT
    steps = [
        ("MatMul", ["x", "w"], "p"),
        ("MatMul", ["x", "a1"], "l1"), ("MatMul", ["l1", "b1"], "d1"), ("Add", ["p", "d1"], "z"),
        ("MatMul", ["z", "a2"], "l2"), ("MatMul", ["l2", "b2"], "d2"), ("Add", ["z", "d2"], "s"),
        (last, ["s"], "y"),
    ]  # fmt: skip
    names = ("a1", "b1", "a2", "b2")
    sizes = {name: [4, f"r{name[1]}"] if name[0] == "a" else [f"r{name[1]}", 4] for name in names}
    empty = {name: [4, 0] if name[0] == "a" else [0, 4] for name in names}
    made = helper.make_graph(
        [helper.make_node(kind, given, [out]) for kind, given, out in steps],
        "two",
        [helper.make_tensor_value_info("x", kind, [2, 4])]
        + [helper.make_tensor_value_info(name, kind, sizes[name]) for name in names],
        [helper.make_tensor_value_info("y", kind, [2, 4])],
        [numpy_helper.from_array(np.eye(4, dtype=np.float32), "w")]
        + [helper.make_tensor(name, kind, empty[name], b"", raw=True) for name in names],
    )
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def computed(model: Any, folder: Path, **given: Any) -> Any:
    onnx.save(model, folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    return session.run(None, {"x": X, **given})[0]


@pytest.mark.parametrize(
    ("which", "nodes"), [((), 2), (("1",), 5), (("2",), 5), (("1", "2"), 8)]
)  # fmt: skip
def test_branches_without_an_adapter_are_taken_out(
    tmp_path: Path, which: tuple[str, ...], nodes: int
) -> None:
    given = {f"{side}{n}": value for n in which for side, value in (("a", A), ("b", B))}
    wanted = computed(graph(), tmp_path, **given)
    model = graph()
    constants.fix(model, given, ["x"], tmp_path / "values")
    assert len(model.graph.node) == nodes
    assert [value.name for value in model.graph.input] == ["x"]
    assert {tensor.name for tensor in model.graph.initializer} == {"w", *given}
    assert (computed(model, tmp_path) == wanted).all()


def test_a_branch_of_another_form_stays(tmp_path: Path) -> None:
    wanted = computed(graph("Identity"), tmp_path)
    model = graph("Identity")
    model.graph.node[3].op_type = "Sub"  # z = x W - (x A1) B1
    model.graph.output[0].name = "s"  # the second sum is the graph's own output
    model.graph.node.pop()
    constants.fix(model, {}, ["x"], tmp_path / "values")
    assert len(model.graph.node) == 7
    assert (computed(model, tmp_path) == wanted).all()
